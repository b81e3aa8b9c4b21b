"""The runs of a ladder: several budgets, each with a complete schedule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from growbench.analysis import columns
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.runs.store import Run


def rungs(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: its share of the budget, final loss (NaN: did not finish), what it is charged, and what it spent.

    A run that branches off another one is charged as if alone; it did not spend what it inherited.
    """
    rows = []
    for run in runs:
        record = run.record
        row: dict[str, Any] = {"method": record.method, "seed": record.seed, "budget": record.budget_share}
        row |= {"hardware": record.hardware, "final_val_loss": run.final_loss}
        for unit in Unit:
            row |= {columns.cost(unit, ledger): run.cost(unit, ledger) for ledger in Ledger}
            inherited = record.inherited.of(unit) if record.inherited else None
            row[columns.spent(unit)] = run.cost(unit, Ledger.REUSE) - (inherited or 0.0)
        rows.append(row)
    return pd.DataFrame(rows)


def climbers(table: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """Scratch and the methods that have several budgets; none if no method but scratch has. `table`: of `rungs`."""
    budgets = table.groupby("method")["budget"].nunique()
    several = [method for method in methods if method == SCRATCH or budgets[method] > 1]
    return several if set(several) - {SCRATCH} else []
