"""The store: one folder a run, `curve.jsonl` growing line by line, `run.json` written last and by rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growbench.config import UsageError

SOURCE = "source"  # the small model's own run, kept beside the methods' runs; no method may have this name
CHARGED = ("growth", "operator", "teacher", "train")  # accounts of the reuse ledger; the build ledger adds `source`
UNCHARGED = ("evaluation", "overhead")


@dataclass(frozen=True)
class Run:
    """A stored run: `record` is its run.json, `curve` the rows of its curve.jsonl in order."""

    folder: Path
    record: dict[str, Any]
    curve: list[dict[str, Any]]


class RunFolder:
    """Writes one run. A run without run.json never ended; opening its folder again starts it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
            (path / "curve.jsonl").touch()
        except OSError as error:
            raise UsageError(f"cannot write results to {path}: {error.strerror}; choose another folder with --results") from error

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one evaluation to curve.jsonl; it is on file when this returns."""
        with (self.path / "curve.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(json.dumps(row, allow_nan=False) + "\n")

    def close(self, record: Mapping[str, Any]) -> None:
        """Write run.json, in full or not at all."""
        draft = self.path / "run.json.part"
        draft.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(draft, self.path / "run.json")


def name(method: str, seed: int) -> str:
    """The name of a run's folder."""
    return f"{method}-seed{seed}"


def load(folder: Path) -> Run | None:
    """The run stored in `folder`, or None if it never ended. A line cut off at the curve's end is left out."""
    record_file = folder / "run.json"
    if not record_file.is_file():
        return None
    record = json.loads(record_file.read_text(encoding="utf-8"))
    curve = []
    for line in (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            curve.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return Run(folder, record, curve)


def load_all(folder: Path) -> list[Run]:
    """Every ended run below an experiment's results folder, the sources' runs included, by name."""
    runs = [load(path) for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    return [run for run in runs if run is not None]


def plain(value: Any) -> Any:
    """`value` as it reads back from JSON."""
    return json.loads(json.dumps(value))
