"""Runs as the benchmark stores them, with curves whose savings are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from growbench.analysis import tables
from growbench.analysis.comparison import Comparison
from growbench.runs.records import RunRecord
from growbench.runs.store import Run

CPU = {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"}


def curve(*points: tuple[float, float], scored: bool = True) -> list[dict[str, Any]]:
    """Rows from (flops, loss); a FLOP takes two seconds."""
    return [
        {"step": step, "phase": "train", "val_loss": loss, "flops": flops, "seconds": 2 * flops, "scored": scored}
        for step, (flops, loss) in enumerate(points)
    ]


def run(method: str, rows: list[dict[str, Any]], seed: int = 0, source: float | None = 0.0, **changes: Any) -> Run:
    """A finished run whose costs are those of its last row."""
    spent = {unit: {"source": source, "train": rows[-1][unit], "evaluation": 1e9} for unit in ("flops", "seconds")}
    record = {
        "schema_version": 2, "status": "finished", "experiment": "e", "title": "An experiment", "method": method, "seed": seed,
        "config": {"experiment": {"train": {"steps": 10}}, "method": {}}, "cost": spent, "final_val_loss": rows[-1]["val_loss"],
        "steps": 10, "tokens": 2000, "parameters": 100, "hardware": CPU,
        "phases": [{"steps": 10, "median_step_seconds": 0.5}, {"steps": 0, "median_step_seconds": None}],
    }  # fmt: skip
    return Run(Path(f"{method}-seed{seed}"), RunRecord.read(json.dumps({**record, **changes})), rows)


def scratch(seed: int = 0, budget: float = 100.0, final: float = 2.0, **changes: Any) -> Run:
    return run("scratch", curve((0, 6.0), (budget, final)), seed, **changes)


def row(comparison: Comparison, method: str) -> dict[str, Any]:
    return next(row for row in tables.records(comparison.savings) if row["method"] == method)


def straight(method: str, cost: float, seed: int = 0, end: float = 120.0, **changes: Any) -> Run:
    """A run whose loss falls from 6 in a straight line that passes 2.0 at `cost`, until `end`."""
    return run(method, curve((0, 6.0), (end, 6.0 - 4.0 * end / cost)), seed, **changes)
