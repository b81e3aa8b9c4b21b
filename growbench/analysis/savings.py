"""What each method saves over scratch, by unit and ledger, with intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from growbench.analysis import columns
from growbench.analysis.columns import Saving
from growbench.analysis.crossing import cost_to_loss, cost_to_target, reference_cost
from growbench.analysis.selection import is_scratch
from growbench.analysis.statistics import holm, paired_p
from growbench.config.schema import Published
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.runs.store import Run

REACHED = columns.cost(Unit.FLOPS, Ledger.REUSE)  # finite where a run reached the target


def nominal_seconds(run: Run) -> float:
    """Steps x median step time, summed over the phases: wall time without a noisy machine's outliers."""
    return sum(phase.steps * (phase.median_step_seconds or 0.0) for phase in run.record.phases)


def tokens_per_parameter(run: Run) -> float:
    """Training tokens per parameter of the target; NaN for a run that did not finish, or does not say how many it has."""
    record = run.record
    return record.tokens / record.parameters if run.finished and record.parameters else math.nan


def outcomes(runs: Iterable[Run], target: float, target_given: bool) -> pd.DataFrame:
    """One row a run: its cost to target in each unit and ledger (inf: not reached), and its saving (NaN: none)."""
    runs = list(runs)
    scratch = {run.record.seed: run for run in runs if is_scratch(run) and run.finished}
    given = target if target_given else None
    return pd.DataFrame([_outcome(run, scratch.get(run.record.seed), target, given) for run in runs])


def _outcome(run: Run, scratch: Run | None, target: float, given: float | None) -> dict[str, Any]:
    record = run.record
    row: dict[str, Any] = {"method": record.method, "seed": record.seed, "status": record.status}
    row["final_val_loss"] = record.final_val_loss
    if record.final_val_accuracy is not None:
        row["final_val_accuracy"] = record.final_val_accuracy
    row |= {"nominal_seconds": nominal_seconds(run), "tokens_per_parameter": tokens_per_parameter(run)}
    for unit in Unit:
        for ledger in Ledger:
            reference = reference_cost(scratch, unit, ledger, given) if scratch else math.nan
            # By definition scratch meets its own mean loss at the end of its budget, in every seed.
            cost = reference if run is scratch and given is None else cost_to_target(run, target, unit, ledger)
            row[columns.cost(unit, ledger)] = cost
            row[columns.saving(unit, ledger)] = _saving(run, scratch, unit, cost, reference)
    row[columns.PAPER_SAVING] = _paper_saving(run, scratch, target, given)
    return row


def _paper_saving(run: Run, scratch: Run | None, target: float, given: float | None) -> float:
    """The saving with the source free, in the counter of LiGO's paper; NaN if there is none, or the counter knows too little."""
    until = cost_to_loss(run.curve, target, "step") if run.finished else math.inf
    if run is scratch or scratch is None or math.isinf(until):
        return math.nan
    whole = math.inf if given is None else cost_to_loss(scratch.curve, given, "step")
    reference = paper_flops(scratch, whole)
    return 1 - paper_flops(run, until) / reference if reference > 0 else math.nan


def paper_flops(run: Run, steps: float) -> float:
    """A run's first steps in the counter of LiGO's paper; NaN where it knows one of their phases not, as those of images."""
    total, left = 0.0, steps
    for phase in run.record.phases:
        each = phase.paper_flops_per_step
        if left > 0:
            total += min(phase.steps, left) * (math.nan if each is None else each)
            left -= phase.steps
    return total


def _saving(run: Run, scratch: Run | None, unit: Unit, cost: float, reference: float) -> float:
    """1 - cost / reference; 0 for the reference itself; NaN if not reached, not paired, or timed on other hardware."""
    if run is scratch:
        return 0.0
    if scratch is None or math.isinf(cost) or reference <= 0:
        return math.nan
    foreign = unit == Unit.SECONDS and run.record.hardware != scratch.record.hardware
    return math.nan if foreign else 1 - cost / reference


def published(runs: Iterable[Run]) -> dict[str, Published]:
    """By method, the paper's savings."""
    return {run.record.method: run.record.published for run in runs if run.record.published}


def savings(table: pd.DataFrame, methods: Sequence[str], target: float, claims: Mapping[str, Published]) -> pd.DataFrame:
    """One row a method: seeds, how many reached the target, mean savings with intervals, the paper's claims; all as shares.

    A method that missed the target in any seed has no saving (NaN): an average over the lucky seeds would flatter it.
    """
    rows = {method: table[table["method"] == method] for method in methods}
    return pd.DataFrame([_method_row(rows[method], method, target, claims.get(method, Published())) for method in methods])


def _method_row(table: pd.DataFrame, method: str, target: float, claim: Published) -> dict[str, Any]:
    reached = int(np.isfinite(table[REACHED]).sum())
    row: dict[str, Any] = {"method": method, "seeds": len(table), "reached": reached, "target_loss": target}
    for unit in Unit:
        for ledger in Ledger:
            row |= Saving.over(_by_seed(table, unit, ledger).to_numpy()).row(unit, ledger)
    for unit in Unit:
        percent = getattr(claim, unit)
        row[columns.published_saving(unit)] = math.nan if percent is None else percent / 100
    row[columns.PAPER_SAVING] = table[columns.PAPER_SAVING].mean() if reached == len(table) else math.nan
    for unit in Unit:
        for ledger in Ledger:
            costs = table[columns.cost(unit, ledger)]  # inf once a seed missed, NaN once the cost of a source is not known
            row[columns.cost_to_target(unit, ledger)] = costs.mean() if reached < len(table) else costs.mean(skipna=False)
    for column in table.columns.intersection(["final_val_loss", "final_val_accuracy", "nominal_seconds", "tokens_per_parameter"]):
        row[column] = table.loc[table["status"] == "finished", column].astype(float).mean()
    return row


def _by_seed(table: pd.DataFrame, unit: Unit, ledger: Ledger) -> pd.Series:
    """The savings of one method in each seed; none where it missed the target in any, unless it is scratch.

    None either where the cost of any seed's source is not known.
    """
    counts = np.isfinite(table[REACHED]).all() or (table["method"] == SCRATCH).all()
    counts = counts and table[columns.cost(unit, ledger)].notna().all()
    return table.set_index("seed")[columns.saving(unit, ledger)].dropna() if counts else pd.Series(dtype=float)


def p_values(table: pd.DataFrame, methods: Sequence[str], rivals: Sequence[str]) -> pd.DataFrame:
    """By method, p-values of its saving in FLOPs, paired by seed: that it is 0, and that it is its best rival's.

    Two-sided, Holm-corrected over the methods. The best rival is the other method of `rivals` that saves most on average. NaN
    for scratch, with fewer than two seeds, and where a seed missed the target.
    """
    tested = [method for method in methods if method != SCRATCH]
    found = pd.DataFrame(index=list(methods))
    for ledger in Ledger:
        saved = {method: _by_seed(table[table["method"] == method], Unit.FLOPS, ledger) for method in tested}
        ahead = {method: _over_best_rival(method, saved, rivals) for method in tested}
        for against, differences in (("scratch", saved), ("best", ahead)):
            p = holm([paired_p(differences[method].to_numpy()) for method in tested])
            found[columns.p_value(against, ledger)] = pd.Series(p, tested)
    return found


def _over_best_rival(method: str, saved: Mapping[str, pd.Series], rivals: Sequence[str]) -> pd.Series:
    """In each seed, how much more a method saves than the best of the other `rivals`; empty if none shares two seeds with it."""
    ahead = [(saved[method] - saved[rival]).dropna() for rival in rivals if rival != method]
    return min((each for each in ahead if len(each) > 1), key=pd.Series.mean, default=pd.Series(dtype=float))
