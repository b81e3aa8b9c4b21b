"""The store: a folder for each run. curve.jsonl grows line by line; run.json is written last, by renaming.

run.json counts the evaluations of a run and holds the sha256 of the files beside it. A finished run whose curve differs is named
and left out, and is trained again. What stands in the folder beside growbench's own files is never removed.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growbench.config import plain
from growbench.console import say
from growbench.costs.accounts import Account, Ledger, Unit
from growbench.costs.hardware import Hardware
from growbench.errors import UsageError
from growbench.files import make_folder, move, remove_drafts, replacing, sha256, write_text
from growbench.runs import curve, reproduced
from growbench.runs.curve import CurveFile, say_once
from growbench.runs.records import Cost, RunRecord, RunStatus
from growbench.runs.reproduced import Stamp
from growbench.training.checkpoint import Checkpoints
from growbench.training.records import HeldOutLoss

REPLACED = "replaced"  # the folder of archived runs: finished ones that were trained again with another configuration
TUNING = "tuning"  # the folder of tuning trials, beside the runs that a report compares

RECORD, DOCUMENTS = "run.json", "documents.npy"  # in a run's folder
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"  # in a source's folder: the model, and its optimizer's state
MODEL_DRAFT = "model.part"  # the folder of a saved model that is not there in full
OWN = (RECORD, curve.FILE, DOCUMENTS, MODEL, OPTIMIZER, reproduced.FILE)  # what growbench writes there, beside folders

UNKNOWN_SOURCE = (
    "the cost of its training is unknown (or its seconds were measured on other hardware), and so are figures that charge it; "
    "set flops = X and seconds = Y beside checkpoint in [source], and run the same command again"
)


@dataclass(frozen=True)
class Run:
    """A stored run: `record` is its run.json, `curve` the rows of its curve.jsonl in order.

    Two losses that must not be mixed: `final_loss` is of the whole validation split, and compares with the final losses of other
    runs. `curve_loss` is of the fixed part of it that curves are measured on, and compares with the losses of other curves.

    A run that was reproduced has the origin and the configuration that its stamp says.
    """

    folder: Path
    record: RunRecord
    curve: list[dict[str, Any]]
    stamp: Stamp | None = None
    cut: int = 0  # rows of curve.jsonl that are left out of `curve`, since they were written again later

    @property
    def name(self) -> str:
        """The name of its folder."""
        return name(self.record.method, self.record.seed, self.record.budget_share)

    @property
    def finished(self) -> bool:
        return self.record.status == RunStatus.FINISHED

    @property
    def final_loss(self) -> float:
        """The loss (nats) of a finished run on the whole validation split; NaN for another run.

        Of runs that were stored before version 3, the loss that the curve ends at.
        """
        loss = self.record.final_val_loss if self.finished else None
        return math.nan if loss is None else loss

    @property
    def curve_loss(self) -> float:
        """The loss (nats) that the scored part of a finished run's curve ends at; NaN for another run."""
        scored = [row["val_loss"] for row in self.curve if row["scored"]] if self.finished else []
        return scored[-1] if scored else math.nan

    @cached_property
    def documents(self) -> NDArray[np.float64] | None:
        """(documents, 2): the final loss (nats) on each validation document, and how many labels it has; None: not recorded."""
        file = self.folder / DOCUMENTS
        try:
            if not file.is_file():
                return None
            if self.record.sha256.get(DOCUMENTS, found := sha256(file)) != found:
                raise ValueError("is damaged (sha256 differs)")
            return read_documents(file, self.record.final_val_loss)
        except Exception as error:  # numpy has many for a damaged file: EOFError, ValueError, zipfile.BadZipFile
            say_once(f"{file} cannot be read, and counts as not recorded: {' '.join(str(error).split())}")
            return None

    def cost(self, unit: Unit, ledger: Ledger) -> float:
        """All that is charged to it. NaN in the build ledger if the cost of its source is not known."""
        return self.record.cost.charged(unit, ledger)

    def source_cost(self, unit: Unit) -> float:
        """What the training of its source cost; NaN if that is not known."""
        return self.record.cost.of(unit, Account.SOURCE)


def read_documents(file: Path, final_loss: float | None) -> NDArray[np.float64]:
    """The content of documents.npy. Raises an exception if it is damaged, or of another run than one with that final loss."""
    with file.open("rb") as content:
        found = np.lib.format.read_array(content, allow_pickle=False)
    if found.dtype.kind != "f" or found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise ValueError(f"holds {found.dtype} of shape {found.shape}, and not a loss and a number of labels for each document")
    documents = found.astype(np.float64)
    losses, labels = documents.T
    if not np.isfinite(documents).all() or labels.min() < 1:
        raise ValueError("holds losses that are not finite, or documents without labels")
    mean = float(np.average(losses, weights=labels))
    if final_loss is not None and not math.isclose(mean, final_loss, rel_tol=1e-4):  # stored with 7 digits
        raise ValueError(f"is of another run: its mean loss is {mean:.4f}, the run's {final_loss:.4f}")
    return documents


class RunFolder:
    """Writes one run. An unfinished run of the same `identity` is resumed; a finished run is archived.

    `identity`: what decides the outcome, as plain JSON values. An unfinished run of another identity is removed, but for files
    that growbench did not write. Raises UsageError if the folder cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], hardware: Hardware) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        begun = self.checkpoints / "config.json"
        try:
            if not (begun.is_file() and _read_json(begun) == identity):
                _clear(path)
                make_folder(self.checkpoints)
                write_text(begun, json.dumps(identity))
            for folder in (path, self.checkpoints):
                remove_drafts(folder)
            shutil.rmtree(path / MODEL_DRAFT, ignore_errors=True)
            self.earlier_hardware = self._earlier_hardware(str(hardware))
            self.curve = CurveFile(path / curve.FILE)
        except OSError as error:
            raise UsageError(f"cannot write results to {path}: {error.strerror}; choose another folder with --results") from error

    def close(self, record: RunRecord, validation: HeldOutLoss | None = None) -> bool:
        """Write the losses by document, if there are any, and run.json. False, with a line that says why, if that fails."""
        hardware = replace(record.hardware, earlier=self.earlier_hardware)
        digests = {**record.sha256, curve.FILE: self.curve.sha256}
        try:
            if validation:
                with replacing(self.path / DOCUMENTS) as draft, draft.open("wb") as file:
                    np.save(file, np.stack([validation.losses, validation.labels], axis=1).astype(np.float32))
                digests[DOCUMENTS] = sha256(self.path / DOCUMENTS)
            _write(self.path, replace(record, hardware=hardware, evaluations=self.curve.rows, sha256=digests))
        except OSError as error:
            say(f"{self.path}: run.json cannot be written: {error.strerror}; the same command resumes this run")
            return False
        return True

    def _earlier_hardware(self, here: str) -> str:
        """The other machines on which the run was trained before it is resumed. Adds this machine to their file."""
        file = self.checkpoints / "hardware.json"
        before = (_read_json(file) if file.is_file() and any(self.checkpoints.glob("*.safetensors")) else None) or []
        others = [machine for machine in before if machine != here]
        write_text(file, json.dumps([*others, here]))
        return "; ".join(others)


def _clear(path: Path) -> None:
    """Archive a run that finished, with all that stands in its folder. Of any other, remove the files that growbench wrote."""
    if not path.exists():
        return
    if _finished(path) or (path / "model").exists():
        archive = path.parent / REPLACED
        make_folder(archive)
        numbers = itertools.count(1)
        move(path, next(free for number in numbers if not (free := archive / f"{path.name}-{number}").exists()))
        return
    Checkpoints(path / "checkpoints").remove()
    shutil.rmtree(path / MODEL_DRAFT, ignore_errors=True)
    remove_drafts(path)
    for own in OWN:
        (path / own).unlink(missing_ok=True)


def _finished(path: Path) -> bool:
    """Whether a run finished, as far as can be known: one whose record cannot be read may have."""
    file = path / RECORD
    try:
        return file.is_file() and RunRecord.read(file.read_text(encoding="utf-8")).status == RunStatus.FINISHED
    except (OSError, ValueError):
        return True


def state_source(run: Run, cost: Cost) -> None:
    """Store the cost of the training of a run's source, where it has become known."""
    stated = run.record.cost.with_source(cost)
    if stated != run.record.cost:
        # from the file: `run.record` may hold values of a stamp
        written = RunRecord.read((run.folder / RECORD).read_text(encoding="utf-8"))
        _write(run.folder, replace(written, cost=stated))


def _write(folder: Path, record: RunRecord) -> None:
    """run.json, in full or not at all."""
    write_text(folder / RECORD, record.text())


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is not JSON."""
    try:
        return plain.from_json(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def name(method: str, seed: int, budget_share: float = 1.0) -> str:
    """The name of a run's folder."""
    return f"{method}-seed{seed}" + (f"-budget{budget_share:.12g}" if budget_share != 1 else "")


def load(folder: Path) -> Run | None:
    """The run stored in `folder`, or None if it never ended. A run that cannot be read is left out, and named in one line."""
    file = folder / RECORD
    try:
        if not file.is_file():
            return None
        record, stamp = RunRecord.read(file.read_text(encoding="utf-8")), _stamp(folder)
        if stamp and stamp.covers(record):
            record = replace(record, origin=stamp.origin, config=stamp.config)
        if record.status == RunStatus.FINISHED and (wrong := _damage(folder, record)):
            say_once(f"{folder} is left out: {curve.FILE} {wrong}: growbench run trains the run again")
            return None
        written = list(curve.read(folder / curve.FILE))
        rows = curve.in_order(written)
        if cut := len(written) - len(rows):
            say_once(f"{folder / curve.FILE}: {cut} evaluations were made again after an interruption: the last ones count")
        return Run(folder, record, rows, stamp, cut)
    except (OSError, ValueError) as error:  # text that is not UTF-8 or not JSON raises a ValueError
        say_once(f"{folder} is left out: run.json cannot be read: {' '.join(str(error).split())}")
        return None


@dataclass(frozen=True)
class TrainedIn:
    """What a run was trained as, and in which precision, on which type of device."""

    experiment: Mapping[str, Any]  # its configuration
    device: str
    precision: str


def trained_in(folder: Path) -> TrainedIn | None:
    """Of a run that has ended, or has begun and may be going on; None if there is none that can be read."""
    if run := load(folder):
        return TrainedIn(run.record.config.experiment, run.record.hardware.device, run.record.hardware.precision)
    try:
        begun, machines = (_read_json(folder / "checkpoints" / name) for name in ("config.json", "hardware.json"))
        said = dict(re.findall(r"\b(device|precision) (\w+)", machines[-1]))
        return TrainedIn(dict(begun["run"]["experiment"]), said["device"], said["precision"])
    except (OSError, TypeError, ValueError, LookupError):  # of a damaged file
        return None


def _damage(folder: Path, record: RunRecord) -> str:
    """What is wrong with the curve of a finished run; empty if nothing is, as far as its version recorded it."""
    if record.evaluations is None:
        return "" if (folder / curve.FILE).is_file() else "is missing"
    return curve.damage(folder / curve.FILE, record.evaluations, record.sha256.get(curve.FILE, ""))


def _stamp(folder: Path) -> Stamp | None:
    try:
        return Stamp.read(folder)
    except (OSError, ValueError) as error:
        say_once(f"{folder} counts as not reproduced: {' '.join(str(error).split())}")
        return None


def load_all(folder: Path) -> list[Run]:
    """Every run that has ended in an experiment's results folder, the sources' runs included, by name.

    Of two with the same method, seed and budget, the one whose folder has its name counts.
    """
    found: dict[str, Run] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and (run := load(path)):
            first = found.setdefault(run.name, run)
            if first is not run:
                kept, other = (run, first) if path.name == run.name else (first, run)
                say_once(f"{other.folder} is left out: it holds the same run as {kept.folder}")
                found[run.name] = kept
    return list(found.values())
