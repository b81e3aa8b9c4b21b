"""Statistics against closed forms, worked examples and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from growbench.analysis.statistics import holm, interval, paired_p, percentile_interval, smallest_detectable, student_interval

savings = st.lists(st.floats(-2, 1), min_size=2, max_size=5)


# Intervals


@settings(max_examples=30)
@given(savings)
def test_the_interval_is_the_wider_one_at_either_end(values: list[float]) -> None:
    low, high = interval(values)
    assert (low, high) == interval(values)
    for kind in (percentile_interval, student_interval):
        assert low <= kind(values)[0] <= np.mean(values) + 1e-9
        assert np.mean(values) - 1e-9 <= kind(values)[1] <= high


@settings(max_examples=30)
@given(savings)
def test_the_bootstrap_stays_inside_its_values(values: list[float]) -> None:
    low, high = percentile_interval(values)
    assert min(values) - 1e-9 <= low and high <= max(values) + 1e-9


def test_students_interval_by_the_table() -> None:
    low, high = student_interval([1.0, 2.0, 3.0])  # t = 4.303 for 2 degrees of freedom, standard error 1 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.3]])
def test_one_seed_has_no_interval(values: list[float]) -> None:
    assert all(map(math.isnan, interval(values)))


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert interval([0.25] * 3) == pytest.approx((0.25, 0.25))


def test_three_seeds_are_covered_as_promised_where_the_bootstrap_alone_covers_too_little() -> None:
    samples = np.random.default_rng(0).normal(size=(400, 3))

    def coverage(kind: Callable[[np.ndarray], tuple[float, float]]) -> float:
        return float(np.mean([low <= 0 <= high for low, high in map(kind, samples)]))

    assert coverage(interval) >= 0.93  # 0.95, less twice its own error
    assert coverage(percentile_interval) < 0.85


# Tests


def test_p_of_two_differences_in_closed_form() -> None:
    # one degree of freedom is Cauchy's distribution: t = mean / standard error = 2 / 1
    assert paired_p([1.0, 3.0]) == pytest.approx(1 - 2 * math.atan(2) / math.pi)


@settings(max_examples=50)
@given(savings)
def test_p_is_below_5_percent_where_students_interval_leaves_zero_out(values: list[float]) -> None:
    low, high = student_interval(values)
    p = paired_p(values)
    if np.ptp(values) > 1e-6 and abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (not low <= 0 <= high)


def test_p_without_spread_or_pairs() -> None:
    assert paired_p([0.5, 0.5, 0.5]) == paired_p([0.3, 0.1 + 0.2, 0.3]) == 0
    assert paired_p([0.0, 0.0]) == 1
    assert math.isnan(paired_p([0.5])) and math.isnan(paired_p([]))


def test_holm_by_a_worked_example() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_nan_out_of_the_family() -> None:
    assert holm([math.nan, 0.01, math.nan, 0.04]) == pytest.approx([math.nan, 0.02, math.nan, 0.04], nan_ok=True)
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_values_and_bonferronis(p: list[float]) -> None:
    adjusted, bonferroni = holm(p), np.minimum(np.array(p) * len(p), 1)
    assert (adjusted >= p).all() and (adjusted <= bonferroni).all()
    assert adjusted[np.argmin(p)] == bonferroni.min()
    order = np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all()
    # sequential rejection, as Holm describes it: from the smallest on, each against 5 % of those left, until one fails
    rejected = np.logical_and.accumulate([value * (len(p) - place) < 0.05 for place, value in enumerate(np.array(p)[order])])
    assert ((adjusted < 0.05)[order] == rejected).all()


# The smallest detectable difference


def test_smallest_detectable_by_a_known_value() -> None:
    # R: power.t.test(delta = 0.5, sd = 1, power = 0.8, type = "paired") finds n = 33.36713
    assert smallest_detectable(1.0, 33) > 0.5 > smallest_detectable(1.0, 34)
    assert smallest_detectable(0.02, 34) == pytest.approx(0.02 * smallest_detectable(1.0, 34))
    assert math.isnan(smallest_detectable(1.0, 1)) and smallest_detectable(0.0, 3) == 0


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
def test_smallest_detectable_is_found_four_times_in_five(pairs: int) -> None:
    effect = smallest_detectable(1.0, pairs)
    draws = np.random.default_rng(0).normal(effect, 1.0, size=(20_000, pairs))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


def test_an_interval_ends_where_no_mean_can_be() -> None:
    """Two savings of 90 and 60 %: Student's t alone would reach beyond all of the cost."""
    low, high = interval([0.9, 0.6], most=1)
    assert low == interval([0.9, 0.6])[0] < 0
    assert high == 1 < interval([0.9, 0.6])[1]
    assert all(map(math.isnan, interval([0.5], most=1)))
