"""Equal cost: a method's final loss against that of scratch with a complete schedule of its own at the method's total cost.

A saving asks what a method pays for scratch's final loss. Here the cost is fixed: what would the same FLOPs have bought without
growth? Scratch's loss is that of its run at this cost. On a ladder it is interpolated between its budgets, in each seed, as the
estimator does it. It is never extrapolated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import numpy as np
import pandas as pd
from scipy import stats

from growbench.analysis import columns
from growbench.analysis.estimator import NO_SPREAD, ONE_SEED, ROUNDING, Curve, Verdict
from growbench.analysis.selection import is_scratch
from growbench.analysis.statistics import LEVEL, families, holm
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import difference
from growbench.registry import SCRATCH
from growbench.runs.store import Run


class Outcome(StrEnum):
    """What a test says of the difference in loss at equal cost."""

    LOWER = "lower"  # the method ends lower than scratch
    HIGHER = "higher"
    EVEN = "not told apart from scratch"
    NONE = "no verdict"


@dataclass(frozen=True)
class Rung:
    """A scratch run with a complete schedule: its FLOPs and its final loss (nats)."""

    flops: float
    loss: float


class Scratch:
    """One seed's scratch runs: final loss over FLOPs. `runs`: at least one, finished, with complete schedules."""

    def __init__(self, runs: Iterable[Run]) -> None:
        runs = sorted(runs, key=_flops)
        self.rungs = [Rung(_flops(run), run.final_loss) for run in runs]
        nearest = min(runs, key=lambda run: abs(run.record.budget_share - 1))
        self.step = _flops(nearest) / nearest.record.steps
        self.full = _flops(nearest) / nearest.record.budget_share

    def loss_at(self, flops: float) -> float:
        """The loss of the run that costs as much, up to one step; or between two runs. NaN beyond the runs."""
        nearest = min(self.rungs, key=lambda rung: abs(rung.flops - flops))
        if abs(nearest.flops - flops) <= self.step:
            return nearest.loss
        if not self.rungs[0].flops < flops < self.rungs[-1].flops:
            return math.nan
        return Curve.of_ladder([rung.flops for rung in self.rungs], [rung.loss for rung in self.rungs]).at(flops)


@dataclass(frozen=True)
class Pair:
    """One seed of a method beside scratch at the same cost. `scratch`: NaN where that is not known."""

    budget: float  # what the method costs, in full budgets of scratch
    method: float  # final loss
    scratch: float


@dataclass(frozen=True)
class EqualCost:
    """The difference between a method's final loss and scratch's at the same cost: means over seeds, and a 95 % interval."""

    method: str
    ledger: Ledger
    seeds: int = 0  # those whose difference is known
    budget: float = math.nan  # the method's cost, in full budgets of scratch
    final_val_loss: float = math.nan
    scratch_loss: float = math.nan
    difference: float = math.nan  # below 0: the method ends lower
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan  # of a two-sided paired t-test of no difference
    p_holm: float = math.nan  # the same, corrected for the number of methods
    verdict: Outcome = Outcome.NONE
    note: str = ""  # why something is missing

    @property
    def known(self) -> bool:
        return not math.isnan(self.difference)

    def missing(self, why: str) -> EqualCost:
        return replace(self, note=f"not known: {why}")

    def over(self, pairs: Sequence[Pair]) -> EqualCost:
        """With the figures of seeds, at least one."""
        known = [pair for pair in pairs if not math.isnan(pair.scratch)]
        found = replace(
            self,
            budget=statistics.fmean(pair.budget for pair in known or pairs),
            final_val_loss=statistics.fmean(pair.method for pair in known or pairs),
        )
        if not known:
            return found.missing(f"scratch has no run at {found.budget:.3g} of its budget")
        differences = np.array([pair.method - pair.scratch for pair in known])
        found = replace(
            found,
            seeds=len(known),
            scratch_loss=statistics.fmean(pair.scratch for pair in known),
            difference=float(differences.mean()),
            note=f"over {len(known)} of {len(pairs)} seeds: scratch has no run at the others' cost"
            if len(known) < len(pairs)
            else "",
        )
        if len(known) == 1:
            return replace(found, note="; ".join(filter(None, [found.note, f"no interval: {ONE_SEED}"])))
        if np.ptp(differences) <= ROUNDING * max(abs(pair.scratch) for pair in known):  # a t statistic would be x / 0
            return replace(found, note="; ".join(filter(None, [found.note, f"no interval: {NO_SPREAD}"])))
        test = stats.ttest_1samp(differences, 0)
        low, high = test.confidence_interval(1 - LEVEL)
        return replace(found, low=float(low), high=float(high), p=float(test.pvalue))


def at_equal_cost(runs: Sequence[Run], controls: Collection[str] = ()) -> list[EqualCost]:
    """Every method in either ledger, of runs of one experiment at all their budgets, by method.

    In each ledger the growth methods are one family of tests, and the `controls` another.
    """
    methods = sorted({run.record.method for run in runs if run.record.budget_share == 1} - {SCRATCH})
    found = {}
    for ledger in Ledger:
        for family in families(methods, controls):
            for judged in _judged([_compared(runs, method, ledger) for method in family]):
                found[judged.method, ledger] = judged
    return [found[method, ledger] for method in methods for ledger in Ledger]


def _judged(family: Sequence[EqualCost]) -> list[EqualCost]:
    """With the p-values corrected by Holm's procedure, and what they say."""
    corrected = map(float, holm([each.p for each in family]))
    return [replace(each, p_holm=p, verdict=_verdict(each.difference, p)) for each, p in zip(family, corrected, strict=True)]


def _verdict(difference: float, p: float) -> Outcome:
    if math.isnan(p):
        return Outcome.NONE
    return Outcome.EVEN if p >= LEVEL else Outcome.LOWER if difference < 0 else Outcome.HIGHER


def _compared(runs: Sequence[Run], method: str, ledger: Ledger) -> EqualCost:
    """A method's runs at the full budget against scratch. Seeds without a finished scratch run have no part in it."""
    found = EqualCost(method, ledger)
    own = [run for run in runs if run.record.method == method and run.record.budget_share == 1]
    scratch = {seed: Scratch(rungs) for seed, rungs in _scratch_by_seed(runs).items()}
    paired = [run for run in own if run.record.seed in scratch]
    broken = ", ".join(run.name for run in own if not run.finished)
    if broken:
        return found.missing(f"{broken} did not finish")
    if any(map(_stops_early, own)):
        return found.missing("runs that end at the target do not complete their schedules")
    if not paired:
        return found.missing("no finished scratch run has the same seed")
    if any(math.isnan(run.cost(Unit.FLOPS, ledger)) for run in paired):
        return found.missing("what its source cost is unknown")
    return found.over([_pair(run, scratch[run.record.seed], ledger) for run in paired])


def _pair(run: Run, scratch: Scratch, ledger: Ledger) -> Pair:
    flops = run.cost(Unit.FLOPS, ledger)
    return Pair(flops / scratch.full, run.final_loss, scratch.loss_at(flops))


def _scratch_by_seed(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """The scratch runs with complete schedules, at whatever budgets."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        if is_scratch(run) and run.finished and not _stops_early(run):
            found.setdefault(run.record.seed, []).append(run)
    return found


def _stops_early(run: Run) -> bool:
    return run.record.config.stop_at_loss is not None


def _flops(run: Run) -> float:
    return run.cost(Unit.FLOPS, Ledger.REUSE)


def table(found: Iterable[EqualCost]) -> pd.DataFrame:
    """One row a method and ledger: the columns of equal_cost.csv."""
    return pd.DataFrame(map(vars, found), columns=[field.name for field in fields(EqualCost)])


SAME_FLOPS = "scratch with a complete schedule at the same total cost"


def notes(found: Iterable[EqualCost], savings: pd.DataFrame) -> list[str]:
    """One sentence for each method and ledger in which equal cost does not bear out what is said of the saving.

    `savings`: one row a method, with the verdicts on the FLOPs that it saves.
    """
    verdicts = savings.set_index("method")
    said = [(each, _contradiction(each, verdicts[columns.verdict(each.ledger)].get(each.method))) for each in found]
    return [f"{each.method} ({each.ledger}) {sentence}" for each, sentence in said if sentence]


def _contradiction(found: EqualCost, saving: str | None) -> str:
    """Blank where there is none. `saving`: None of a method that the savings do not hold."""
    figures = f"difference in loss {difference(found.difference, found.low, found.high)}"
    if saving == Verdict.SAVES and found.verdict == Outcome.HIGHER:
        return f"meets scratch's loss with fewer FLOPs, but {SAME_FLOPS} ends lower: {figures}."
    if saving == Verdict.SAVES and found.verdict == Outcome.EVEN:
        return f"meets scratch's loss with fewer FLOPs, but is not told apart from {SAME_FLOPS}: {figures}."
    if saving == Verdict.COSTS_MORE and found.verdict == Outcome.LOWER:
        return f"needs more FLOPs to meet scratch's loss, but ends lower than {SAME_FLOPS}: {figures}."
    if saving in (Verdict.EVEN, Verdict.WORSE) and found.verdict == Outcome.LOWER:
        return f"is not shown to meet scratch's loss with fewer FLOPs, but ends lower than {SAME_FLOPS}: {figures}."
    return ""
