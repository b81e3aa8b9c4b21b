"""The ladder protocol: several budgets, each with a complete schedule of its own, and what it costs to end at the target loss.

A run that is ahead in the middle of its schedule may have gained nothing by its end. So the losses compared here are final ones,
and the cost of ending at the target lies between two budgets: log cost over final loss, never beyond the budgets that were run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from growbench.analysis import columns
from growbench.analysis.columns import Saving
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


@dataclass(frozen=True)
class CostToEnd:
    """What it costs to end at a loss; inf if no budget does."""

    cost: float
    at_most: bool = False  # it may cost less: the smallest budget already did, or the one below did not finish


def cost_to_end_at(losses: Sequence[float], costs: Sequence[float], target: float) -> CostToEnd:
    """What it costs to end at the target loss. Final losses and costs by rising budget.

    Between the smallest budget from which on all ended at or below the target, and the one before, which did not: so a lucky
    small budget counts for nothing if a larger one missed. Inf where the largest budget missed. Where all met it, the cost of
    the smallest one, which is only an upper bound.
    """
    missed = [index for index, loss in enumerate(losses) if not loss <= target]
    if not missed:
        return CostToEnd(costs[0], at_most=True)
    above = missed[-1]
    if above == len(losses) - 1:
        return CostToEnd(math.inf)
    if not math.isfinite(losses[above]):
        return CostToEnd(costs[above + 1], at_most=True)
    share = (losses[above] - target) / (losses[above] - losses[above + 1])
    return CostToEnd(math.exp(math.log(costs[above]) * (1 - share) + math.log(costs[above + 1]) * share))


@dataclass(frozen=True)
class Goal:
    """A final loss, and in what it is counted what runs pay to end there."""

    unit: Unit
    ledger: Ledger
    loss: float
    given: bool  # by hand; otherwise the mean final loss of scratch


@dataclass(frozen=True)
class SeedSaving:
    """One seed of a method: what it costs to end at the goal, and what that saves over scratch (NaN: nothing compares)."""

    paid: CostToEnd
    saving: float


def savings(table: pd.DataFrame, methods: Sequence[str], target: float, given: bool) -> pd.DataFrame:
    """One row a method that has several budgets: its saving over scratch in each unit and ledger, with its interval.

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
        row: dict[str, Any] = {"method": method, "seeds": len(seeds), "reached": 0, "at_least": False}
        for unit in Unit:
            for ledger in Ledger:
                found = [_in_seed(table, method, seed, Goal(unit, ledger, target, given)) for seed in seeds]
                reached = [math.isfinite(each.paid.cost) for each in found]
                if (unit, ledger) == (Unit.FLOPS, Ledger.REUSE):
                    row |= {"reached": sum(reached), "at_least": any(each.paid.at_most for each in found)}
                compared = [each.saving for each in found if all(reached) and not math.isnan(each.saving)]
                row |= Saving.over(compared).row(unit, ledger)
        rows.append(row)
    return pd.DataFrame(rows)


def _in_seed(table: pd.DataFrame, method: str, seed: int, goal: Goal) -> SeedSaving:
    scratch, own = (
        table[(table["method"] == name) & (table["seed"] == seed)].sort_values("budget") for name in (SCRATCH, method)
    )
    paid = cost_to_end_at(list(own["final_val_loss"]), list(own[columns.cost(goal.unit, goal.ledger)]), goal.loss)
    reference = _reference(scratch, goal)
    if method == SCRATCH and not goal.given:
        paid = CostToEnd(reference)  # by definition scratch meets its own mean loss at its full budget
    foreign = goal.unit == Unit.SECONDS and set(own["hardware"]) != set(scratch["hardware"])
    return SeedSaving(paid, math.nan if foreign else 1 - paid.cost / reference)


def _reference(scratch: pd.DataFrame, goal: Goal) -> float:
    """What a saving is measured against. NaN without a finished scratch run at the full budget, or where that is only a bound."""
    costs, losses = list(scratch[columns.cost(goal.unit, goal.ledger)]), list(scratch["final_val_loss"])
    if not costs or scratch["budget"].iloc[-1] != 1 or not math.isfinite(losses[-1]):
        return math.nan
    if not goal.given:
        return float(costs[-1])
    paid = cost_to_end_at(losses, costs, goal.loss)
    return math.nan if paid.at_most else min(float(costs[-1]), paid.cost)
