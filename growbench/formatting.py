"""Numbers as people read them: three significant digits and a unit, shares in percent, durations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
CLOCK = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
NONE = "–"  # what stands for NaN
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scale:
    """A unit of measurement: its name, and how many of the base unit (FLOPs, seconds, ...) it is."""

    name: str
    size: float

    def text(self, value: float) -> str:
        """A value in base units with three significant digits, without the unit."""
        return digits(value / self.size)


def scale(largest: float, unit: str) -> Scale:
    """The unit in which values up to `largest` read best: of `unit` "s" minutes, hours or days; of others one with a prefix."""
    if unit == "s":
        name, size = max((row for row in CLOCK.items() if largest >= 3 * row[1]), key=lambda row: row[1], default=("s", 1.0))
        return Scale(name, size)
    reached = [row for row in PREFIXES.items() if _rounded(largest) >= row[1]]
    prefix, size = max(reached, key=lambda row: row[1], default=("", 1.0))
    return Scale(prefix + unit, size)


def quantity(value: float, unit: str = "") -> str:
    """1234567 as '1.23 M': three significant digits and a prefix."""
    unit_of_value = scale(abs(value), unit)
    return f"{unit_of_value.text(value)} {unit_of_value.name}".rstrip()


def digits(value: float) -> str:
    """A number with three significant digits, never in exponent form; a dash for NaN."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    places = 2 - math.floor(math.log10(abs(_rounded(value)))) if value else 0
    return f"{value:,.{max(places, 0)}f}".replace("-", MINUS)


def _rounded(value: float) -> float:
    """To three significant digits: 0.9999 is written with the digits of 1."""
    return float(f"{value:.2e}")


def data_size(count: float) -> str:
    """A number of bytes in MiB, or in GiB from 1,000 MiB on."""
    mebibytes = count / 2**20
    return f"{digits(mebibytes)} MiB" if _rounded(mebibytes) < 1000 else f"{digits(mebibytes / 1024)} GiB"


def percent(share: float, places: int = 1, signed: bool = False) -> str:
    """0.4712 as 47.1 %, or +47.1 %; a dash for NaN."""
    if math.isnan(share):
        return NONE
    number = round(100 * share, places) + 0.0  # no -0.0
    return f"{number:{'+' * signed}.{places}f}".replace("-", MINUS) + "\N{NO-BREAK SPACE}%"


def saving(mean: float, low: float, high: float, relation: str = "=") -> str:
    """A saving with its 95 % interval: 47.1 % (40.2 to 52.0). NaN: there is none; infinite: its end is open, as in (> 40.2).

    `relation`: "<" or ">" where `mean` is a bound. What an interval adds nothing to is left out.
    """
    if math.isnan(mean):
        return NONE
    value, ends = percent(mean), [percent(end)[:-2] for end in (low, high) if math.isfinite(end)]
    bound = value if relation == "=" else f"{relation} {value}"
    if math.isnan(low):
        return bound
    if not ends:
        return f"{bound} (no limits)"
    text = " to ".join(ends) if len(ends) == 2 else f"{'>' if math.isfinite(low) else '<'} {ends[0]}"
    return bound if bound.startswith(text) else f"{bound} ({text})"


def difference(mean: float, low: float = math.nan, high: float = math.nan) -> str:
    """A difference of losses (nats) with its 95 % interval: −0.0142 (−0.0201 to −0.0083); without one where there is none."""
    if math.isnan(mean):
        return NONE
    center, *ends = (f"{round(each, 4) + 0.0:+.4f}".replace("-", MINUS) for each in (mean, low, high))
    return center if math.isnan(low) else f"{center} ({' to '.join(ends)})"


def ratio(value: float) -> str:
    """A ratio of two costs; a dash for NaN."""
    return NONE if math.isnan(value) else f"{value:.2f}"


def p_value(p: float, equals: bool = False) -> str:
    """The p-value of a test; a dash for NaN. `equals`: as what follows "p" in a sentence, "= 0.012" or "< 0.001"."""
    if math.isnan(p):
        return NONE
    places = 4 if f"{p:.3f}" == "0.050" else 3  # on which side of the level it lies
    return "< 0.001" if p < 0.001 else f"{'= ' * equals}{p:.{places}f}"


def setting(value: Any) -> str:
    """The value of a hyperparameter or another setting, floats with up to four significant digits."""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def settings(values: Mapping[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name} = {setting(value)}" for name, value in values.items()) or "none"


def duration(seconds: float) -> str:
    """90 as '1:30', 3690 as '1:01:30'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
