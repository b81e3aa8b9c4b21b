"""What all figures share: a method's look, room for text in a wide and a narrow cut, labels at the lines themselves."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from growbench import registry
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import Scale, percent
from growbench.registry import SCRATCH
from growbench.report import sheets

GREY, INK = "#4d4d4d", "#222222"
# Okabe and Ito's palette without black and yellow, the indigo and the wine of Paul Tol's muted one, and his dark brown:
# apart from one another, and from scratch's ink, in deuteranopia and protanopia too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#661100")
MARKERS = {  # the second round of colours carries the second marker
    "": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "p": "⬟", "*": "★", "h": "⬢", "d": "♦", "H": "⬣",
}  # fmt: skip
FIRST = (  # built-in methods in the order in which they came: a later one takes no earlier one's look
    "bert2bert", "direct_copy", "interpolation", "ki", "ligo", "mslt", "net2net", "progressive_net", "random_source",
    "scratch_restart", "scratch_short", "shuffled_source", "stackbert",
)  # fmt: skip
WIDE, NARROW = 8.6, 4.3  # inches
TITLES = {Unit.FLOPS: "Training FLOPs", Unit.SECONDS: "Wall time"}
LEDGER_TITLES = {Ledger.REUSE: "reuse ledger: source model free", Ledger.BUILD: "build ledger: source model charged"}
PARAMETERS: dict[str, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.8,
    "svg.hashsalt": "growbench",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a method's name may hold a dollar sign
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn, in every figure."""

    colour: str
    marker: str = ""

    @property
    def dot(self) -> str:
        return self.marker or "o"

    @property
    def glyph(self) -> str:
        """The marker as text."""
        return MARKERS[self.marker]

    @property
    def line(self) -> str:
        return f"-{self.marker}"

    @property
    def text(self) -> str:
        """The colour, dark enough to read as text on white."""
        red, green, blue = to_rgb(self.colour)
        return to_hex((0.72 * red, 0.72 * green, 0.72 * blue))


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for every method: scratch in ink, the others in turn; when colours repeat, they carry another marker.

    Built-in methods come first, present or not, so that each looks the same in every report; then plugins by name.
    """
    others = [*FIRST, *sorted(set(registry.built_in()) - {*FIRST, SCRATCH})]
    others += sorted(set(methods) - {*others, SCRATCH})
    markers = list(MARKERS)
    found = {
        method: Look(COLOURS[index % len(COLOURS)], markers[index // len(COLOURS) % len(markers)])
        for index, method in enumerate(others)
    }
    return {SCRATCH: Look(INK), **found}


# Layout: margins in inches, so that text keeps its room in both cuts.


def panels(
    width: float, heights: Sequence[float], left: float, right: float, above: float = 0.36, below: float = 0.55
) -> tuple[Figure, list[Axes]]:
    """A figure of panels below one another, each `heights[i]` inches high, with room for a title above and an axis below."""
    total = sum(heights) + len(heights) * (above + below)
    figure = Figure(figsize=(width, total))
    FigureCanvasAgg(figure)
    axes, top = [], total
    for height in heights:
        top -= above + height
        axes.append(figure.add_axes((left / width, top / total, (width - left - right) / width, height / total)))
        top -= below
    return figure, axes


def labels(comparison: Comparison) -> list[str]:
    """The methods as a reader sees them."""
    return [comparison.label(method) for method in comparison.methods]


def brief(label: str) -> str:
    """A method's label, its middle left out where it would take too much of a figure."""
    return label if len(label) <= 18 else f"{label[:9]}…{label[-8:]}"


def room(labels: Iterable[str]) -> float:
    """The inches that the longest of the methods' labels takes beside an axis."""
    return 0.35 + 0.08 * max(len(brief(label)) for label in labels)


LINE = 11.5  # points between two labels


def high_enough(height: float, labels: Sequence[str]) -> float:
    """A panel's height in inches, more where the methods' labels would not fit below one another."""
    return max(height, (len(labels) + 1) * LINE / 72)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Look]]) -> None:
    """Write each line's name right of the axes at the height of its end (x, y), pushed apart where names would overlap.

    A line whose end is not known, as that of a method without seconds that compare, gets no name.
    """
    ends = sorted((end for end in ends if np.isfinite(end[:2]).all()), key=lambda end: end[1])
    if not ends:
        return
    box = axes.get_window_extent()
    width, height = (side / axes.figure.dpi * 72 for side in (box.width, box.height))  # points
    gap = min(LINE / height, 1 / len(ends))
    wanted = axes.transAxes.inverted().transform(axes.transData.transform([(x, y) for x, y, _, _ in ends]))[:, 1]
    offsets = gap * np.arange(len(ends))
    # The nearest heights that keep `gap` between neighbours: least squares in order, inside the axes.
    spread = np.clip(isotonic_regression(wanted - offsets).x, 0, 1 - offsets[-1]) + offsets
    for (x, y, text, look), place in zip(ends, spread, strict=True):
        axes.annotate(
            brief(text),
            xy=(x, y),
            xytext=(1 + 22 / width, place),
            textcoords="axes fraction",
            va="center",
            color=look.text,
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linewidth": 0.6,
                "patchA": None,
                "relpos": (0, 0.5),
                "shrinkA": 10 if look.marker else 3,
                "shrinkB": 0,
            },
            annotation_clip=False,
        )
        if look.marker:
            axes.plot(
                1 + 16 / width, place, look.marker, color=look.colour, markersize=4, transform=axes.transAxes, clip_on=False
            )


def name_rows(axes: Axes, labels: Sequence[str], drawn: Sequence[Look]) -> None:
    """Methods from top to bottom along the left edge, in their colours."""
    axes.set_yticks(range(len(labels)), [brief(label) for label in reversed(labels)])
    axes.tick_params(axis="y", length=0, pad=7)
    for label, look in zip(axes.get_yticklabels(), reversed(drawn), strict=True):
        label.set_color(look.text)


def title(axes: Axes, text: str) -> None:
    """A panel's title, from the figure's left edge, so that it has the whole width."""
    box = axes.get_position()
    axes.set_title(text, x=(0.015 - box.x0) / box.width, pad=9)


class ScaledLocator(MaxNLocator):
    """Ticks at round numbers of the scale's unit, not of FLOPs or seconds."""

    def __init__(self, scale: Scale) -> None:
        super().__init__(6, steps=[1, 2, 5, 10])
        self.size = scale.size

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [tick * self.size for tick in super().tick_values(vmin / self.size, vmax / self.size)]


def human_axis(axes: Axes, scale: Scale, log: Sequence[float] = ()) -> None:
    """Costs below the axes, in the scale's unit. `log`: on a logarithmic axis, where in a decade the ticks stand."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost / scale.size:g}"))
    if log:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=log))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(ScaledLocator(scale))


def percent_axis(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, 0)))


def target_line(axes: Axes, target: float) -> None:
    axes.axhline(target, color=INK, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"target loss {target:.3f}", (0.01, target), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", fontsize=8.5, zorder=7,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


def last_seen(axes: Axes, xs: pd.Series, ys: pd.Series) -> list[tuple[float, float]]:
    """Where a line ends or leaves the axes' heights for good: one point, or none if it is never seen."""
    low, high = axes.get_ylim()
    return [(x, y) for x, y in zip(xs, ys, strict=True) if low <= y <= high][-1:]


class Cuts(NamedTuple):
    """A figure's SVG for wide and for narrow screens."""

    wide: bytes
    narrow: bytes


def save(name: str, data: pd.DataFrame, draw: Callable[[pd.DataFrame, float], Figure], out: Path) -> Cuts:
    """Write a figure to `out` as CSV, PNG and SVG."""
    sheets.write(data, out / f"{name}.csv")
    with style.context(["default", PARAMETERS]):
        wide = draw(data, WIDE)
        wide.savefig(out / f"{name}.png", dpi=160, metadata={"Software": None})
        cuts = Cuts(svg(wide), svg(draw(data, NARROW)))
    (out / f"{name}.svg").write_bytes(cuts.wide)
    return cuts


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time, with coordinates to a hundredth of a point."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    short = re.sub(rb"\s*\n\s*", b"\n", buffer.getvalue())
    return re.sub(rb'(?<= d=")[^"]+', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]), short)
