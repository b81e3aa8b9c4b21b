"""What a handful of seeds can say: intervals, tests of paired differences, and the smallest difference they would find."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

Values = Sequence[float] | NDArray[np.floating]


LEVEL = 0.05  # of tests; intervals hold the truth in the other 95 %


POWER = 0.8  # the chance of finding the smallest detectable difference


def interval(values: Values, most: float = math.inf) -> tuple[float, float]:
    """A 95 % interval of the mean: at either end the wider of the percentile bootstrap and Student's t. NaN for one value.

    `most`: what no mean can exceed, as a saving cannot exceed 1.

    The bootstrap of n values never leaves their range, so that of three it holds the true mean only three times in four.
    Student's t holds it as often as it says where the values are normal; where they are skewed, the bootstrap may reach further.
    """
    (low, high), (t_low, t_high) = percentile_interval(values), student_interval(values)
    return min(low, t_low), min(max(high, t_high), most)


def percentile_interval(values: Values) -> tuple[float, float]:
    """The 95 % percentile bootstrap of the mean, with always the same resamples; the corrected kinds (BCa) break down on few."""
    if len(values) < 2:
        return math.nan, math.nan
    resampled = stats.bootstrap((values,), np.mean, method="percentile", random_state=np.random.default_rng(0))
    low, high = resampled.confidence_interval
    return float(low), float(high)


def student_interval(values: Values) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t."""
    if len(values) < 2:
        return math.nan, math.nan
    mean, half = float(np.mean(values)), float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def paired_p(differences: Values) -> float:
    """The p-value of a two-sided t-test that paired differences have a mean of 0. NaN for fewer than two."""
    if len(differences) < 2:
        return math.nan
    largest = np.abs(differences).max()
    if np.ptp(differences) <= 1e-12 * largest:  # no spread but rounding, where the statistic would be x / 0
        return 0.0 if largest else 1.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p: Values) -> NDArray[np.float64]:
    """Holm-Bonferroni adjusted p-values (Holm 1979): below 0.05 in any test of no effect in at most 5 % of families.

    What is NaN stays so, and is no member of the family.
    """
    adjusted = np.array(p, float)
    order = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * adjusted[order]), 1)
    return adjusted


def smallest_detectable(deviation: float, pairs: int) -> float:
    """The true mean difference that a paired t-test finds at 5 %, two-sided, with 80 % power.

    `deviation`: of a difference, as estimated from elsewhere. NaN for fewer than two pairs.
    """
    if pairs < 2:
        return math.nan
    critical = stats.t.ppf(1 - LEVEL / 2, pairs - 1)
    # the test statistic is non-central t; at twice the critical value its power is at least 95 %
    shift = brentq(lambda shift: stats.nct.sf(critical, pairs - 1, shift) - POWER, 0, 2 * critical)
    return float(shift * deviation / math.sqrt(pairs))
