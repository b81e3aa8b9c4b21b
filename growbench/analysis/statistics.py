"""What a handful of seeds can say: families of tests, and the smallest difference that a test would find."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

Values = Sequence[float] | NDArray[np.floating]

LEVEL = 0.05  # of tests; intervals hold the truth in the other 95 %

POWER = 0.8  # the chance of finding the smallest detectable difference


def holm(p: Values) -> NDArray[np.float64]:
    """Holm-Bonferroni adjusted p-values (Holm 1979): below 0.05 in any test of no effect in at most 5 % of families.

    NaN: what could not be tested. It is a member of the family, as if p were 1, and stays NaN.
    """
    adjusted = np.array(p, float)
    untested = np.isnan(adjusted)
    adjusted[untested] = 1
    order = np.argsort(adjusted)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * adjusted[order]), 1)
    adjusted[untested] = math.nan
    return adjusted


def families(methods: Iterable[str], controls: Collection[str]) -> tuple[list[str], list[str]]:
    """The two families of tests: growth methods, and the controls, of which nobody claims a saving."""
    methods = list(methods)
    return [method for method in methods if method not in controls], [method for method in methods if method in controls]


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
