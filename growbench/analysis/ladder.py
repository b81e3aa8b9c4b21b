"""The ladder protocol: several budgets, each with a complete schedule of its own, and what it costs to end at the target loss.

A run that is ahead in the middle of its schedule may have gained nothing by its end. So the losses compared here are final ones,
and the cost of ending at the target lies between two budgets: log cost over final loss, never beyond the budgets that were run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from growbench.analysis.statistics import interval
from growbench.costs.accounts import LEDGERS, UNITS
from growbench.registry import SCRATCH
from growbench.runs.store import Run


def rungs(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: its budget, final loss (NaN: did not finish), costs as `{unit}_{ledger}`, and `spent_{unit}`.

    A run that branches off another one is charged as if alone; it did not spend what it inherited.
    """
    rows = []
    for run in runs:
        row = {"method": run.record["method"], "seed": run.record["seed"], "budget": run.budget, "hardware": run.hardware}
        row["final_val_loss"] = run.record["final_val_loss"] if run.finished else math.nan
        for unit in UNITS:
            row |= {f"{unit}_{ledger}": run.cost(unit, ledger) for ledger in LEDGERS}
            row[f"spent_{unit}"] = run.cost(unit, "reuse") - (run.record.get("inherited") or {}).get(unit, 0.0)
        rows.append(row)
    return pd.DataFrame(rows)


def cost_to_end_at(losses: Sequence[float], costs: Sequence[float], target: float) -> tuple[float, bool]:
    """What it costs to end at the target: (cost, whether it may be less). Final losses and costs by rising budget.

    Between the smallest budget from which on all ended at or below the target, and the one before, which did not: so a lucky
    small budget counts for nothing if a larger one missed. Inf where the largest budget missed. Where all met it, the cost of
    the smallest one, which is only an upper bound.
    """
    missed = [index for index, loss in enumerate(losses) if not loss <= target]
    if not missed:
        return costs[0], True
    above = missed[-1]
    if above == len(losses) - 1:
        return math.inf, False
    if not math.isfinite(losses[above]):
        return costs[above + 1], True
    share = (losses[above] - target) / (losses[above] - losses[above + 1])
    return math.exp(math.log(costs[above]) * (1 - share) + math.log(costs[above + 1]) * share), False


def savings(table: pd.DataFrame, methods: Sequence[str], target: float, given: bool) -> pd.DataFrame:
    """One row a method that has several budgets: its saving over scratch, as `{unit}_saving_{ledger}` with `_low` and `_high`.

    `table`: of `rungs`. The reference is scratch's full budget, or, for a target given by hand, what scratch pays to end there.
    `at_least`: in some seed the smallest budget already met the target. NaN where a seed missed it. Seeds without a reference
    have no part in it.
    """
    rows = []
    for method in methods:
        own = table[table["method"] == method]
        if method != SCRATCH and own["budget"].nunique() < 2:
            continue
        seeds = own["seed"].unique()
        row: dict[str, object] = {"method": method, "seeds": len(seeds), "reached": 0, "at_least": False}
        for unit in UNITS:
            for ledger in LEDGERS:
                costs, values, bounds = _by_seed(table, method, seeds, unit, ledger, target, given)
                if unit == "flops" and ledger == "reuse":
                    row |= {"reached": int(np.isfinite(costs).sum()), "at_least": any(bounds)}
                compared = values[~np.isnan(values)] if np.isfinite(costs).all() else np.array([])
                column = f"{unit}_saving_{ledger}"
                row[column] = compared.mean() if len(compared) else math.nan
                row[f"{column}_low"], row[f"{column}_high"] = interval(compared, most=1)
        rows.append(row)
    return pd.DataFrame(rows)


def _by_seed(
    table: pd.DataFrame, method: str, seeds: np.ndarray, unit: str, ledger: str, target: float, given: bool
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """In each seed the cost to end at the target, the saving (NaN: nothing compares), and whether that is only a bound."""
    paid, values, bounds = [], [], []
    for seed in seeds:
        scratch, own = (
            table[(table["method"] == name) & (table["seed"] == seed)].sort_values("budget") for name in (SCRATCH, method)
        )
        cost, bound = cost_to_end_at(list(own["final_val_loss"]), list(own[f"{unit}_{ledger}"]), target)
        reference = _reference(scratch, unit, ledger, target if given else None)
        if method == SCRATCH and not given:
            cost, bound = reference, False  # by definition scratch meets its own mean loss at its full budget
        foreign = unit == "seconds" and set(own["hardware"]) != set(scratch["hardware"])
        paid.append(cost)
        values.append(math.nan if foreign else 1 - cost / reference)
        bounds.append(bound)
    return np.array(paid), np.array(values), bounds


def _reference(scratch: pd.DataFrame, unit: str, ledger: str, given: float | None) -> float:
    """What a saving is measured against. NaN without a finished scratch run at the full budget, or where that is only a bound."""
    costs, losses = list(scratch[f"{unit}_{ledger}"]), list(scratch["final_val_loss"])
    if not costs or scratch["budget"].iloc[-1] != 1 or not math.isfinite(losses[-1]):
        return math.nan
    if given is None:
        return float(costs[-1])
    cost, bound = cost_to_end_at(losses, costs, given)
    return math.nan if bound else min(float(costs[-1]), cost)
