"""The store: a folder for each run. curve.jsonl grows line by line; run.json is written last, by renaming."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growbench.console import say
from growbench.costs.accounts import Account, Ledger, Unit
from growbench.costs.hardware import Hardware
from growbench.errors import UsageError
from growbench.files import write_text
from growbench.runs.records import Cost, RunRecord, RunStatus
from growbench.runs.reproduced import Stamp
from growbench.training.evaluation import HeldOutLoss

REPLACED = "replaced"  # the folder of archived runs: finished ones that were trained again with another configuration
TUNING = "tuning"  # the folder of tuning trials, beside the runs that a report compares

DOCUMENTS = "documents.npy"  # in a run's folder: see Run.documents

UNKNOWN_SOURCE = (
    "the cost of its training is unknown (or its seconds were measured on other hardware), and so are figures that charge it; "
    "set flops = X and seconds = Y beside checkpoint in [source], and run the same command again"
)

CURVE: dict[str, type | tuple[type, ...]] = {  # of every row
    "step": int, "val_loss": (int, float), "flops": (int, float), "seconds": (int, float), "scored": bool, "phase": str,
}  # fmt: skip


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
            return _documents(file, self.record.final_val_loss) if file.is_file() else None
        except Exception as error:  # numpy has many for a damaged file: EOFError, ValueError, zipfile.BadZipFile
            _say_once(f"{file} cannot be read, and counts as not recorded: {' '.join(str(error).split())}")
            return None

    def cost(self, unit: Unit, ledger: Ledger) -> float:
        """All that is charged to it. NaN in the build ledger if the cost of its source is not known."""
        return self.record.cost.charged(unit, ledger)

    def source_cost(self, unit: Unit) -> float:
        """What the training of its source cost; NaN if that is not known."""
        return self.record.cost.of(unit, Account.SOURCE)


def _documents(file: Path, final_loss: float | None) -> NDArray[np.float64]:
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

    `identity`: what decides the outcome, as plain JSON values. An unfinished run of another identity is removed. Raises
    UsageError if the folder cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], hardware: Hardware) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        begun = self.checkpoints / "config.json"
        try:
            if not (begun.is_file() and _read_json(begun) == identity):
                _clear(path)
                self.checkpoints.mkdir(parents=True)
                begun.write_text(json.dumps(identity), encoding="utf-8")
            self.earlier_hardware = self._earlier_hardware(str(hardware))
            self.curve = CurveFile(path / "curve.jsonl")
        except OSError as error:
            raise UsageError(f"cannot write results to {path}: {error.strerror}; choose another folder with --results") from error

    def close(self, record: RunRecord, validation: HeldOutLoss | None = None) -> bool:
        """Write the losses by document, if there are any, and run.json. False, with a line that says why, if that fails."""
        hardware = replace(record.hardware, earlier=self.earlier_hardware)
        try:
            if validation:
                np.save(self.path / DOCUMENTS, np.stack([validation.losses, validation.labels], axis=1).astype(np.float32))
            _write(self.path, replace(record, hardware=hardware))
        except OSError as error:
            say(f"{self.path}: run.json cannot be written: {error.strerror}; the same command resumes this run")
            return False
        return True

    def _earlier_hardware(self, here: str) -> str:
        """The other machines on which the run was trained before it is resumed. Adds this machine to their file."""
        file = self.checkpoints / "hardware.json"
        before = (_read_json(file) if file.is_file() and any(self.checkpoints.glob("*.safetensors")) else None) or []
        others = [machine for machine in before if machine != here]
        file.write_text(json.dumps([*others, here]), encoding="utf-8")
        return "; ".join(others)


def _clear(path: Path) -> None:
    """Archive a finished run; remove one that did not finish."""
    stored = load(path)
    if stored and stored.finished:
        archive = path.parent / REPLACED
        archive.mkdir(exist_ok=True)
        numbers = itertools.count(1)
        path.rename(next(free for number in numbers if not (free := archive / f"{path.name}-{number}").exists()))
    elif path.exists():
        shutil.rmtree(path)


def state_source(run: Run, cost: Cost) -> None:
    """Store the cost of the training of a run's source, where it has become known."""
    stated = run.record.cost.with_source(cost)
    if stated != run.record.cost:
        # from the file: `run.record` may hold values of a stamp
        written = RunRecord.read((run.folder / "run.json").read_text(encoding="utf-8"))
        _write(run.folder, replace(written, cost=stated))


def _write(folder: Path, record: RunRecord) -> None:
    """run.json, in full or not at all."""
    write_text(folder / "run.json", record.text())


class CurveFile:
    """curve.jsonl: a line for each evaluation. An appended row is on disk at once; an incomplete line is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.rows = len(_complete_lines(path))
        self._cut(self.rows)

    def begin_as(self, trunk: Path, rows: int) -> None:
        """Copy another run's first rows, unless there are as many already."""
        if self.rows < rows:
            self._fill(_complete_lines(trunk)[:rows])

    def append(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as curve:
            curve.write(json.dumps(row, allow_nan=False) + "\n")
            curve.flush()
            os.fsync(curve.fileno())  # a checkpoint that counts this row is written after it
        self.rows += 1

    def __delitem__(self, rows: slice) -> None:
        """Drop all rows from `rows.start` on. Raises UsageError if rows before it are missing."""
        if rows.start > self.rows:
            wrong = f"{self.path} has {self.rows} evaluations, its run's checkpoint {rows.start}"
            raise UsageError(f"{wrong}: the same command trains the run again")
        if rows.start < self.rows:
            self._cut(rows.start)

    def _cut(self, rows: int) -> None:
        self._fill(_complete_lines(self.path)[:rows])

    def _fill(self, lines: list[str]) -> None:
        """Replace the file, in full or not at all."""
        write_text(self.path, "".join(lines))
        self.rows = len(lines)


def _complete_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None


def name(method: str, seed: int, budget_share: float = 1.0) -> str:
    """The name of a run's folder."""
    return f"{method}-seed{seed}" + (f"-budget{budget_share:.12g}" if budget_share != 1 else "")


def load(folder: Path) -> Run | None:
    """The run stored in `folder`, or None if it never ended. A run that cannot be read is left out, and named in one line."""
    file = folder / "run.json"
    try:
        if not file.is_file():
            return None
        record, stamp = RunRecord.read(file.read_text(encoding="utf-8")), _stamp(folder)
        if stamp and stamp.covers(record):
            record = replace(record, origin=stamp.origin, config=stamp.config)
        written = list(_rows(folder / "curve.jsonl"))
        curve = _in_order(written)
        if cut := len(written) - len(curve):
            _say_once(f"{folder / 'curve.jsonl'}: {cut} evaluations were made again after an interruption: the last ones count")
        return Run(folder, record, curve, stamp, cut)
    except (OSError, ValueError) as error:  # text that is not UTF-8 or not JSON raises a ValueError
        _say_once(f"{folder} is left out: run.json cannot be read: {' '.join(str(error).split())}")
        return None


def _stamp(folder: Path) -> Stamp | None:
    try:
        return Stamp.read(folder)
    except (OSError, ValueError) as error:
        _say_once(f"{folder} counts as not reproduced: {' '.join(str(error).split())}")
        return None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of curve.jsonl up to the first invalid line. The last line of an interrupted run may be incomplete."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            json.dumps(row, allow_nan=False)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in CURVE.items()):
            if number < len(lines):
                _say_once(f"{path}, line {number} is not an evaluation: it and the {len(lines) - number} after it are left out")
            return
        yield row


def _in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations in the order of training. Where a run repeated some after an interruption, those written last."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and not _follows(row, kept[-1]):
            kept.pop()
        kept.append(row)
    return kept


def _follows(row: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether an evaluation comes after another one: at a later step, or at the start of the phase that the other one ended."""
    begins_next = row.get("train_loss") is None and last.get("train_loss") is not None
    return row["step"] > last["step"] or (row["step"] == last["step"] and begins_next)


@cache
def _say_once(text: str) -> None:
    say(text)


def load_all(folder: Path) -> list[Run]:
    """Every run that has ended in an experiment's results folder, the sources' runs included, by name."""
    runs = [load(path) for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    return [run for run in runs if run is not None]
