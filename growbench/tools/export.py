"""Stored runs for other people's tools: trackers, or one CSV table of all curves."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from growbench.errors import UsageError
from growbench.report import sheets
from growbench.runs import store
from growbench.runs.store import Run
from growbench.runs.trackers import TRACKERS, Tracked, values_of

CSV = "csv"
TARGETS = (*TRACKERS, CSV)


def check(kind: str) -> None:
    """Raise UsageError if a tracker's package is not installed."""
    package = kind if kind != "tensorboard" else "tensorboard.summary"
    try:
        found = importlib.util.find_spec(package)
    except ImportError:
        found = None
    if found is None:
        raise UsageError(f"{kind} is not installed: pip install {kind}")


def export(folder: Path, kind: str, out: Path | None) -> str:
    """Give all runs in an experiment's folder to a tracker, or write their curves to a file. Says where they are.

    Raises UsageError if there are no runs, or the tracker is not installed.
    """
    runs = [run for run in store.load_all(folder) if run.curve]
    if not runs:
        raise UsageError(f"no run with a loss curve in {folder}: give one experiment's folder, as in results/gpt2-tiny")
    if kind == CSV:
        return _table(runs, out or folder / "curves.csv")
    check(kind)
    for run in runs:
        tracker = TRACKERS[kind](tracked(run))
        for row in run.curve:
            tracker.log(row["step"], values_of(row))
        tracker.finish()
    return f"{len(runs)} runs given to {kind}, as project {runs[0].record.experiment}"


def tracked(run: Run) -> Tracked:
    """A stored run as trackers name it."""
    record = run.record
    return Tracked(record.experiment, record.method, run.name, str(run.folder.parent), asdict(record.config))


def _table(runs: Sequence[Run], file: Path) -> str:
    rows = [
        {"run": run.name, "method": record.method, "seed": record.seed, "budget_share": record.budget_share, **row}
        for run in runs
        for record in [run.record]
        for row in run.curve
    ]
    try:
        sheets.write(pd.DataFrame(rows), file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    return f"{len(rows)} evaluations of {len(runs)} runs: {file}"
