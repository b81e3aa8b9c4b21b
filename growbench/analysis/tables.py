"""The tables behind a report's figures, from a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import gmean

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison
from growbench.analysis.protocols import Question
from growbench.analysis.selection import first_run, is_scratch
from growbench.costs.accounts import CHARGED, Account, Ledger, Unit
from growbench.registry import SCRATCH
from growbench.runs.store import Run
from growbench.training.records import PhaseRecord

ACCOUNTS = (Account.SOURCE, *CHARGED)


WORK = (Account.TRAIN, Account.OPERATOR, Account.TEACHER, Account.OVERHEAD, Account.OPTIMIZER)  # accounts that a step may have


SAVED = (columns.SAVING, columns.LOW, columns.HIGH)


LEVELS = 80  # loss levels of a savings curve


MEASURES = (columns.VAL_LOSS, columns.VAL_ACCURACY)  # of a curve's rows; accuracy for images only


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain dictionaries of Python's own numbers. Faster than pandas where columns are many."""
    cells = {
        str(name): [cell.item() if isinstance(cell, np.generic) else cell for cell in column] for name, column in table.items()
    }
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def mean_curves(comparison: Comparison) -> pd.DataFrame:
    """The curves: per method one averaged over its finished seeds (loss: mean, low, high), and one per unfinished run.

    Seeds are averaged evaluation by evaluation, over those that all of them have. Of images, accuracy as well as loss.
    """
    groups = [comparison.of(method) for method in comparison.methods]
    groups += [[run] for method in comparison.methods for run in comparison.of(method, finished=False)]
    with_curve = [[run for run in group if run.curve] for group in groups]
    return pd.concat([_mean_curve(group) for group in with_curve if group], ignore_index=True)


def _mean_curve(runs: Sequence[Run]) -> pd.DataFrame:
    rows = pd.concat([pd.DataFrame(run.curve) for run in runs], keys=range(len(runs)), names=["run", None]).reset_index("run")
    rows[Unit.FLOPS] = rows[Unit.FLOPS].astype(float)  # whole numbers above 2^63 are objects to pandas
    rows["place"] = rows.groupby("run")["phase"].transform(lambda phase: phase.ne(phase.shift()).cumsum())
    grouped = rows.groupby(["place", "step"], sort=False)  # a step is evaluated again in the next phase, after growth
    taken = {columns.PHASE: (columns.PHASE, "first"), columns.SCORED: (columns.SCORED, "first")}
    taken |= {str(unit): (str(unit), "mean") for unit in Unit}
    for measure in (measure for measure in MEASURES if measure in rows):
        taken |= {measure: (measure, "mean"), columns.low(measure): (measure, "min"), columns.high(measure): (measure, "max")}
    curve = grouped.agg(**taken)  # type: ignore[call-overload]
    curve = curve[grouped.size() == len(runs)].reset_index().drop(columns="place")
    curve.insert(0, "method", runs[0].record.method)
    curve.insert(1, "seeds", " ".join(str(run.record.seed) for run in runs))
    curve.insert(2, "status", runs[0].record.status)
    return curve


def savings_curve(comparison: Comparison, unit: Unit = Unit.FLOPS) -> pd.DataFrame:
    """The saving over scratch at every loss level that scratch passed, its own cost to that level being the reference.

    Rows (method, ledger, loss, saving, low, high; low and high over the seeds) stand only where both reached the level in
    every seed. Levels run from scratch's loss at 5 % of its budget down to its final loss. Costs are read off the runs' curves
    after isotonic regression; the saving of the means is 1 - the geometric mean of the ratios of costs.
    """
    reading = comparison.single
    levels = _levels(comparison.of(SCRATCH), comparison.target_loss)
    scratch = {seed: [curve.meets(level) for level in levels] for seed, curve in reading.scratch_curves[unit].items()}
    rows: list[tuple[Any, ...]] = []
    for ledger in Ledger:
        for method in comparison.methods:
            seeds = [seed for seed in reading.seeds(method) if seed in scratch]
            if method == SCRATCH or not levels or not seeds or comparison.of(method, finished=False):
                continue
            curves = [reading.curve(method, seed, Question.of(unit, ledger)) for seed in seeds]
            own = np.array([[curve.meets(level) for curve in curves] for level in levels])
            reference = np.array([scratch[seed] for seed in seeds]).T
            reached = (np.isfinite(own) & np.isfinite(reference) & (reference > 0)).all(axis=1)
            if not reached.any():
                continue
            ratios = own[reached] / reference[reached]
            with np.errstate(divide="ignore"):  # a model that is there as it is grown may have cost nothing
                means = gmean(ratios, axis=1)
            passed = np.array(levels)[reached]
            ends = zip(passed, 1 - means, 1 - ratios.max(axis=1), 1 - ratios.min(axis=1), strict=True)
            rows += [(method, ledger, *each) for each in ends]
    return pd.DataFrame(rows, columns=[columns.METHOD, columns.LEDGER, columns.LOSS, *SAVED])


def _levels(scratch: Sequence[Run], last: float) -> list[float]:
    early = [row["val_loss"] for run in scratch for row in run.curve if row["flops"] >= 0.05 * run.cost(Unit.FLOPS, Ledger.REUSE)]
    return list(np.linspace(max(early), last, LEVELS)) if early else []


def cost_breakdown(comparison: Comparison) -> pd.DataFrame:
    """What a whole run cost by account, the mean over a method's finished seeds. Columns: method, unit, account, cost.

    NaN: a source whose cost is not known.
    """
    rows = [
        (method, unit, account, np.mean([run.record.cost.of(unit, account) for run in comparison.of(method)]))
        for unit in comparison.units
        for method in comparison.methods
        if comparison.of(method)
        for account in ACCOUNTS
    ]
    return pd.DataFrame(rows, columns=[columns.METHOD, columns.UNIT, columns.ACCOUNT, columns.COST])


def phases(comparison: Comparison) -> pd.DataFrame:
    """Each method's phases in order, as its first finished seed had them; older runs leave blank what they did not record.

    FLOPs per step in all that is charged, also as a share of scratch's step, and by account (`overhead`: a teacher whose
    outputs count as stored; `optimizer`: its own products, a column only where a run has some).
    """
    firsts = [first_run(comparison.runs, method) for method in comparison.methods]
    reference = _charged_per_step(firsts[0].record.phases[-1]) if is_scratch(firsts[0]) and firsts[0].record.phases else math.nan
    rows = [
        {
            "method": run.record.method,
            "seed": run.record.seed,
            "phase": phase.name,
            "scored": phase.scored,
            "steps": phase.steps,
            "flops_per_step": _charged_per_step(phase),
            "share_of_scratch": _charged_per_step(phase) / reference,
            **{account: phase.flops_per_step.get(account, math.nan) for account in WORK},
            "growth_flops": phase.growth_flops,
        }
        for run in firsts
        for phase in run.record.phases
    ]
    heads = ["method", "seed", "phase", "scored", "steps", "flops_per_step", "share_of_scratch", *WORK]
    table = pd.DataFrame(rows, columns=[*heads, "growth_flops"])
    return table if table[Account.OPTIMIZER].notna().any() else table.drop(columns=Account.OPTIMIZER)


def _charged_per_step(phase: PhaseRecord) -> float:
    spent = phase.flops_per_step
    return float(sum(spent.get(account, 0.0) for account in CHARGED)) if spent else math.nan


GROWTH = ("loss_before", "loss_after", "output_change", "steps_to_recover", "duplicates", "duplicates_end", "optimizer")


def growth(comparison: Comparison) -> pd.DataFrame:
    """What became of each model that a phase took over, from the phase before or the source: one row a finished run and phase.

    Validation loss before and after; `output_change` of the logits on validation data; `steps_to_recover` until the loss is
    as low as before (inf: never); the share of FFN units that are `duplicates` of another after growth and at the phase's end
    (of target-sized models); the optimizer's state, `new` or `kept`. Blank: what older runs did not record.
    """
    rows = [
        {"method": method, "seed": run.record.seed, "phase": phase.name}
        | {key: getattr(phase, key) for key in GROWTH if key != "steps_to_recover"}
        | {"steps_to_recover": steps_to_recover(run, phase)}
        for method in comparison.methods
        for run in comparison.of(method)
        for phase in run.record.phases
        if phase.loss_before is not None or phase.output_change is not None
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "phase", *GROWTH])


def steps_to_recover(run: Run, phase: PhaseRecord) -> float:
    """Steps from a phase's start until a loss as low as that before it; inf if never, NaN if that was not recorded."""
    before, start = phase.loss_before, phase.first_step
    if before is None or phase.loss_after is None:
        return math.nan
    if phase.loss_after <= before:
        return 0
    return next((row["step"] - start for row in run.curve if row["step"] > start and row["val_loss"] <= before), math.inf)


TARGETS = (*range(1, 11), math.inf)  # grown from one source


def amortised(comparison: Comparison) -> pd.DataFrame:
    """The FLOPs saving when `targets` are grown from one source, each paying its share of it: from the build to the reuse value.

    One row a method and number of targets, with the interval. A method has rows where the saving is measured for all numbers.
    """
    rows = []
    for method in (method for method in comparison.methods if method != SCRATCH):
        found = [comparison.single.estimate(method, Question(Unit.FLOPS, 1 / targets)).saving for targets in TARGETS]
        if all(saving.measured for saving in found):
            rows += [(method, targets, each.mean, each.low, each.high) for targets, each in zip(TARGETS, found, strict=True)]
    return pd.DataFrame(rows, columns=[columns.METHOD, columns.TARGETS, *SAVED])


def ladder_curves(comparison: Comparison) -> pd.DataFrame:
    """Final loss against cost over the budgets of the ladder, in either ledger; means over seeds, the loss with low and high."""
    if comparison.rungs.empty:
        return comparison.rungs
    rungs = comparison.rungs.dropna(subset="final_val_loss")
    rows = [
        (method, ledger, budget, costs.mean(skipna=False), losses.mean(), losses.min(), losses.max())
        for ledger in Ledger
        for method in comparison.methods
        for budget, runs in rungs[rungs["method"] == method].groupby("budget")
        for costs, losses in [(runs[columns.cost(Unit.FLOPS, ledger)], runs["final_val_loss"])]
    ]
    heads = [columns.METHOD, columns.LEDGER, "budget", Unit.FLOPS, columns.VAL_LOSS, columns.LOW, columns.HIGH]
    return pd.DataFrame(rows, columns=heads).dropna(subset=Unit.FLOPS)  # of a source whose cost is not known
