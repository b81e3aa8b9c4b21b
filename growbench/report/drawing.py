"""What all figures share: room for text in a wide and a narrow cut, labels at the lines themselves, the files of a figure."""

from __future__ import annotations

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
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import Scale, percent
from growbench.report import inline, sheets
from growbench.report.inline import Drawn
from growbench.report.looks import GREY, INK, PAPER, RULE, SOFT, Look

WIDE, NARROW = 11.4, 4.3  # inches; a page shows the wide cut at up to 1113 pixels, the narrow one on phones
TITLES = {Unit.FLOPS: "Training FLOPs", Unit.SECONDS: "Wall time"}
LEDGER_TITLES = {Ledger.REUSE: "Reuse ledger: source model free", Ledger.BUILD: "Build ledger: source model charged"}
SMALL = 8.5  # points
PARAMETERS: dict[str, Any] = {
    "font.size": inline.FONT_SIZE,
    "axes.facecolor": "none",
    "axes.edgecolor": GREY.light,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": SOFT.light,
    "axes.labelsize": 9,
    "axes.titlecolor": INK.light,
    "grid.color": RULE.light,
    "grid.linewidth": 0.6,
    "text.color": INK.light,
    "xtick.color": GREY.light,
    "ytick.color": GREY.light,
    "xtick.labelcolor": SOFT.light,
    "ytick.labelcolor": SOFT.light,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.axisbelow": True,
    "svg.hashsalt": "growbench",
    "svg.fonttype": "none",  # text stays text
    "path.simplify_threshold": 0.4,
    "text.parse_math": False,  # a method's name may hold a dollar sign
}


# Layout: in inches, so that text keeps its room in both cuts.


def is_wide(width: float) -> bool:
    """Whether panels have room beside one another."""
    return width >= 0.7 * WIDE


@dataclass(frozen=True)
class Frame:
    """The room around a figure's panels. `inner`: between panels beside one another, for the ticks of the next."""

    left: float
    right: float
    inner: float = 0.5
    above: float = 0.36
    below: float = 0.55


def panels(width: float, heights: Sequence[float], columns: int, frame: Frame) -> tuple[Figure, list[Axes]]:
    """A figure with rows of panels, `heights[i]` inches high, by row and column. In the narrow cut all are below one another.

    Each panel has room for a title above and an axis below.
    """
    across = columns if is_wide(width) else 1
    tall = list(heights) if across == columns else [height for height in heights for _ in range(columns)]
    total = sum(tall) + len(tall) * (frame.above + frame.below)
    each = (width - frame.left - frame.right * across - frame.inner * (across - 1)) / across
    figure = Figure(figsize=(width, total))
    FigureCanvasAgg(figure)
    axes, top = [], total
    for height in tall:
        top -= frame.above + height
        for column in range(across):
            left = frame.left + column * (each + frame.right + frame.inner)
            axes.append(figure.add_axes((left / width, top / total, each / width, height / total)))
        top -= frame.below
    return figure, axes


def labels(comparison: Comparison) -> list[str]:
    """The methods as a reader sees them."""
    return [comparison.label(method) for method in comparison.methods]


def brief(label: str) -> str:
    """A method's label, its middle left out where it would take too much of a figure."""
    return label if len(label) <= 18 else f"{label[:9]}…{label[-8:]}"


def room(labels: Iterable[str]) -> float:
    """The inches that the longest of the methods' labels takes beside an axis."""
    return 0.45 + 0.08 * max((len(brief(label)) for label in labels), default=0)


LINE = 11.5  # points between two labels


def high_enough(height: float, labels: Sequence[str]) -> float:
    """A panel's height in inches, more where the methods' labels would not fit below one another."""
    return max(height, (len(labels) + 1) * LINE / 72)


class End(NamedTuple):
    """Where a line ends, and the method that it is of."""

    x: float
    y: float
    method: str
    label: str
    look: Look


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write each line's name right of the axes at the height of its end, pushed apart where names would overlap.

    A line whose end is not known, as that of a method without seconds that compare, gets no name.
    """
    ends = sorted((end for end in ends if np.isfinite(end[:2]).all()), key=lambda end: end.y)
    if not ends:
        return
    box = axes.get_window_extent()
    width, height = (side / axes.figure.dpi * 72 for side in (box.width, box.height))  # points
    gap = min(LINE / height, 1 / len(ends))
    wanted = axes.transAxes.inverted().transform(axes.transData.transform([(end.x, end.y) for end in ends]))[:, 1]
    offsets = gap * np.arange(len(ends))
    # The nearest heights that keep `gap` between neighbours: least squares in order, inside the axes.
    spread = np.clip(isotonic_regression(wanted - offsets).x, 0, 1 - offsets[-1]) + offsets
    for end, place in zip(ends, spread, strict=True):
        leader = {"arrowstyle": "-", "color": GREY.light, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 11, "shrinkB": 2}
        name = axes.annotate(
            brief(end.label),
            xy=(end.x, end.y),
            xytext=(1 + 26 / width, place),
            textcoords="axes fraction",
            va="center",
            color=end.look.colour,
            arrowprops={**leader, "patchA": None},
            annotation_clip=False,
        )
        (dot,) = axes.plot(
            1 + 19 / width, place, end.look.marker, color=end.look.colour, markersize=4.5, transform=axes.transAxes, clip_on=False
        )
        inline.tag((name, dot), end.method)


class Name(NamedTuple):
    """A method's name as figures write it. `paper`: the address that it links to."""

    method: str
    label: str
    look: Look
    paper: str | None = None


def write_name(axes: Axes, at: float, height: float, name: Name) -> None:
    """The marker and the name, from a share of the axes' width on, at a height of the data."""
    across = axes.get_yaxis_transform()
    marked = at + 0.1 / inches_wide(axes)
    (dot,) = axes.plot(
        marked, height, name.look.marker, transform=across, clip_on=False, color=name.look.colour, markersize=6, zorder=3
    )
    text = axes.text(
        marked + 0.11 / inches_wide(axes), height, brief(name.label), transform=across, va="center", color=name.look.colour,
        url=name.paper,
    )  # fmt: skip
    inline.tag((dot, text), name.method)


def inches_wide(axes: Axes) -> float:
    return float(axes.get_window_extent().width / axes.figure.dpi)


def figure_width(axes: Axes) -> float:
    """In inches."""
    return inches_wide(axes) / float(axes.get_position().width)


def left_edge(axes: Axes) -> float:
    """The figure's left edge, in shares of the axes' width."""
    box = axes.get_position()
    return -float(box.x0 / box.width)


def last_seen(axes: Axes, xs: pd.Series, ys: pd.Series) -> list[tuple[float, float]]:
    """Where a line ends or leaves the axes' heights for good: one point, or none if it is never seen."""
    low, high = axes.get_ylim()
    return [(x, y) for x, y in zip(xs, ys, strict=True) if low <= y <= high][-1:]


def title(axes: Axes, text: str) -> None:
    """In the narrow cut from the figure's left edge, so that it has the whole width."""
    axes.set_title(text, pad=9, x=0 if is_wide(figure_width(axes)) else left_edge(axes) + 0.03 / inches_wide(axes))


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
    axes.axhline(target, color=INK.light, linewidth=0.8, linestyle=(0, (1.5, 2.5)), zorder=1)
    axes.annotate(
        f"target loss {target:.3f}", (0.01, target), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", fontsize=SMALL, zorder=7,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": PAPER.light, "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def line(axes: Axes, xs: pd.Series, ys: pd.Series, look: Look, **options: Any) -> Line2D:
    """A method's line with its dashes, and its marker unless `options` say otherwise."""
    options = {"linewidth": 1.6, "marker": look.marker, "markersize": 4.5, "linestyle": look.linestyle, **options}
    (drawn,) = axes.plot(xs, ys, color=look.colour, **options)
    return drawn


class Cuts(NamedTuple):
    """A figure for wide and for narrow screens."""

    wide: Drawn
    narrow: Drawn


def save(name: str, data: pd.DataFrame, draw: Callable[[pd.DataFrame, float], Figure], out: Path) -> Cuts:
    """Write a figure to `out` as CSV, PNG and SVG."""
    sheets.write(data, out / f"{name}.csv")
    with style.context(["default", PARAMETERS]):
        wide = draw(data, WIDE)
        wide.savefig(out / f"{name}.png", dpi=144, metadata={"Software": None})
        whole = inline.svg(wide)
        initials = "".join(word[0] for word in name.split("_"))  # what ids in the page begin with
        cuts = Cuts(inline.drawn(whole, f"{initials}w"), inline.drawn(inline.svg(draw(data, NARROW)), f"{initials}n"))
    (out / f"{name}.svg").write_bytes(whole)
    return cuts
