"""Cells of tables: the scale of costs, and what is said about a method's saving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
    column = f"{unit}_saving_{ledger}"
    if unknown(row, column):
        return UNKNOWN
    if row.get("at_least") and row["reached"] == row["seeds"] and not math.isnan(row[column]):
        return f"≥ {percent(row[column])}"  # an interval of a bound would say nothing
    return outcome(row, column)


def unknown(row: Mapping[str, Any], column: str) -> bool:
    """Whether only the saving with the source charged is missing: nobody said what the source cost."""
    return math.isnan(row[column]) and not math.isnan(row[column.replace("build", "reuse")])


def outcome(row: Mapping[str, Any], column: str) -> str:
    """The saving in a column with its interval, or that some seeds did not reach the target."""
    if row["reached"] < row["seeds"]:
        return f"not reached ({row['reached']} of {row['seeds']})"
    return saving(row[column], row[f"{column}_low"], row[f"{column}_high"])
