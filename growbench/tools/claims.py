"""Methods whose saving is known: what share is claimed, how often intervals hold the saving, and which promises that keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from growbench.analysis import tables
from growbench.analysis.estimator import Estimate, Saving, Verdict, verdict
from growbench.analysis.savings import Judged
from growbench.formatting import percent

ALONE = 0.025  # promised share of nulls claimed to save, or to cost more, each tested alone
FAMILY = 0.05  # promised share of families of nulls with any claim
COVERAGE = 0.9  # promised share of intervals that hold the saving
ERRORS = 3  # standard errors by which chance may miss a promise: 1 in 740
NEAR = 0.03  # promised bound of the error of a planted saving

CLAIMS = (Verdict.SAVES, Verdict.COSTS_MORE)


def outcome_row(saving: float, families: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """What was found in repeated comparisons of methods that all save the share `saving`: a row of a table.

    `families`: of each comparison, the methods with this saving; their verdicts are those within the whole family.

    saves, costs_more: claimed so, each method tested alone. family: comparisons with a claim after Holm's correction, of a method
    that saves only the claim that it does. covered: intervals that hold the saving. open_low, open_high: intervals without that
    end. bounded: points that are but a bound. Shares, each with its standard error over the comparisons. point: the median.
    """
    estimates = [[each.estimate for each in family] for family in families]
    claimed = CLAIMS if saving == 0 else (Verdict.SAVES,)
    shares: dict[str, NDArray[np.float64]] = {
        "saves": _shares(estimates, lambda found: verdict(found, found.p) == Verdict.SAVES),
        "costs_more": _shares(estimates, lambda found: verdict(found, found.p) == Verdict.COSTS_MORE),
        "family": np.array([any(each.verdict in claimed for each in family) for family in families], float),
        "covered": _shares(estimates, lambda found: found.saving.low <= saving <= found.saving.high),
        "open_low": _shares(estimates, lambda found: found.saving.low == -math.inf),
        "open_high": _shares(estimates, lambda found: found.saving.high == math.inf),
        "bounded": _shares(estimates, lambda found: not found.saving.measured),
    }
    row: dict[str, Any] = {"saving": saving, "comparisons": len(families)}
    for name, values in shares.items():
        row |= {name: values.mean(), f"{name}_error": values.std() / math.sqrt(len(families))}
    point = float(np.median([found.saving.mean for each in estimates for found in each]))
    difference = float(np.mean([found.difference for each in estimates for found in each]))
    return row | {"point": point, "bias": point - saving, "difference": difference}


def _shares(comparisons: Sequence[Sequence[Estimate]], holds: Callable[[Estimate], bool]) -> NDArray[np.float64]:
    """Of each comparison, the share of its methods of which something holds."""
    return np.array([np.mean([holds(found) for found in each]) for each in comparisons])


class Promise(NamedTuple):
    """What the harness promises, what was measured, and whether the promise is kept."""

    text: str
    measured: str
    kept: bool


class Limit(NamedTuple):
    """A column of a table, and what its share must not exceed, or not fall below."""

    column: str
    text: str
    share: float
    at_least: bool = False

    def kept(self, table: pd.DataFrame) -> pd.Series:
        """By row, whether it holds, but for chance."""
        beyond = (self.share - table[self.column]) if self.at_least else (table[self.column] - self.share)
        return beyond <= ERRORS * table[f"{self.column}_error"]

    def worst(self, table: pd.DataFrame) -> pd.Series:
        return table.sort_values(self.column, ascending=self.at_least).iloc[0]


LIMITS = (
    Limit("saves", f"a null is claimed to save, tested alone, in at most {percent(ALONE)}", ALONE),
    Limit("costs_more", f"a null is claimed to cost more, tested alone, in at most {percent(ALONE)}", ALONE),
    Limit("family", f"any of six nulls is claimed, after Holm's correction, in at most {percent(FAMILY, 0)}", FAMILY),
    Limit("covered", f"the 95 % interval holds the saving in at least {percent(COVERAGE, 0)}", COVERAGE, at_least=True),
)


def promises(outcomes: pd.DataFrame, planted: pd.DataFrame) -> list[Promise]:
    """Every promise with what was measured. `outcomes`: rows of `outcome_row` with where they are from."""
    found = []
    for kind, part in outcomes.groupby("kind", sort=False):
        for limit in LIMITS:
            rows = part if limit.column == "covered" else part[part["saving"] == 0]
            kept, worst = limit.kept(rows), limit.worst(rows)
            extreme = "least" if limit.at_least else "most"
            measured = (
                f"{kept.sum()} of {len(rows)} settings; {extreme} {percent(worst[limit.column])} "
                f"(± {percent(worst[f'{limit.column}_error'])[:-2]}; {setting(worst)})"
            )
            found.append(Promise(f"{kind}: {limit.text}", measured, bool(kept.all())))
    for row in tables.records(planted):
        saved = Saving(row["saving"], row["low"], row["high"], row["relation"])
        near = abs(saved.mean - row["planted"]) <= NEAR
        truth = f"{percent(row['planted'], 0)} ({row['ledger']}, {percent(row['share'], 0)} of the budget)"
        text = f"planted: {truth} is within the interval, and within {100 * NEAR:.0f} points of what is found"
        found.append(Promise(text, f"{written(saved)}, {row['seeds']} seeds", near and saved.low <= row["planted"] <= saved.high))
    return found


def failures(outcomes: pd.DataFrame) -> list[str]:
    """A line for every setting in which a promise is not kept."""
    lines = []
    for limit in LIMITS:
        rows = outcomes if limit.column == "covered" else outcomes[outcomes["saving"] == 0]
        for _, row in rows[~limit.kept(rows)].iterrows():
            share, error = percent(row[limit.column]), percent(row[f"{limit.column}_error"])[:-2]
            lines.append(f"{limit.text}: {share} (± {error}) with {setting(row)}")
    return lines


def setting(row: pd.Series) -> str:
    """Where a row is from."""
    case = "" if row["case"] == row["kind"] else f"{row['case']}, "
    return f"{row['experiment']}, {case}n = {row['seeds']}, true saving {percent(row['saving'], 0)}"


def written(saving: Saving) -> str:
    """A saving with its relation and its interval, whose open ends are said."""
    relation = "" if saving.measured else f"{saving.relation} "
    low = "no lower end" if saving.low == -math.inf else percent(saving.low)
    high = "no upper end" if saving.high == math.inf else percent(saving.high)
    return f"{relation}{percent(saving.mean)} ({low} to {high})"
