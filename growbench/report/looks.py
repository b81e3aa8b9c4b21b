"""How methods look, and the colours of both colour schemes: one table, from which pages take their CSS variables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from growbench import registry
from growbench.analysis.estimator import Verdict
from growbench.registry import SCRATCH


class Shade(NamedTuple):
    """A colour on a light and on a dark page."""

    light: str
    dark: str


# Nine colours that are apart from one another, and from the ink, in deuteranopia and protanopia too, and that read as text on the
# paper of their scheme (contrast 4.5 or more).
METHODS = (
    Shade("#2f74b5", "#b4d1ff"),  # blue
    Shade("#ca4a0e", "#e85d5d"),  # vermilion
    Shade("#0f7f4c", "#67e8a0"),  # green
    Shade("#86197a", "#cf5fc0"),  # wine
    Shade("#64390b", "#e5a139"),  # brown
    Shade("#2323cf", "#96a8ff"),  # ultramarine
    Shade("#8f6b82", "#be8fa9"),  # mauve
    Shade("#35200e", "#f4ec6a"),  # umber
    Shade("#1c6be6", "#4f78ff"),  # azure
)
PAPER, INK, SOFT, GREY, RULE = (
    Shade("#ffffff", "#15181d"),
    Shade("#1f2328", "#e6e8eb"),
    Shade("#59606a", "#a3abb5"),  # text that stands back
    Shade("#868e96", "#7b838d"),  # lines that stand back
    Shade("#dde1e6", "#333a43"),  # rules and grids
)


class Chip(NamedTuple):
    """A verdict's chip: what it says, and the colours of its ground and its text."""

    text: str
    ground: Shade
    ink: Shade


CHIPS = {
    Verdict.SAVES: Chip("saves", Shade("#d9f0e1", "#153b26"), Shade("#0b5a34", "#8fe3b3")),
    Verdict.EVEN: Chip("not told apart", Shade("#eceef1", "#2a3038"), Shade("#454c55", "#c3cad2")),
    Verdict.COSTS_MORE: Chip("costs more", Shade("#fbe0dc", "#4a1d1d"), Shade("#8c1d18", "#ffb4ab")),
    Verdict.WORSE: Chip("cheaper, worse", Shade("#fbecc8", "#42330d"), Shade("#6b4a00", "#f2cf7a")),
    Verdict.BETTER: Chip("better, dearer", Shade("#dde9fb", "#1b3354"), Shade("#1a4a8a", "#a9cbff")),
    Verdict.NONE: Chip("no verdict", Shade("#f5f6f8", "#20252b"), Shade("#565d67", "#a9b1bb")),
}


def _variables() -> dict[str, Shade]:
    base = {"paper": PAPER, "ink": INK, "soft": SOFT, "grey": GREY, "rule": RULE}
    methods = {f"m-{slot}": shade for slot, shade in enumerate(METHODS)}
    chips = {f"chip-{verdict.name.lower()}": chip.ground for verdict, chip in CHIPS.items()}
    inks = {f"chip-{verdict.name.lower()}-ink": chip.ink for verdict, chip in CHIPS.items()}
    return {**base, **methods, **chips, **inks}


VARIABLES = _variables()  # by the CSS variable's name without its dashes
VARIABLE_OF = {shade.light: f"var(--{name})" for name, shade in VARIABLES.items()}  # figures are drawn in the light scheme


def css() -> str:
    """The CSS variables of both schemes. Paper is light."""
    light, dark = (
        "".join(f"--{name}:{shade[scheme]};" for name, shade in VARIABLES.items()) for scheme in range(len(Shade._fields))
    )
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


MARKERS = {  # of matplotlib, and as text
    "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "p": "⬟", "*": "★", "h": "⬢", "d": "♦",
}  # fmt: skip
DASHES = ((), (6.0, 2.0), (7.0, 1.8, 1.6, 1.8), (3.2, 1.6))  # on and off, in line widths; the first is a full line
FIRST = (  # built-in methods in the order in which they came: a later one takes no earlier one's look
    "bert2bert", "ligo", "stackbert", "ki", "scratch_restart", "mslt", "shuffled_source", "random_source", "scratch_short",
    "net2net", "direct_copy", "interpolation", "progressive_net",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How one method is drawn, in every figure. A marker "" is none."""

    shade: Shade
    marker: str = "o"
    dashes: tuple[float, ...] = ()

    @property
    def colour(self) -> str:
        """In the light scheme; readable as text."""
        return self.shade.light

    @property
    def variable(self) -> str:
        """The colour in either scheme, as CSS."""
        return VARIABLE_OF[self.shade.light]

    @property
    def glyph(self) -> str:
        """The marker as text."""
        return MARKERS.get(self.marker, "●")

    @property
    def linestyle(self) -> tuple[float, tuple[float, ...] | None]:
        """As matplotlib has it."""
        return (0, self.dashes or None)


REST = Look(GREY, marker="")  # of methods that a figure does not name


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for every method: scratch a full line in ink, the others in turn.

    Of the first 36 no two have the same colour and dashes, or the same marker and dashes. Built-in methods come first, present or
    not, so that each looks the same in every report; then plugins by name.
    """
    others = list(_built_in())
    others += sorted(set(methods) - {*others, SCRATCH})
    markers = list(MARKERS)
    found = {
        method: Look(METHODS[index % len(METHODS)], markers[index % len(markers)], DASHES[index // len(METHODS) % len(DASHES)])
        for index, method in enumerate(others)
    }
    return {SCRATCH: Look(INK), **found}


@cache
def _built_in() -> tuple[str, ...]:
    """The built-in methods in their turn, listed once: figures ask for looks hundreds of times."""
    return (*FIRST, *sorted(set(registry.built_in()) - {*FIRST, SCRATCH}))
