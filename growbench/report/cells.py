"""Cells of tables: the scale of costs, and what is said about a method's saving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growbench.analysis import columns
from growbench.analysis.estimator import Verdict
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import Scale, p_value, saving, scale
from growbench.registry import SCRATCH
from growbench.report.looks import CHIPS

UNKNOWN = "unknown"
NO_VERDICT = "no verdict"
DID_NOT_FINISH = "did not finish"
SYMBOLS = {Unit.FLOPS: "FLOP", Unit.SECONDS: "s"}


def cost_scale(largest: float, unit: Unit) -> Scale:
    """The scale in which costs up to `largest` FLOPs or seconds read best."""
    return scale(largest, SYMBOLS[unit])


def saving_of(row: Mapping[str, Any] | None, unit: Unit, ledger: Ledger) -> str:
    """A method's saving with its interval; blank for a method that has no row."""
    if row is None or row["method"] == SCRATCH:
        return "reference" if row else ""
    return outcome(row, unit, ledger)


def outcome(row: Mapping[str, Any], unit: Unit, ledger: Ledger) -> str:
    """A saving with its interval, or why there is none: a seed did not finish, or the cost of its source is unknown."""
    if row["finished"] < row["seeds"]:
        return f"{DID_NOT_FINISH} ({row['seeds'] - row['finished']} of {row['seeds']})"
    if source_unknown(row, unit, ledger):
        return UNKNOWN
    found = columns.saving_in(row, unit, ledger)
    return saving(found.mean, found.low, found.high, found.relation)


def verdict_of(row: Mapping[str, Any], ledger: Ledger) -> str:
    """What the test of the FLOPs says, with its p-value; blank for scratch."""
    if row["method"] == SCRATCH:
        return ""
    p = row[columns.adjusted_p_value(ledger)]
    text = row[columns.verdict(ledger)]
    return f"{NO_VERDICT} ({text})" if math.isnan(p) else f"{text} (p\N{NO-BREAK SPACE}{p_value(p, equals=True)})"


@dataclass(frozen=True)
class Judged:
    """A verdict as a chip has it: the name of its colours, its text; below it the p-value, or why there is none."""

    name: str
    text: str
    why: str


def judged(row: Mapping[str, Any], ledger: Ledger) -> Judged:
    """The same as a chip."""
    verdict, (_, bracket, why) = claimed(row, ledger), verdict_of(row, ledger).partition(" (")
    return Judged(verdict.name.lower(), CHIPS[verdict].text, bracket.strip() + why)


def claimed(row: Mapping[str, Any], ledger: Ledger) -> Verdict:
    """The same without its p-value, and without a reason where there is no verdict."""
    return next((verdict for verdict in Verdict if row[columns.verdict(ledger)] == verdict), Verdict.NONE)


def source_unknown(row: Mapping[str, Any], unit: Unit, ledger: Ledger) -> bool:
    """Whether a saving is missing only because the source's cost is unknown: there is one with the source free."""
    build, reuse = (columns.saving_in(row, unit, each) for each in (ledger, Ledger.REUSE))
    return reuse.known and not build.known
