"""The store: one folder a run, `curve.jsonl` growing line by line, `run.json` written last and by rename."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from growbench.console import say
from growbench.costs.accounts import CHARGED, UNITS
from growbench.costs.hardware import _decisive
from growbench.errors import UsageError

REPLACED = "replaced"  # the folder of finished runs whose place one of another configuration has taken


TUNING = "tuning"  # the folder of tuning trials, beside the runs that a report compares


UNKNOWN_SOURCE = (  # what a reader is asked for
    "what its training cost is not known (seconds: not on this hardware), so figures with it charged are unknown; "
    "give flops = X and seconds = Y beside checkpoint in [source], and run the same command again"
)


# What a run's record must hold; and what came when runs had been stored without it, with what it was for them.
RECORD = {
    "status": str, "experiment": str, "title": str, "method": str, "seed": int, "config": dict, "cost": dict, "steps": int,
    "tokens": int, "phases": list, "hardware": dict,
}  # fmt: skip


ADDED: dict[str, Any] = {
    "origin": "unknown", "budget": 1.0, "inherited": None, "published": None, "keeps_source": False, "final_val_loss": None,
    "final_val_accuracy": None, "parameters": None, "peak_memory_bytes": None, "versions": {}, "data": {}, "error": None,
}  # fmt: skip


CURVE: dict[str, type | tuple[type, ...]] = {  # of every row
    "step": int, "val_loss": (int, float), "flops": (int, float), "seconds": (int, float), "scored": bool, "phase": str,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A stored run: `record` is its run.json, `curve` the rows of its curve.jsonl in order."""

    folder: Path
    record: dict[str, Any]
    curve: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return name(self.record["method"], self.record["seed"], self.budget)

    @property
    def finished(self) -> bool:
        return bool(self.record["status"] == "finished")

    @property
    def failed(self) -> bool:
        return bool(self.record["status"] == "failed")

    @property
    def budget(self) -> float:
        """The share of the experiment's budget that it trained for."""
        return float(self.record.get("budget", 1.0))

    @property
    def hardware(self) -> tuple[Any, ...]:
        """What two runs must share before their seconds compare."""
        return _decisive(self.record["hardware"])

    def on(self, hardware: Mapping[str, Any]) -> bool:
        """Whether its seconds compare with those of this hardware."""
        return self.hardware == _decisive(hardware)

    def cost(self, unit: str, ledger: str) -> float:
        """All that is charged to it, in FLOPs or seconds; the small model's training in the build ledger, NaN if not known."""
        own = sum(self.record["cost"][unit].get(account, 0.0) for account in CHARGED)
        return own + self.source_cost(unit) if ledger == "build" else own

    def source_cost(self, unit: str) -> float:
        """What the small model's training cost; NaN if that is not known."""
        cost = self.record["cost"][unit].get("source", 0.0)
        return math.nan if cost is None else cost


class RunFolder:
    """Writes one run. One that stopped before its end and had the same `config` is gone on with; another one makes room.

    A finished one, of another configuration, goes to a folder `replaced` beside it.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        begun = self.checkpoints / "config.json"
        try:
            if not (begun.is_file() and _read_json(begun) == plain(config)):
                _make_room(path)
                self.checkpoints.mkdir(parents=True)
                begun.write_text(json.dumps(config), encoding="utf-8")
            self.elsewhere = self._elsewhere(hardware)
            self.curve = CurveFile(path / "curve.jsonl")
        except OSError as error:
            raise UsageError(f"cannot write results to {path}: {error.strerror}; choose another folder with --results") from error

    def close(self, record: dict[str, Any]) -> bool:
        """Write run.json. False, with a line that says why, if that cannot be."""
        if self.elsewhere:
            record["hardware"]["elsewhere"] = self.elsewhere
        try:
            _write(self.path, record)
        except OSError as error:
            say(f"{self.path}: run.json cannot be written: {error.strerror}; the same command goes on with this run")
            return False
        return True

    def _elsewhere(self, hardware: Mapping[str, Any]) -> str:
        """The other hardware on which the run was before, as far as it goes on from there; remembers this one."""
        file = self.checkpoints / "hardware.json"
        before = (_read_json(file) if file.is_file() and any(self.checkpoints.glob("*.safetensors")) else None) or []
        here = ", ".join(f"{key} {value}" for key, value in hardware.items())
        file.write_text(json.dumps([*(machine for machine in before if machine != here), here]), encoding="utf-8")
        return "; ".join(machine for machine in before if machine != here)


def _make_room(path: Path) -> None:
    """Remove a run that did not finish; put one that did aside."""
    stored = load(path)
    if stored and stored.finished:
        aside = path.parent / REPLACED
        aside.mkdir(exist_ok=True)
        numbers = itertools.count(1)
        path.rename(next(free for number in numbers if not (free := aside / f"{path.name}-{number}").exists()))
    elif path.exists():
        shutil.rmtree(path)


def state_source(run: Run, cost: Mapping[str, float | None]) -> None:
    """Write down, by unit, what the training of a stored run's source cost, as far as that is known by now."""
    known = {unit: spent for unit, spent in cost.items() if spent is not None}
    if any(run.record["cost"][unit]["source"] != spent for unit, spent in known.items()):
        for unit, spent in known.items():
            run.record["cost"][unit]["source"] = spent
        _write(run.folder, run.record)


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    """run.json, in full or not at all."""
    draft = folder / "run.json.part"
    draft.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, folder / "run.json")


class CurveFile:
    """curve.jsonl: one line an evaluation. What was appended is on file; what a broken off run left incomplete is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.rows = len(_complete_lines(path))
        self._cut(self.rows)

    def begin_as(self, trunk: Path, rows: int) -> None:
        """Take over another run's first rows, unless there are rows already."""
        if not self.rows:
            self.path.write_text("".join(_complete_lines(trunk)[:rows]), encoding="utf-8")
            self.rows = rows

    def append(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as curve:
            curve.write(json.dumps(row, allow_nan=False) + "\n")
        self.rows += 1

    def __delitem__(self, rows: slice) -> None:
        """Drop all rows from `rows.start` on."""
        if rows.start < self.rows:
            self._cut(rows.start)

    def _cut(self, rows: int) -> None:
        draft = self.path.with_suffix(".part")
        draft.write_text("".join(_complete_lines(self.path)[:rows]), encoding="utf-8")
        os.replace(draft, self.path)
        self.rows = rows


def _complete_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _read_json(path: Path) -> Any:
    """What a file holds; None if that is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None


def name(method: str, seed: int, budget: float = 1.0) -> str:
    """The name of a run's folder. `budget`: its share of the full one."""
    return f"{method}-seed{seed}" + (f"-budget{budget:g}" if budget != 1 else "")


def load(folder: Path) -> Run | None:
    """The run stored in `folder`, or None if it never ended. What cannot be read is left out, and said once."""
    try:
        return _load(folder) if (folder / "run.json").is_file() else None
    except (OSError, ValueError) as error:  # no UTF-8 and no JSON are ValueErrors
        _say_once(f"{folder} is left out: run.json cannot be read: {' '.join(str(error).split())}")
        return None


def _load(folder: Path) -> Run:
    found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("is no run's record")
    record: dict[str, Any] = ADDED | found
    for key, kind in RECORD.items():
        if not isinstance(record.get(key), kind):
            raise ValueError(f"is no run's record: {key} is {'of another kind' if key in record else 'missing'}")
    if (
        not all(isinstance(record["cost"].get(unit), dict) for unit in UNITS)
        or not {"experiment", "method"} <= record["config"].keys()
    ):
        raise ValueError("is no run's record: cost or config is incomplete")
    return Run(folder, record, list(_rows(folder / "curve.jsonl")))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The evaluations on file, up to the first line that is none. Of a run that was broken off, that is the last one."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in CURVE.items()):
            if number < len(lines):
                _say_once(f"{path}, line {number} is no evaluation: it and the {len(lines) - number} after it are left out")
            return
        yield row


@cache
def _say_once(text: str) -> None:
    say(text)


def load_all(folder: Path) -> list[Run]:
    """Every ended run below an experiment's results folder, the sources' runs included, by name."""
    runs = [load(path) for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    return [run for run in runs if run is not None]


def plain(value: Any) -> Any:
    """`value` as it reads back from JSON."""
    return json.loads(json.dumps(value))
