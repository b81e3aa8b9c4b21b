"""Two ways to read stored runs: from one run's curve, or from the final losses of a ladder of budgets. Both give curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from growbench.analysis.estimator import NO_COMMON_COST, Curve, Estimate, Relation, Saving, at_least, estimate
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.runs.store import Run

NO_SCRATCH = "no seed in common with a finished scratch run"
NO_SECONDS = "no seconds that compare"
UNKNOWN_SOURCE = "the cost of the source is not known"
NO_REFERENCE = "scratch meets the target loss at its smallest cost already"


class Protocol(StrEnum):
    """What a saving is read off."""

    SINGLE = "single"  # the curve of one run a seed, at the full budget
    LADDER = "ladder"  # the final losses of several runs a seed, each with a budget and a complete schedule of its own


SOURCE_SHARES = {Ledger.REUSE: 0.0, Ledger.BUILD: 1.0}


@dataclass(frozen=True)
class Question:
    """In what costs are counted: the unit, and the share of the source's training that is charged."""

    unit: Unit
    source_share: float

    @classmethod
    def of(cls, unit: Unit, ledger: Ledger) -> Question:
        return cls(unit, SOURCE_SHARES[ledger])

    def source_cost(self, run: Run) -> float:
        """What is charged for the run's source. NaN if that is not known."""
        return self.source_share * run.source_cost(self.unit) if self.source_share else 0.0

    def cost(self, run: Run) -> float:
        """What is charged for a whole run."""
        return run.cost(self.unit, Ledger.REUSE) + self.source_cost(run)


@dataclass(frozen=True)
class Reference:
    """What one seed of a method is compared with: a cost of scratch with the same seed, and its loss there (nats).

    `met`: False where scratch never meets this loss, which was given by hand; the cost is then all that it spent.
    """

    cost: float
    loss: float
    met: bool = True


@dataclass(frozen=True)
class Pair:
    """One seed of a method: its curve, and what it is compared with."""

    seed: int
    curve: Curve
    scratch: Reference

    @property
    def own_saving(self) -> Saving:
        """What this seed saves by itself."""
        return over_scratch([self]).saving


def over_scratch(pairs: Sequence[Pair]) -> Estimate:
    """What a method saves. `pairs`: of its seeds, at least one."""
    found = estimate([p.curve for p in pairs], [p.scratch.loss for p in pairs], [p.scratch.cost for p in pairs])
    return found if all(p.scratch.met for p in pairs) else at_least(found)


def scored_rows(run: Run) -> list[dict[str, Any]]:
    """The evaluations of a run whose losses count: those after the last one that does not."""
    unscored = [place for place, row in enumerate(run.curve) if not row["scored"]]
    return run.curve[unscored[-1] + 1 if unscored else 0 :]


class Reading:
    """The runs of one experiment, read by one protocol. `target_loss`: given by hand (nats); None: each seed's scratch's own."""

    def __init__(self, protocol: Protocol, runs: Sequence[Run], target_loss: float | None = None) -> None:
        self.protocol, self.runs, self.target_loss = protocol, runs, target_loss
        self.groups: dict[tuple[str, int], list[Run]] = {}  # of each method and seed, by rising budget
        for run in sorted(runs, key=lambda run: run.record.budget_share):
            if run.record.budget_share <= 1 or run.finished:
                self.groups.setdefault((run.record.method, run.record.seed), []).append(run)

    def seeds(self, method: str) -> list[int]:
        return sorted(seed for name, seed in self.groups if name == method)

    def whole(self, method: str, seed: int) -> Run | None:
        """The run at the full budget; None if there is none, or it did not finish."""
        runs = (run for run in self.groups[method, seed] if run.record.budget_share == 1 and run.finished)
        return next(runs, None)

    def finished(self, method: str) -> list[int]:
        """The seeds that finished at the full budget."""
        return [seed for seed in self.seeds(method) if self.whole(method, seed)]

    def without(self, seeds: Sequence[int]) -> Reading:
        """The same runs, but for some seeds."""
        return Reading(self.protocol, [run for run in self.runs if run.record.seed not in seeds], self.target_loss)

    def budgets(self, method: str, seed: int) -> list[float]:
        """The budgets that count on the ladder, rising: above the last one that did not finish."""
        runs = self.groups[method, seed]
        failed = [place for place, run in enumerate(runs) if not run.finished]
        return [run.record.budget_share for run in runs[failed[-1] + 1 if failed else 0 :]]

    def curve(self, method: str, seed: int, question: Question) -> Curve:
        """Loss over what is charged. Empty where no loss counts, or the costs are not known."""
        group = self.groups[method, seed]
        if any(math.isnan(question.cost(run)) for run in group):
            return Curve.of_run([], [])
        if self.protocol == Protocol.LADDER:
            return Curve.of_ladder([question.cost(run) for run in group], [run.final_loss for run in group])
        (run,) = group
        rows, source = scored_rows(run), question.source_cost(run)
        return Curve.of_run([source + row[question.unit] for row in rows], [row["val_loss"] for row in rows])

    @cached_property
    def scratch_curves(self) -> dict[Unit, dict[int, Curve]]:
        """Scratch's by unit and seed, of the seeds that finished at the full budget."""
        seeds = self.finished(SCRATCH)
        curves = {unit: {seed: self.curve(SCRATCH, seed, Question(unit, 0.0)) for seed in seeds} for unit in Unit}
        return {unit: {seed: curve for seed, curve in found.items() if len(curve)} for unit, found in curves.items()}

    def full_cost(self, seed: int, unit: Unit) -> float:
        """What scratch's whole run costs at the full budget; NaN without one."""
        run = self.whole(SCRATCH, seed)
        return run.cost(unit, Ledger.REUSE) if run else math.nan

    def scratch_saving(self, unit: Unit) -> Saving:
        """What scratch has left of its full cost where its mean loss meets the target: 0 without a target given by hand.

        BELOW 0 if it never meets it, ABOVE what is given if it does at its smallest cost already.
        """
        curves = self.scratch_curves[unit]
        if self.target_loss is None or not curves:
            return Saving(0.0)
        return estimate(list(curves.values()), self.target_loss, [self.full_cost(seed, unit) for seed in curves]).saving

    @cached_property
    def references(self) -> dict[Unit, dict[int, Reference]]:
        """By unit and seed what methods are compared with. None where scratch meets the target at its smallest cost already."""
        return {unit: self._references(unit) for unit in Unit}

    def _references(self, unit: Unit) -> dict[int, Reference]:
        saving, curves = self.scratch_saving(unit), self.scratch_curves[unit]
        if saving.relation == Relation.ABOVE:
            return {}
        if saving.relation == Relation.BELOW and self.target_loss is not None:  # savings are then lower bounds
            return {seed: Reference(self.full_cost(seed, unit), self.target_loss, met=False) for seed in curves}
        costs = {seed: (1 - saving.mean) * self.full_cost(seed, unit) for seed in curves}
        return {seed: Reference(costs[seed], curve.at(costs[seed])) for seed, curve in curves.items()}

    def loss_to_meet(self, seed: int) -> float | None:
        """A target given by hand, or the final loss of scratch with the same seed; None if there is neither."""
        reference = self.references[Unit.FLOPS].get(seed)
        return reference.loss if reference else self.target_loss

    def mean_reference(self, unit: Unit) -> float:
        """The mean over seeds of the cost at which methods are compared with scratch."""
        costs = [reference.cost for reference in self.references[unit].values()]
        return math.fsum(costs) / len(costs) if costs else math.nan

    def pairs(self, method: str, question: Question) -> list[Pair]:
        """The seeds that finished and have a reference. In seconds only those that have seconds which compare."""
        references = self.references[question.unit]
        return [
            Pair(seed, self.curve(method, seed, question), references[seed])
            for seed in self.finished(method)
            if seed in references
            and not any(math.isnan(run.cost(question.unit, Ledger.REUSE)) for run in self.groups[method, seed])
        ]

    def estimate(self, method: str, question: Question) -> Estimate:
        """What a method saves. No estimate, with the reason, where a seed did not finish or nothing compares."""
        seeds, finished = self.seeds(method), self.finished(method)
        pairs = self.pairs(method, question)
        if len(finished) < len(seeds):
            return Estimate(untested=f"did not finish in {len(seeds) - len(finished)} of {len(seeds)} seeds")
        if not pairs:
            return Estimate(untested=self._why_no_pairs(method, question.unit))
        if any(math.isnan(question.source_cost(run)) for pair in pairs for run in self.groups[method, pair.seed]):
            return Estimate(untested=UNKNOWN_SOURCE)
        if not all(len(pair.curve) for pair in pairs):
            return Estimate(untested=NO_COMMON_COST)
        return over_scratch(pairs)

    def _why_no_pairs(self, method: str, unit: Unit) -> str:
        if self.scratch_saving(unit).relation == Relation.ABOVE:
            return NO_REFERENCE
        return NO_SCRATCH if unit == Unit.FLOPS else NO_SECONDS
