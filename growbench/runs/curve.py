"""curve.jsonl in a run's folder: a line for each evaluation, on disk as soon as it is made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from growbench.config import plain
from growbench.console import say
from growbench.errors import UsageError
from growbench.files import replacing
from growbench.training.checkpoint import digest_of

FILE = "curve.jsonl"

LARGEST = 1e100  # number in a row

NUMBER, NOTHING = (int, float), type(None)
ROW: dict[str, tuple[type, ...]] = {  # what every row holds
    "step": (int,), "val_loss": NUMBER, "flops": NUMBER, "seconds": NUMBER, "scored": (bool,), "phase": (str,),
}  # fmt: skip
MORE: dict[str, tuple[type, ...]] = {  # what it may hold
    "tokens": NUMBER, "train_loss": (*NUMBER, NOTHING), "lr": (*NUMBER, NOTHING), "val_accuracy": (*NUMBER, NOTHING),
}  # fmt: skip
KNOWN = {**ROW, **MORE}


class CurveFile:
    """curve.jsonl: a line for each evaluation. An appended row is on disk at once; an incomplete line is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._fill(_complete_lines(path))

    @property
    def sha256(self) -> str:
        """The digest of the rows as they were written, whatever has become of the file."""
        return self._digest.hexdigest()

    def begin_as(self, trunk: Path, rows: int) -> None:
        """Copy another run's first rows, unless there are as many already."""
        if self.rows < rows:
            self._fill(_complete_lines(trunk)[:rows])

    def append(self, row: Mapping[str, Any]) -> None:
        line = f"{json.dumps(row, allow_nan=False)}\n".encode()
        with self.path.open("ab") as curve:
            curve.write(line)
            curve.flush()
            os.fsync(curve.fileno())  # a checkpoint that counts this row is written after it
        self.rows += 1
        self._digest.update(line)

    def __delitem__(self, rows: slice) -> None:
        """Drop all rows from `rows.start` on. Raises UsageError if rows before it are missing."""
        if rows.start > self.rows:
            wrong = f"{self.path} has {self.rows} evaluations, its run's checkpoint {rows.start}"
            raise UsageError(f"{wrong}: the same command trains the run again")
        if rows.start < self.rows:
            self._fill(_complete_lines(self.path)[: rows.start])

    def _fill(self, lines: list[bytes]) -> None:
        """Replace the file, in full or not at all."""
        with replacing(self.path) as draft:
            draft.write_bytes(b"".join(lines))
        self.rows, self._digest = len(lines), digest_of(line.rstrip(b"\r\n") for line in lines)


def _complete_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def damage(path: Path, rows: int, sha256: str) -> str:
    """What is wrong with a curve that ended with so many rows and this digest; empty if nothing is."""
    if not path.is_file():
        return "is missing"
    lines = path.read_bytes().splitlines()
    if len(lines) != rows:
        return f"is damaged ({len(lines)} evaluations, where run.json counts {rows})"
    return "" if digest_of(lines).hexdigest() == sha256 else "is damaged (sha256 differs)"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of curve.jsonl up to the first invalid line. The last line of an interrupted run may be incomplete."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = plain.from_json(line)
        except ValueError:
            row = None
        if not _is_evaluation(row):
            if number < len(lines):
                say_once(f"{path}, line {number} is not an evaluation: it and the {len(lines) - number} after it are left out")
            return
        yield row


def fault(path: Path) -> str:
    """What is wrong with the first line that is no evaluation, or does not follow the one before; empty if there is none."""
    last: dict[str, Any] | None = None
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = plain.from_json(line)
        except ValueError as error:
            return f"line {number}: {error}"
        if not _is_evaluation(row):
            return f"line {number} is not an evaluation"
        if last is not None and not _follows(row, last):
            return f"line {number}, step {row['step']}, does not follow step {last['step']}"
        last = row
    return ""


def _is_evaluation(row: Any) -> bool:
    """Whether it holds what an evaluation holds: values of the right types, and numbers that a sum of them still can be."""
    if not isinstance(row, dict) or not ROW.keys() <= row.keys():
        return False
    return all(type(value) in KNOWN.get(key, (type(value),)) and _is_moderate(value) for key, value in row.items())


def _is_moderate(value: Any) -> bool:
    return not isinstance(value, (int, float)) or abs(value) <= LARGEST  # false for NaN


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
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
def say_once(text: str) -> None:
    say(text)
