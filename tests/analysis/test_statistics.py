"""Statistics against closed forms, worked examples and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from growbench.analysis.statistics import holm, smallest_detectable


def test_holm_by_a_worked_example() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


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
