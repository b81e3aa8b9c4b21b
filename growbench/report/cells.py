"""Cells of tables: the scale of costs, and what is said about a method's saving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growbench.analysis.columns import Saving
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import Scale, percent, saving, scale
from growbench.registry import SCRATCH

UNKNOWN = "unknown"
SYMBOLS = {Unit.FLOPS: "FLOP", Unit.SECONDS: "s"}


def cost_scale(largest: float, unit: Unit) -> Scale:
    """The scale in which costs up to `largest` FLOPs or seconds read best."""
    return scale(largest, SYMBOLS[unit])


def saving_of(row: Mapping[str, Any] | None, unit: Unit, ledger: Ledger) -> str:
    """A method's saving with its interval; blank for a method that has no row."""
    if row is None or row["method"] == SCRATCH:
        return "reference" if row else ""
    found = Saving.of(row, unit, ledger)
    if row.get("at_least") and row["reached"] == row["seeds"] and found.known:
        return f"≥ {percent(found.mean)}"  # an interval of a bound would say nothing
    return outcome(row, unit, ledger)


def outcome(row: Mapping[str, Any], unit: Unit, ledger: Ledger) -> str:
    """A saving with its interval, or why there is none: its source's cost is unknown, or some seeds did not reach the target."""
    if source_unknown(row, unit, ledger):
        return UNKNOWN
    if row["reached"] < row["seeds"]:
        return f"not reached ({row['reached']} of {row['seeds']})"
    found = Saving.of(row, unit, ledger)
    return saving(found.mean, found.low, found.high)


def source_unknown(row: Mapping[str, Any], unit: Unit, ledger: Ledger) -> bool:
    """Whether a saving is missing only because the source's cost is unknown: there is one with the source free."""
    return not Saving.of(row, unit, ledger).known and Saving.of(row, unit, Ledger.REUSE).known
