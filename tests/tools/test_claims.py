"""Shares of claims and of intervals, and what they decide."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from growbench.analysis.estimator import Estimate, Relation, Saving, Verdict
from growbench.analysis.savings import Judged
from growbench.tools.claims import LIMITS, failures, outcome_row, promises, written


def judged(difference: float, p: float, saving: Saving, verdict: Verdict = Verdict.EVEN) -> Judged:
    return Judged(Estimate(saving, p=p, tested_at=1.0, difference=difference), p, verdict)


def test_a_row_counts_claims_and_intervals() -> None:
    better = judged(-0.2, 0.01, Saving(0.2, 0.1, 0.3), Verdict.SAVES)
    worse = judged(0.2, 0.04, Saving(0.0, -math.inf, -0.1, Relation.BELOW))
    even = judged(0.0, 0.9, Saving(0.1, -math.inf, math.inf))
    row = outcome_row(0.0, [[better, even], [worse, even], [even, even], [even, even]])
    assert row["comparisons"] == 4
    assert (row["saves"], row["costs_more"], row["family"]) == (1 / 8, 1 / 8, 1 / 4)
    assert (row["covered"], row["open_low"], row["open_high"], row["bounded"]) == (6 / 8, 7 / 8, 6 / 8, 1 / 8)
    assert row["family_error"] == pytest.approx(math.sqrt(0.25 * 0.75 / 4))  # of a binomial share
    assert (row["point"], row["bias"], row["difference"]) == (0.1, 0.1, 0.0)


def test_of_a_method_that_saves_only_that_claim_counts() -> None:
    found = [[judged(0.2, 0.01, Saving(0.1, 0.0, 0.3), Verdict.COSTS_MORE)], [judged(-0.2, 0.01, Saving(), Verdict.SAVES)]]
    row = outcome_row(0.1, found)
    assert (row["family"], row["costs_more"], row["covered"], row["bias"]) == (
        0.5,
        0.5,
        0.5,
        pytest.approx(math.nan, nan_ok=True),
    )


def outcomes(**changed: float) -> pd.DataFrame:
    """Two settings, of which the second one is as promised, or `changed`."""
    place = {"kind": "simulated", "experiment": "e", "protocol": "single", "case": "as stored", "seeds": 3, "saving": 0.0}
    shares = {"saves": 0.025, "costs_more": 0.025, "family": 0.05, "covered": 0.9}
    rows = [place | shares, place | {"seeds": 5} | shares | changed]
    return pd.DataFrame([row | {f"{name}_error": 0.01 for name in shares} for row in rows])


def planted(saving: float, low: float, high: float) -> pd.DataFrame:
    row = {"share": 0.2, "seeds": 6, "ledger": "reuse", "planted": 0.2, "relation": "="}
    return pd.DataFrame([row | {"saving": saving, "low": low, "high": high}])


@pytest.mark.parametrize(("column", "just", "missed"), [
    ("saves", 0.054, 0.056), ("costs_more", 0.054, 0.056), ("family", 0.079, 0.081), ("covered", 0.871, 0.869),
])  # fmt: skip
def test_each_share_decides_its_promise(column: str, just: float, missed: float) -> None:
    """Beyond chance: three standard errors of 1 point."""
    good = planted(0.2, 0.1, 0.3)
    assert all(promise.kept for promise in promises(outcomes(**{column: just}), good))
    assert failures(outcomes(**{column: just})) == []
    kept = [promise.kept for promise in promises(outcomes(**{column: missed}), good)]
    assert kept == [limit.column != column for limit in LIMITS] + [True]
    (line,) = failures(outcomes(**{column: missed}))
    assert "with e, as stored, n = 5, true saving 0" in line
    found = promises(outcomes(**{column: missed}), good)[kept.index(False)]
    assert found.text in {f"simulated: {limit.text}" for limit in LIMITS} and found.measured.startswith("1 of 2 settings; ")


def test_only_nulls_count_as_claimed_nulls() -> None:
    table = outcomes(saves=0.9, family=0.9).assign(saving=[0.0, 0.3])
    assert all(promise.kept for promise in promises(table, planted(0.2, 0.1, 0.3)))


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ((0.2, 0.1, 0.3), True),
        ((0.2, -math.inf, 0.2), True),
        ((0.22, 0.21, 0.3), False),
        ((0.24, 0.1, 0.3), False),
        ((math.nan, math.nan, math.nan), False),
    ],
)
def test_a_planted_saving_is_to_be_found_within_its_interval(found: tuple[float, float, float], kept: bool) -> None:
    assert promises(outcomes(), planted(*found))[-1].kept == kept


def test_open_ends_are_said() -> None:
    closed, bound = Saving(0.2, 0.1, 0.3), Saving(0.2, -math.inf, math.inf, Relation.BELOW)
    said = [written(saving).replace("\N{NO-BREAK SPACE}", " ") for saving in (closed, bound)]
    assert said == ["20.0 % (10.0 % to 30.0 %)", "< 20.0 % (no lower end to no upper end)"]
