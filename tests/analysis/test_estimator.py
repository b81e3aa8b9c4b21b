"""The estimator on curves whose savings are known, and on noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from growbench.analysis import estimator
from growbench.analysis.estimator import Curve, Estimate, Relation, Saving, Verdict, estimate, verdict
from growbench.analysis.statistics import holm

BUDGETS = np.array([0.4, 0.55, 0.7, 0.85, 1.0])
STEPS = np.linspace(1, 100, 60)  # costs of one run's evaluations


def power_law(costs: np.ndarray, pace: float = 1.0) -> np.ndarray:
    """A loss of 3 at a cost of 100. `pace`: how many times scratch's progress a method makes with the same cost."""
    return 3 * (costs * pace / 100) ** -0.2


def ladder(costs: np.ndarray, losses: np.ndarray) -> Curve:
    return Curve.of_ladder(costs, losses)


def runs(pace: float = 1.0, shifts: tuple[float, ...] = (-0.01, 0.0, 0.012), costs: np.ndarray = STEPS) -> list[Curve]:
    """A run a seed."""
    return [Curve.of_run(costs, power_law(costs, pace) + shift) for shift in shifts]


def ladders(pace: float = 1.0, shifts: tuple[float, ...] = (-0.01, 0.0, 0.012)) -> list[Curve]:
    return [ladder(100 * BUDGETS, power_law(100 * BUDGETS, pace) + shift) for shift in shifts]


# Known savings


@pytest.mark.parametrize("curves", [runs, ladders])
@pytest.mark.parametrize("pace", [1.25, 2.0])
def test_a_method_that_is_faster_by_a_factor_saves_its_share(curves: Callable[[float], list[Curve]], pace: float) -> None:
    """It meets scratch's 3.0 at 100 / pace."""
    found = estimate(curves(pace), 3.0, 100.0)
    assert found.saving.mean == pytest.approx(1 - 1 / pace, abs=0.004)
    assert found.saving.low < found.saving.mean < found.saving.high
    assert found.tested_at == 1 and found.difference == pytest.approx(power_law(np.array([100.0]), pace)[0] - 3 + 0.002 / 3)
    assert verdict(found, found.p) == Verdict.SAVES


def test_a_straight_line_in_log_cost_is_read_exactly_between_rungs() -> None:
    losses = 8 - np.log(100 * BUDGETS / 0.77)
    found = estimate([ladder(100 * BUDGETS, losses)], 8 - math.log(100), 100.0)
    assert found.saving.mean == pytest.approx(0.23, abs=1e-12)


def test_a_runs_curve_is_read_linearly_in_cost() -> None:
    found = estimate([Curve.of_run([0, 10, 20], [6.0, 4.0, 2.0])], 3.5, 20.0)
    assert found.saving == Saving(1 - 12.5 / 20)


def test_each_seed_is_compared_with_its_own_scratch() -> None:
    """Shifts that both share, as of data, cancel: they neither move the point nor widen the interval."""
    shifts = (-0.4, 0.1, 0.25)
    noisy = (-0.01, 0.0, 0.012)
    apart = estimate(runs(1.25, tuple(np.add(noisy, shifts))), np.add(3.0, shifts), 100.0)
    assert apart.saving.mean == pytest.approx(estimate(runs(1.25, noisy), 3.0, 100.0).saving.mean)
    assert apart.p == pytest.approx(estimate(runs(1.25, noisy), 3.0, 100.0).p)


def test_own_savings_are_those_of_each_seed_alone() -> None:
    curves = runs(1.25, (-0.3, 0.0, 0.5))
    found = estimate(curves, 3.0, 100.0)
    assert found.own == tuple(estimate([curve], 3.0, 100.0).saving for curve in curves)
    assert [saving.relation for saving in found.own] == [Relation.EQUAL, Relation.EQUAL, Relation.BELOW]


def test_noise_of_the_references_is_in_the_interval() -> None:
    """Equal losses at equal costs, while scratch's seconds vary: the test has something to tell apart."""
    curves = runs(1.25, (0.0, 0.0, 0.0))
    assert estimate(curves, 3.0, 100.0).untested == estimator.NO_SPREAD
    found = estimate(curves, 3.0, [80.0, 100.0, 125.0])
    assert found.saving.low < 0.2 < found.saving.high and found.saving.high - found.saving.low > 0.2


# What was not met, and open ends


def test_a_method_that_ends_above_scratch_is_a_value() -> None:
    found = estimate(runs(0.8), 3.0, 100.0)
    assert (found.saving.mean, found.saving.relation, found.saving.low) == (0.0, Relation.BELOW, -math.inf)
    assert found.saving.high == pytest.approx(0) and verdict(found, found.p) == Verdict.COSTS_MORE


def test_a_method_that_ends_about_scratch_has_one_open_end() -> None:
    found = estimate(runs(1.0, (-0.03, 0.02, 0.03)), 3.0, 100.0)
    assert found.saving.relation == Relation.BELOW and found.saving.low == -math.inf and 0 < found.saving.high < 0.5
    assert found.p > 0.05 and verdict(found, found.p) == Verdict.EVEN


def test_a_method_that_is_ahead_at_its_smallest_budget_saves_more_than_that() -> None:
    found = estimate(ladders(4.0), 3.0, 100.0)
    assert found.saving.mean == pytest.approx(0.6) and found.saving.relation == Relation.ABOVE
    assert found.saving.low == pytest.approx(0.6) and found.saving.high == math.inf
    assert verdict(found, found.p) == Verdict.SAVES


def test_one_seed_that_misses_does_not_undo_the_others() -> None:
    found = estimate(runs(1.5, (-0.02, 0.0, 0.27)), 3.0, 100.0)
    assert [saving.relation for saving in found.own] == [Relation.EQUAL, Relation.EQUAL, Relation.BELOW]
    assert found.saving.relation == Relation.EQUAL and found.saving.low == -math.inf


def test_a_run_that_ends_early_is_tested_where_it_ends() -> None:
    """A cheaper run that ends above scratch might still save: nothing is known of its loss at scratch's cost."""
    short = np.linspace(1, 80, 40)
    behind, ahead = estimate(runs(1.0, costs=short), 3.0, 100.0), estimate(runs(1.6, costs=short), 3.0, 100.0)
    assert behind.tested_at == ahead.tested_at == 0.8 and behind.p < 0.05
    assert verdict(behind, behind.p) == Verdict.WORSE and behind.saving.mean == pytest.approx(0.2)
    assert verdict(ahead, ahead.p) == Verdict.SAVES


def test_what_starts_dearer_than_scratch_is_tested_where_it_starts() -> None:
    dear = np.linspace(120, 200, 40)
    found = estimate([Curve.of_run(dear, power_law(dear - 60) + shift) for shift in (-0.01, 0.0, 0.02)], 3.0, 100.0)
    assert found.tested_at == 1.2 and verdict(found, found.p) == Verdict.COSTS_MORE
    assert found.saving.mean == pytest.approx(-0.6, abs=0.01)


def test_what_is_below_scratch_from_a_dearer_start_on_is_no_saving_and_told_apart() -> None:
    dear = np.linspace(120, 200, 40)
    found = estimate([Curve.of_run(dear, power_law(dear) + shift) for shift in (-0.01, 0.0, 0.02)], 3.2, 100.0)
    assert (found.tested_at, found.saving.relation) == (1.2, Relation.ABOVE) and found.saving.mean == pytest.approx(-0.2)
    assert found.p < 0.05 and verdict(found, found.p) == Verdict.BETTER and verdict(found, 0.5) == Verdict.EVEN


def test_a_ladder_bends_between_its_rungs() -> None:
    """Its loss falls more and more slowly: the saving is not read too small, as it is by straight lines."""
    budgets = 100 * np.array([0.4, 0.55, 0.7, 0.85, 1])
    found = estimate([Curve.of_ladder(budgets, power_law(budgets / 0.78))], power_law(np.array([100.0])), 100.0)
    assert found.saving.mean == pytest.approx(0.22, abs=2e-4)  # by straight lines 0.2179


# Noise within a curve


def test_a_lucky_dip_does_not_count() -> None:
    losses = power_law(STEPS)
    dip = losses.copy()
    dip[20] = 2.99
    assert estimate([Curve.of_run(STEPS, dip)], 3.0, 100.0).saving.mean < 0.02
    lucky = ladder(100 * BUDGETS, np.array([3.5, 2.9, 3.3, 3.2, 3.1]))
    assert estimate([lucky], 3.0, 100.0).saving == Saving(0.0, relation=Relation.BELOW)


def test_noise_of_evaluations_is_no_saving() -> None:
    """Runs equal to scratch whose evaluations are noisy: the first touch would be 10 % early."""
    rng = np.random.default_rng(0)
    points, touches = [], []
    costs = np.linspace(1, 100, 400)
    for _ in range(100):
        losses = power_law(costs) + rng.normal(0, 0.03, size=(2, len(costs)))
        scratch = Curve.of_run(costs, losses[0])
        points.append(estimate([Curve.of_run(costs, losses[1])], scratch.losses[-1], 100.0).saving.mean)
        touches.append(1 - costs[np.argmax(losses[1] <= losses[0, -1])] / 100)
    assert np.mean(points) < 0.03 < 0.1 < np.mean(touches)


def test_the_end_of_a_noisy_curve_is_not_biased() -> None:
    """The regression alone follows the lowest of the last losses: its end lies 0.027 too low, and 10 % saved read as 5 %."""
    rng = np.random.default_rng(1)
    costs = np.linspace(0.01, 1, 100)
    mean = 1.2 - 0.4 * np.log(costs)
    ends, points = [], []
    for _ in range(400):
        scratch, method = (
            [Curve.of_run(costs, mean + shift + rng.normal(0, 0.06, 100)) for _ in range(5)] for shift in (0, 0.4 * math.log(0.9))
        )
        ends += [curve.losses[-1] for curve in scratch]
        points.append(estimate(method, [curve.losses[-1] for curve in scratch], 1.0).saving.mean)
    assert np.mean(ends) == pytest.approx(1.2, abs=0.005)
    assert np.median(points) == pytest.approx(0.1, abs=0.02)


def test_plateaus_left_at_random_times_leave_the_saving_uncertain() -> None:
    """Each seed is on a plateau for another time, as some models are: what seeds do not agree upon is not claimed."""
    curves = []
    for start in (10.0, 40.0, 75.0):
        curves.append(Curve.of_run(STEPS, np.where(start > STEPS, 6.0, 2.9 + np.exp(-(STEPS - start) / 4))))
    found = estimate(curves, 3.0, 100.0)
    owns = [1 - (start + 4 * math.log(10)) / 100 for start in (10, 40, 75)]
    assert [saving.mean for saving in found.own] == pytest.approx(owns, abs=0.02)
    assert found.saving.low < min(owns) + 0.05 and found.saving.mean < np.mean(owns) and found.saving.high > max(owns)


def test_losses_that_are_not_finite_are_no_points() -> None:
    curve = Curve.of_run([1, 2, 3, 4], [math.inf, 5.0, math.nan, 2.0])
    assert curve.costs.tolist() == [2, 4] and curve.losses.tolist() == [5, 2]
    assert not len(Curve.of_run([], [])) and not len(Curve.of_run([1.0], [math.nan]))
    assert Curve.of_ladder([1, 2, 3, 4], [5, math.nan, 4, 3]).costs.tolist() == [3, 4]
    assert Curve.of_run([1, 2, 2, 3], [6, 5, 4, 3]).losses.tolist() == [6, 4, 3]


# What cannot be tested


def test_one_seed_and_equal_seeds_have_no_test_and_no_interval() -> None:
    for shifts, why in (((0.0,), estimator.ONE_SEED), ((0.0, 0.0, 0.0), estimator.NO_SPREAD)):
        found = estimate(runs(1.25, shifts), 3.0, 100.0)
        assert found.saving.measured and not found.saving.has_interval and math.isnan(found.p)
        assert found.untested == why and verdict(found, found.p) == Verdict.NONE


def test_without_a_cost_in_common_there_is_no_estimate() -> None:
    early, late = Curve.of_run([1, 2], [5, 4]), Curve.of_run([3, 4], [3.0, 2.5])
    for curves in ([early, late], [early, Curve.of_run([], [])], []):
        found = estimate(curves, 3.0, 4.0)
        assert not found.saving.known and found.untested == estimator.NO_COMMON_COST


def test_a_method_equal_to_scratch_under_a_diverged_scratch_seed_is_not_claimed() -> None:
    found = estimate(runs(1.0, (-0.01, 0.0, 0.012)), [3.0, 3.0, 6.0], 100.0)
    assert found.saving.mean > 0.5 and found.saving.low == -math.inf
    assert found.p > 0.3 and verdict(found, found.p) == Verdict.EVEN


def test_the_family_counts_what_could_not_be_tested() -> None:
    assert holm([0.01, Estimate(untested=estimator.ONE_SEED).p, 0.04]) == pytest.approx([0.03, math.nan, 0.08], nan_ok=True)
    assert not len(holm([]))


# Invariances


shifts = st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=5, unique=True)


@settings(max_examples=40, deadline=None)
@given(shifts, st.floats(0.5, 3), st.floats(1e-3, 1e12), st.floats(-2, 20), st.booleans())
def test_neither_the_unit_of_cost_nor_a_shift_of_all_losses_matters(
    noise: list[float], pace: float, unit: float, shift: float, log: bool
) -> None:
    assume(np.ptp(noise) > 1e-3)
    costs = 100 * BUDGETS if log else STEPS
    kind = ladder if log else Curve.of_run
    plain = estimate([kind(costs, power_law(costs, pace) + each) for each in noise], 3.0, 100.0)
    moved = estimate(
        [kind(unit * costs, power_law(costs, pace) + each + shift) for each in noise], [3.0 + shift] * len(noise), unit * 100
    )
    for one, other in ((plain, moved), (plain.saving, moved.saving)):
        assert {key: value for key, value in vars(one).items() if isinstance(value, float)} == pytest.approx(
            {key: value for key, value in vars(other).items() if isinstance(value, float)}, abs=1e-7, nan_ok=True
        )
    assert plain.saving.relation == moved.saving.relation


@settings(max_examples=40, deadline=None)
@given(shifts, st.floats(0.5, 3), st.booleans())
def test_the_interval_holds_its_point_and_agrees_with_the_test(noise: list[float], pace: float, log: bool) -> None:
    assume(np.ptp(noise) > 1e-3)
    costs = 100 * BUDGETS if log else STEPS
    curves = [(ladder if log else Curve.of_run)(costs, power_law(costs, pace) + each) for each in noise]
    found = estimate(curves, 3.0, 100.0)
    assert found.saving.low - 1e-9 <= found.saving.mean <= found.saving.high + 1e-9
    if abs(found.p - 0.05) > 1e-6:
        assert (found.p < 0.05) == (not found.saving.low < 1e-12 < found.saving.high)


@pytest.mark.parametrize("log", [False, True])
def test_the_ends_are_where_scipys_test_is_at_five_percent(log: bool) -> None:
    """On a fine grid of costs, by the definition."""
    rng = np.random.default_rng(3)
    costs = 100 * BUDGETS if log else STEPS
    curves = [(ladder if log else Curve.of_run)(costs, power_law(costs, 1.4 + each)) for each in rng.normal(0, 0.04, 4)]
    found = estimate(curves, 3.0, 100.0)
    ends = [curve.losses[-1] - 3.0 for curve in curves]
    assert found.p == pytest.approx(stats.ttest_1samp(ends, 0).pvalue, rel=1e-9)
    grid = np.linspace(costs[0], costs[-1], 20_001)
    places = np.log(grid) if log else grid
    values = np.array([np.interp(places, curve.places(), curve.losses) for curve in (each.bent() for each in curves)]) - 3.0
    kept = grid[stats.ttest_1samp(values, 0, axis=0).pvalue >= 0.05]
    assert (found.saving.low, found.saving.high) == pytest.approx((1 - kept.max() / 100, 1 - kept.min() / 100), abs=1e-4)


# Simulated noise


def simulated(rng: np.random.Generator, seeds: int, pace: float, log: bool) -> Estimate:
    """A method and scratch whose final losses vary by 0.02 nats, half of it in common: of the order of the mini experiments."""
    costs = 100 * np.array([0.4, 0.6, 0.8, 1.0]) if log else np.linspace(20, 100, 17)
    common, scratch, own = rng.normal(0, [[0.014], [0.014], [0.014]], size=(3, seeds))
    rungs = rng.normal(0, 0.006, size=(seeds, len(costs)))
    kind = ladder if log else Curve.of_run
    curves = [kind(costs, power_law(costs, pace) + common[s] + own[s] + rungs[s]) for s in range(seeds)]
    return estimate(curves, 3.0 + common + scratch, 100.0)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_as_often_as_promised(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    held = []
    for saving, log in ((0.1, True), (0.3, True), (0.3, False)):
        for _ in range(120):
            found = simulated(rng, seeds, 1 / (1 - saving), log).saving
            held.append(found.low <= saving <= found.high)
    assert 0.91 <= np.mean(held) <= 0.98


def test_six_methods_equal_to_scratch_are_seldom_claimed_to_save() -> None:
    """All share scratch's noise, which Holm's procedure allows for."""
    rng = np.random.default_rng(1)
    costs, claimed, differing = 100 * np.array([0.4, 0.7, 1.0]), 0, 0
    families = 250
    for _ in range(families):
        scratch, own = 3.0 + rng.normal(0, 0.02, 3), rng.normal(0, 0.02, size=(6, 3))
        family = [estimate([ladder(costs, power_law(costs) + each) for each in seeds], scratch, 100.0) for seeds in own]
        said = [verdict(found, p) for found, p in zip(family, holm([each.p for each in family]), strict=True)]
        claimed += Verdict.SAVES in said
        differing += bool({Verdict.SAVES, Verdict.COSTS_MORE} & set(said))
    assert claimed <= 0.045 * families and differing <= 0.05 * families + 2 * math.sqrt(0.05 * 0.95 * families)
