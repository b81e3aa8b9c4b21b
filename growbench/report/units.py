"""Costs and shares in the units that people read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growbench.registry import SCRATCH

PREFIXES = (("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18), ("Z", 1e21))
CLOCK = (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86400.0))
UNKNOWN = "unknown"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scale:
    """A unit of measurement: its name, and how many FLOPs or seconds one of it is."""

    name: str
    size: float

    def text(self, cost: float) -> str:
        """A cost with three significant digits, without the unit."""
        return "∞" if math.isinf(cost) else "–" if math.isnan(cost) else digits(cost / self.size)


def scale(largest: float, unit: str) -> Scale:
    """The unit in which costs of up to `largest` (FLOPs or seconds) read best."""
    if unit == "seconds":
        name, size = max((row for row in CLOCK if largest >= 3 * row[1]), key=lambda row: row[1], default=CLOCK[0])
        return Scale(name, size)
    prefix, size = max((row for row in PREFIXES if largest >= row[1]), key=lambda row: row[1], default=PREFIXES[0])
    return Scale(f"{prefix}FLOP", size)


def digits(value: float) -> str:
    """A number with three significant digits, never in exponent form."""
    places = 2 - math.floor(math.log10(abs(float(f"{value:.2e}")))) if value else 0  # 0.9999 has the digits of 1
    return f"{value:,.{max(places, 0)}f}".replace("-", MINUS)


def percent(share: float, places: int = 1) -> str:
    """0.4712 as 47.1 %; a dash for NaN."""
    if math.isnan(share):
        return "–"
    return f"{round(100 * share, places) + 0.0:.{places}f}".replace("-", MINUS) + "\N{NO-BREAK SPACE}%"  # no -0.0


def saving(mean: float, low: float, high: float) -> str:
    """A saving with its 95 % interval: 47.1 % (40.2 to 52.0); without one where there is none."""
    if math.isnan(low) or math.isnan(mean):
        return percent(mean)
    return f"{percent(mean)} ({percent(low)[:-2]} to {percent(high)[:-2]})"


def ratio(value: float) -> str:
    """A ratio of costs; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def saving_of(row: Mapping[str, Any] | None, unit: str, ledger: str) -> str:
    """A method's saving, from its row in a table of savings or of the ladder; blank if it has none."""
    if row is None or row["method"] == SCRATCH:
        return "reference" if row else ""
    column = f"{unit}_saving_{ledger}"
    if unknown(row, column):
        return UNKNOWN
    if row.get("at_least") and row["reached"] == row["seeds"] and not math.isnan(row[column]):
        return f"≥ {percent(row[column])}"  # an interval of a bound would say nothing
    return outcome(row["reached"], row["seeds"], row[column], row[f"{column}_low"], row[f"{column}_high"])


def unknown(row: Mapping[str, Any], column: str) -> bool:
    """Whether a saving is not known, because nobody said what the source cost: there is one with the source free."""
    return math.isnan(row[column]) and not math.isnan(row[column.replace("build", "reuse")])


def outcome(reached: int, seeds: int, mean: float, low: float, high: float) -> str:
    """A method's saving, or that some seeds did not reach the target."""
    return saving(mean, low, high) if reached == seeds else f"not reached ({reached} of {seeds})"


def data_size(count: float | None) -> str:
    """A number of bytes in MiB or GiB."""
    if not count:
        return "–"
    return f"{digits(count / 2**30)} GiB" if count >= 2**30 else f"{digits(count / 2**20)} MiB"
