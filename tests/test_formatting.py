"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growbench import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (9.899, "9.90"),
        (9.999, "10.0"),
        (0.99999, "1.00"),
        (123.4, "123"),
        (54321, "54,321"),
        (-1.5, "−1.50"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert formatting.digits(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234567, "", "1.23 M"),
        (64e6, "", "64.0 M"),
        (999_999, "FLOP", "1.00 MFLOP"),
        (999, "FLOP", "999 FLOP"),
        (-2.5e15, "FLOP/s", "−2.50 PFLOP/s"),
        (3.2e24, "FLOP", "3,200 ZFLOP"),
        (0, "", "0"),
        (0.5, "", "0.500"),
        (100, "s", "100 s"),
        (7200, "s", "120 min"),
        (86400, "s", "24.0 h"),
    ],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert formatting.quantity(value, unit) == text


@given(st.floats(1e-3, 9e23))
def test_a_quantity_is_within_its_third_digit(value: float) -> None:
    number, _, prefix = formatting.quantity(value).partition(" ")
    assert float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}[prefix] == (
        pytest.approx(value, rel=0.005001)
    )
    assert len(number.lstrip("0.").replace(".", "")) == 3 and "e" not in number


def test_a_scale_fits_the_largest_value() -> None:
    assert formatting.scale(2.3e15, "FLOP").name == "PFLOP"
    assert formatting.scale(100.0, "s").name == "s" and formatting.scale(7200.0, "s").name == "min"
    assert formatting.scale(1.0, "FLOP").text(math.inf) == "∞"


def test_data_size() -> None:
    assert formatting.data_size(523_000_000) == "499 MiB" and formatting.data_size(85_899_345_920) == "80.0 GiB"
    assert formatting.data_size(999.4 * 2**20) == "999 MiB" and formatting.data_size(999.6 * 2**20) == "0.976 GiB"


def test_shares() -> None:
    assert formatting.percent(0.4712) == "47.1\N{NO-BREAK SPACE}%" and formatting.percent(-0.4712, 0) == "−47\N{NO-BREAK SPACE}%"
    assert formatting.percent(-0.0001) == "0.0\N{NO-BREAK SPACE}%" and formatting.percent(math.nan) == "–"
    assert formatting.percent(0.012, signed=True) == "+1.2\N{NO-BREAK SPACE}%"
    assert formatting.saving(0.471, 0.402, 0.52) == "47.1\N{NO-BREAK SPACE}% (40.2 to 52.0)"
    assert formatting.saving(0.471, math.nan, math.nan) == "47.1\N{NO-BREAK SPACE}%"
    assert formatting.saving(0.471, 0.402, math.inf) == "47.1\N{NO-BREAK SPACE}% (> 40.2)"
    assert formatting.saving(0.471, -math.inf, 0.52) == "47.1\N{NO-BREAK SPACE}% (< 52.0)"
    assert formatting.saving(0.471, -math.inf, math.inf) == "47.1\N{NO-BREAK SPACE}% (no limits)"
    assert formatting.saving(0.0, -math.inf, 0.052, "<") == "< 0.0\N{NO-BREAK SPACE}% (< 5.2)"
    assert formatting.saving(0.6, 0.6, math.inf, ">") == "> 60.0\N{NO-BREAK SPACE}%"  # its interval says the same
    assert formatting.saving(math.nan, math.nan, math.nan) == "–"
    assert (formatting.ratio(0.529), formatting.ratio(math.nan)) == ("0.53", "–")


def test_p_values() -> None:
    assert [formatting.p_value(p) for p in (math.nan, 0.0004, 0.0123, 1.0)] == ["–", "< 0.001", "0.012", "1.000"]
    assert formatting.p_value(0.04976) == "0.0498"  # and not 0.050, beside a claim


def test_settings() -> None:
    assert formatting.settings({"lr": 0.0012345, "init": "average", "steps": 12345, "tied": True, "ends": [1, 2]}) == (
        "lr = 0.001234, init = average, steps = 12345, tied = true, ends = [1, 2]"
    )
    assert formatting.settings({}) == "none"


def test_durations_and_counts() -> None:
    assert [formatting.duration(seconds) for seconds in (0, 90, 3690)] == ["0:00", "1:30", "1:01:30"]
    assert [formatting.counted(number, "run") for number in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
