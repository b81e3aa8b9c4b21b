"""What a method saves over scratch, by one rule for every protocol, unit and ledger: pure functions of costs and losses.

Of each seed, D is the method's loss at a cost minus its own seed's scratch loss at the reference cost. The method meets scratch
where the mean of D over the seeds falls to 0 for good. The interval holds every cost at which a paired t-test does not reject
that this mean is 0. A seed that never gets as low as scratch is a value like any other: none is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from growbench.analysis.statistics import LEVEL

Array = NDArray[np.float64]

ONE_SEED = "one seed"
NO_SPREAD = "no spread over seeds"
NO_COMMON_COST = "no cost at which every seed has a loss"
UNMET = "scratch never meets the target loss"

BETWEEN = 7  # points between two budgets of a ladder

ROUNDING = 1e-12  # of losses: relative differences below it are rounding


class Verdict(StrEnum):
    """What a test says of a saving."""

    SAVES = "saves"
    EVEN = "not told apart from scratch"
    COSTS_MORE = "costs more"
    WORSE = "cheaper but worse"  # it ends above scratch, before scratch's cost: whether it would save is not known
    BETTER = "better but dearer"  # it begins below scratch, after scratch's cost: whether it would save is not known
    NONE = "no verdict"


class Relation(StrEnum):
    """Whether a figure is the value itself, or a bound that the value lies below or above."""

    EQUAL = "="
    BELOW = "<"
    ABOVE = ">"


@dataclass(frozen=True)
class Curve:
    """Loss (nats) over rising cost. Between its points linear in cost, or a monotone cubic of log cost. It ends with them."""

    costs: Array
    losses: Array
    log: bool = False

    @classmethod
    def of_run(cls, costs: ArrayLike, losses: ArrayLike) -> Curve:
        """One run's evaluations in order, after non-increasing isotonic regression, so that a lucky one is averaged with others.

        The final loss stays as measured: the regression lies too low at its end, since it follows the lowest of the last losses.
        Losses that are not finite are left out. Of several at one cost the last counts, as after growth.
        """
        x, y = np.array(costs, float), np.array(losses, float)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        last = np.diff(x, append=math.inf) > 0
        if not y.size:
            return cls(x, y)
        fitted = isotonic_regression(y[last], increasing=False).x
        return cls(x[last], np.append(fitted[:-1], y[-1]))

    @classmethod
    def of_ladder(cls, costs: ArrayLike, losses: ArrayLike) -> Curve:
        """Final losses by rising budget. A run that did not finish (NaN) hides those with smaller budgets.

        Costs need not rise with the budget, as noisy seconds may not.
        """
        x, y = np.array(costs, float), np.array(losses, float)
        failed = np.flatnonzero(~np.isfinite(y))
        start = failed[-1] + 1 if failed.size else 0
        order = np.argsort(x[start:], kind="stable")
        return cls(x[start:][order], y[start:][order], log=True)

    def __len__(self) -> int:
        return len(self.costs)

    def at(self, cost: float) -> float:
        """The loss at a cost; beyond its ends the loss there."""
        bent = self.bent()
        return float(np.interp(np.log(cost) if self.log else cost, bent.places(), bent.losses))

    def meets(self, loss: float) -> float:
        """The cost from which on it is at or below `loss`; inf if it ends above it."""
        if not len(self):
            return math.inf
        bent = self.bent()
        place, relation = _crossing(bent.places(), bent.losses - loss)
        return math.inf if relation == Relation.ABOVE else _cost(place, self.log)

    def bent(self) -> Curve:
        """In log cost with more points, on the cubic of Fritsch and Butland (1984); the same where there is none.

        A straight line would lie above a loss that falls more and more slowly.
        """
        costs, losses = self.costs, self.losses
        if not self.log or len(self) < 3 or costs[0] <= 0 or (np.diff(costs) <= 0).any():
            return self
        shares = np.arange(BETWEEN + 1) / (BETWEEN + 1)
        finer = np.append((costs[:-1, None] * (costs[1:] / costs[:-1])[:, None] ** shares).ravel(), costs[-1])
        bent = PchipInterpolator(np.log(costs), losses)(np.log(finer))
        bent[:: BETWEEN + 1] = losses
        return Curve(finer, bent, log=True)

    def places(self, reference: float = 1.0) -> Array:
        """Where its points lie on the axis on which it is linear, their costs being taken as shares of `reference`."""
        shares = self.costs / reference
        return np.log(shares) if self.log else shares


@dataclass(frozen=True)
class Saving:
    """What is saved over scratch, a share of its cost, with its 95 % interval. NaN: none, or none that can be given.

    `relation`: not EQUAL where `mean` is a bound, since no cost that was run is low or high enough. An end of the interval that
    these costs do not bracket is open: `low` is -inf, or `high` is inf.
    """

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    relation: Relation = Relation.EQUAL

    @property
    def known(self) -> bool:
        """Whether there is a figure, be it a bound."""
        return not math.isnan(self.mean)

    @property
    def measured(self) -> bool:
        """Whether there is a figure that is no bound."""
        return self.known and self.relation == Relation.EQUAL

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Estimate:
    """What a method saves, and a two-sided paired t-test of the hypothesis that it saves nothing.

    The test is made at the share `tested_at` of the reference cost: 1, or the nearest at which every seed has a loss. Its
    `difference` is the mean of D there and `deviation` the standard deviation (nats). Where there is no test, `p` is NaN and
    `untested` says why. `own`: what each seed saves by itself, without intervals.
    """

    saving: Saving = Saving()
    p: float = math.nan
    tested_at: float = math.nan
    difference: float = math.nan
    deviation: float = math.nan
    own: tuple[Saving, ...] = ()
    untested: str = ""


def estimate(curves: Sequence[Curve], scratch_losses: ArrayLike, references: ArrayLike) -> Estimate:
    """What a method saves over scratch: of every seed its curve, scratch's loss (nats), and the cost at which scratch has it.

    The curves are all of one kind. Each seed's costs are taken as shares of its own reference: noise of a reference, as seconds
    have, then widens the interval. A single loss or reference counts for all seeds.
    """
    if not curves or not all(map(len, curves)):
        return Estimate(untested=NO_COMMON_COST)
    curves = [curve.bent() for curve in curves]
    losses = np.broadcast_to(np.asarray(scratch_losses, float), len(curves))
    scales = np.broadcast_to(np.asarray(references, float), len(curves))
    log, seeds = curves[0].log, [curve.places(scale) for curve, scale in zip(curves, scales, strict=True)]
    differences = [curve.losses - loss for curve, loss in zip(curves, losses, strict=True)]
    own = tuple(_saving(*_crossing(places, each), log) for places, each in zip(seeds, differences, strict=True))
    low, high = max(places[0] for places in seeds), min(places[-1] for places in seeds)
    if low > high:
        return Estimate(own=own, untested=NO_COMMON_COST)
    at = float(np.clip(0.0 if log else 1.0, low, high))
    grid = np.unique([low, at, high, *(place for places in seeds for place in places if low < place < high)])
    table = np.array([np.interp(grid, places, each) for places, each in zip(seeds, differences, strict=True)])
    tested = table[:, np.searchsorted(grid, at)]
    found = Estimate(
        saving=_saving(*_crossing(grid, table.mean(axis=0)), log),
        tested_at=math.exp(at) if log else at,
        difference=float(tested.mean()),
        own=own,
    )
    if len(curves) == 1:
        return replace(found, untested=ONE_SEED)
    if np.ptp(tested) <= ROUNDING * np.abs(losses).max():  # a t statistic would be x / 0
        return replace(found, untested=NO_SPREAD)
    ends = _interval(grid, table)
    return replace(
        found,
        saving=replace(found.saving, low=1 - _cost(ends[1], log), high=1 - _cost(ends[0], log)),
        p=_paired_t_test(tested),
        deviation=float(np.std(tested, ddof=1)),
    )


def verdict(found: Estimate, p: float) -> Verdict:
    """What a test with the (adjusted) p-value `p` says.

    A loss below scratch's shows a saving only at no more than scratch's cost; one above it shows that a method costs more only
    at no less than scratch's cost.
    """
    if math.isnan(p):
        return Verdict.NONE
    if p >= LEVEL:
        return Verdict.EVEN
    if found.difference < 0:
        return Verdict.SAVES if found.tested_at <= 1 + ROUNDING else Verdict.BETTER
    return Verdict.COSTS_MORE if found.tested_at >= 1 - ROUNDING else Verdict.WORSE


def at_least(found: Estimate) -> Estimate:
    """The same, of a loss that scratch never meets: what is saved over all that scratch spent is a lower bound.

    A method that does not meet it either may save all the same, so that neither a figure nor a test says that it does not.
    """
    saving = found.saving
    bound = Saving() if saving.relation == Relation.BELOW else replace(saving, relation=Relation.ABOVE)
    if bound.has_interval:
        bound = replace(bound, high=math.inf)
    found = replace(found, saving=bound)
    return replace(found, p=math.nan, untested=UNMET) if found.difference >= 0 else found


def _cost(place: float, log: bool) -> float:
    """The share of the reference cost at a place. An open end of an interval stays open."""
    return math.exp(place) if log and math.isfinite(place) else place


def _saving(place: float, relation: Relation, log: bool) -> Saving:
    """From where a curve meets scratch. `relation`: of the true place to this one."""
    opposite = {Relation.BELOW: Relation.ABOVE, Relation.ABOVE: Relation.BELOW, Relation.EQUAL: Relation.EQUAL}
    return Saving(1 - _cost(place, log), relation=opposite[relation])


def _crossing(places: Array, differences: Array) -> tuple[float, Relation]:
    """Where a piecewise linear curve falls to 0 for good: its last point above 0 is the one before.

    ABOVE its last place if it is above 0 there; BELOW its first one if no point is above 0.
    """
    above = np.flatnonzero(differences > 0)
    if not above.size:
        return float(places[0]), Relation.BELOW
    last = above[-1]
    if last == len(places) - 1:
        return float(places[-1]), Relation.ABOVE
    share = differences[last] / (differences[last] - differences[last + 1])
    return float(places[last] + share * (places[last + 1] - places[last])), Relation.EQUAL


def _paired_t_test(differences: Array) -> float:
    """The two-sided p-value; as `scipy.stats.ttest_1samp` has it, in a tenth of its time."""
    statistic = differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences)))
    return float(2 * special.stdtr(len(differences) - 1, -abs(statistic)))


def _interval(grid: Array, table: Array) -> tuple[float, float]:
    """The hull of all places at which a two-sided paired t-test does not reject a mean of 0.

    `table`: one row of differences a seed (seeds, places), linear between the places. Infinite where the costs that were run do
    not bracket it: at the first place the mean is not above 0, or at the last not below 0, as far as the test can tell. The test
    does not reject where mean^2 <= critical^2 variance / seeds: between two places a quadratic inequality, whose ends are roots.
    """
    factor = special.stdtrit(len(table) - 1, 1 - LEVEL / 2) ** 2 / len(table)
    mean, start, slope = table.mean(axis=0), table[:, :-1], np.diff(table, axis=1)
    excess = mean**2 - factor * table.var(axis=0, ddof=1)
    linear = 2 * (mean[:-1] * slope.mean(axis=0) - factor * _covariance(start, slope))
    quadratic = slope.mean(axis=0) ** 2 - factor * slope.var(axis=0, ddof=1)
    shares = _roots(quadratic, linear, excess[:-1])
    places = grid[:-1] + shares * np.diff(grid)
    kept = np.concatenate([grid[excess <= 0], places[(shares >= 0) & (shares <= 1)]])
    low = kept.min() if kept.size else grid[-1]
    high = kept.max() if kept.size else grid[0]
    above, below = excess[0] > 0 and mean[0] > 0, excess[-1] > 0 and mean[-1] < 0
    return float(low) if above else -math.inf, float(high) if below else math.inf


def _roots(quadratic: Array, linear: Array, constant: Array) -> Array:
    """The two rows of real roots of quadratic equations; NaN or infinite where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        larger = -0.5 * (linear + np.copysign(np.sqrt(linear**2 - 4 * quadratic * constant), linear))
        return np.array([larger / quadratic, constant / larger])


def _covariance(one: Array, other: Array) -> Array:
    """Column by column."""
    return ((one - one.mean(axis=0)) * (other - other.mean(axis=0))).sum(axis=0) / (len(one) - 1)
