"""The palette: text and lines are readable in both colour schemes, and methods are told apart without their colours."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.colors import to_rgb

from growbench import registry
from growbench.report import looks
from growbench.report.looks import CHIPS, GREY, INK, METHODS, PAPER, SOFT, Shade

TEXT, LINE = 4.5, 3.0  # WCAG 2.2, success criteria 1.4.3 and 1.4.11
SCHEMES = pytest.mark.parametrize("scheme", Shade._fields)


def luminance(colour: str) -> float:
    """WCAG's relative luminance of an sRGB colour."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@SCHEMES
def test_text_and_lines_stand_out_from_the_paper(scheme: str) -> None:
    """Methods' names are written in their colours."""
    for shade in (INK, SOFT, *METHODS):
        assert contrast(getattr(shade, scheme), getattr(PAPER, scheme)) >= TEXT, shade
    assert contrast(getattr(GREY, scheme), getattr(PAPER, scheme)) >= LINE


@SCHEMES
def test_chips_are_readable(scheme: str) -> None:
    for chip in CHIPS.values():
        assert contrast(getattr(chip.ink, scheme), getattr(chip.ground, scheme)) >= TEXT, chip.text


def test_every_colour_is_a_variable_in_both_schemes() -> None:
    light, dark = looks.css().split("@media")
    for name, shade in looks.VARIABLES.items():
        assert f"--{name}:{shade.light};" in light and f"--{name}:{shade.dark};" in dark
    assert len(looks.VARIABLE_OF) == len(looks.VARIABLES)  # figures are drawn in light colours, which tell the variable
    assert "print" not in dark and "screen" in dark  # paper is light


def test_methods_are_told_apart_in_grey() -> None:
    found = looks.looks(registry.built_in())
    assert len(found) == len(registry.built_in()) > 30
    for one, other in itertools.combinations(found.values(), 2):
        assert (one.marker, one.dashes) != (other.marker, other.dashes)
        assert (one.shade, one.dashes) != (other.shade, other.dashes)
    assert {look.glyph for look in found.values()} == {*looks.MARKERS.values(), "●"}
