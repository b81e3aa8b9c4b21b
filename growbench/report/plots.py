"""The figures: one colour a method throughout, labels at the lines themselves, each figure in a wide and a narrow cut."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from growbench import analysis, registry
from growbench.analysis import ACCOUNTS, LEDGERS, SCRATCH, UNITS, Comparison
from growbench.report import units
from growbench.report.units import Scale

GREY, INK = "#4d4d4d", "#222222"
# Okabe and Ito's palette without black and yellow, the indigo and the wine of Paul Tol's muted one, and his dark brown:
# apart from one another, and from scratch's ink, in deuteranopia and protanopia too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#661100")
MARKERS = {"": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}  # the second round of colours carries the second marker
WIDE, NARROW = 8.6, 4.3  # inches
TITLES = {"flops": "Training FLOPs", "seconds": "Wall time"}
LEDGER_TITLES = {"reuse": "reuse ledger: source model free", "build": "build ledger: source model charged"}
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
    own = sorted(set(registry.built_in()) - {SCRATCH})
    others = [*own, *sorted(set(methods) - {*own, SCRATCH})]
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


def brief(label: str) -> str:
    """A method's label, its middle left out where it would take too much of a figure."""
    return label if len(label) <= 18 else f"{label[:9]}…{label[-8:]}"


def room(comparison: Comparison) -> float:
    """The inches that the longest of the methods' labels takes beside an axis."""
    return 0.35 + 0.08 * max(len(brief(comparison.label(method))) for method in comparison.methods)


LINE = 11.5  # points between two labels


def high_enough(height: float, comparison: Comparison) -> float:
    """A panel's height in inches, more where the methods' labels would not fit below one another."""
    return max(height, (len(comparison.methods) + 1) * LINE / 72)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Look]]) -> None:
    """Write each line's name right of the axes at the height of its end (x, y), pushed apart where names would overlap."""
    if not ends:
        return
    ends = sorted(ends, key=lambda end: end[1])
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


def name_rows(axes: Axes, methods: Sequence[str], comparison: Comparison, drawn: Mapping[str, Look]) -> None:
    """Methods from top to bottom along the left edge, in their colours."""
    upwards = list(reversed(methods))
    axes.set_yticks(range(len(methods)), [brief(comparison.label(method)) for method in upwards])
    axes.tick_params(axis="y", length=0, pad=7)
    for label, method in zip(axes.get_yticklabels(), upwards, strict=True):
        label.set_color(drawn[method].text)


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


def human_axis(axes: Axes, scale: Scale, log: bool = False) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost / scale.size:g}"))
    if log:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(ScaledLocator(scale))


def percent_axis(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda share, _: units.percent(share, 0)))


# Loss and accuracy against cost


def curves(unit: str, measure: str = "val_loss") -> Callable[[Comparison, pd.DataFrame, float], Figure]:
    """How to draw validation loss or accuracy against what was spent: mean line, band over seeds, growth events, target."""

    def draw(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
        height = high_enough(4.1 if width == WIDE else 3.6, comparison)
        figure, (axes,) = panels(width, [height], 0.6 if measure == "val_loss" else 0.75, 0.25 + room(comparison), above=0.12)
        log = unit == "flops"
        most = data[unit].max() or 1.0
        scale = units.scale(most, unit)
        shown = data[data[unit] >= 0.02 * most]
        if measure == "val_loss":
            _loss_limits(axes, shown, data, comparison.target)
            axes.set_ylabel("validation loss (nats)")
        else:
            _accuracy_limits(axes, shown)
            axes.set_ylabel("validation accuracy")
        axes.set_xlim(0.02 * most if log else 0, 1.02 * most)
        if log:
            axes.set_xscale("log")
        human_axis(axes, scale, log)
        drawn = looks(comparison.methods)
        ends = []
        for (method, _, status), curve in data.groupby(["method", "seeds", "status"], sort=False):
            look, name = drawn[str(method)], comparison.label(str(method))
            _curve(axes, curve, unit, measure, look, finished=status == "finished")
            if status == "finished":
                ends += [(x, y, name, look) for x, y in _last_seen(axes, curve[unit], curve[measure])]
        if measure == "val_loss":
            _target(axes, comparison, unit, drawn)
        label_ends(axes, ends)
        axes.set_xlabel(f"{TITLES[unit]} ({scale.name}), source model free" + (", log scale" if log else ""), loc="left")
        return figure

    return draw


def _last_seen(axes: Axes, xs: pd.Series, ys: pd.Series) -> list[tuple[float, float]]:
    """Where a line ends or leaves the axes' heights for good: one point, or none if it is never seen."""
    low, high = axes.get_ylim()
    return [(x, y) for x, y in zip(xs, ys, strict=True) if low <= y <= high][-1:]


def _loss_limits(axes: Axes, shown: pd.DataFrame, data: pd.DataFrame, target: float) -> None:
    """From just below the best loss to the highest one shown, but never above scratch's start: a diverging run is cut off."""
    start = data.loc[data["method"] == SCRATCH, "val_loss"].max()
    top = np.nanmin([shown["val_loss"].replace(np.inf, np.nan).max(), start])
    low = min(shown["val_loss_low"].min(), target)
    axes.set_ylim(low - 0.06 * (top - low), top + 0.03 * (top - low))


def _accuracy_limits(axes: Axes, shown: pd.DataFrame) -> None:
    low, high = shown["val_accuracy_low"].min(), shown["val_accuracy_high"].max()
    axes.set_ylim(low - 0.03 * (high - low), high + 0.06 * (high - low))
    percent_axis(axes.yaxis)


def _curve(axes: Axes, curve: pd.DataFrame, unit: str, measure: str, look: Look, finished: bool) -> None:
    values = curve[measure]
    scored, unscored = values.where(curve["scored"]), values.where(_touches_unscored(curve["scored"]))
    width = 1.7 if finished else 0.8
    every = max(len(curve) // 8, 1)
    axes.plot(curve[unit], unscored, color=look.colour, linewidth=0.8 * width, linestyle=(0, (1, 1.2)))
    axes.plot(curve[unit], scored, look.line, color=look.colour, linewidth=width, markersize=4, markevery=every)
    if " " in curve["seeds"].iloc[0]:
        low, high = curve[f"{measure}_low"], curve[f"{measure}_high"]
        axes.fill_between(curve[unit], low, high, color=look.colour, alpha=0.15, linewidth=0)
    grown = curve[curve["phase"].ne(curve["phase"].shift()) & (curve.index != curve.index[0])]
    axes.plot(grown[unit], grown[measure], linestyle="", marker="|", markersize=13, markeredgewidth=1.3, color=look.colour)
    if not finished:
        axes.plot(curve[unit].iloc[-1], values.iloc[-1], marker="x", color=look.colour, markersize=7)


def _touches_unscored(scored: pd.Series) -> pd.Series:
    """Unscored evaluations, and the one after each, so that the dotted line joins the full one."""
    unscored = ~scored.astype(bool)
    return unscored | unscored.shift(1, fill_value=False)


def _target(axes: Axes, comparison: Comparison, unit: str, drawn: Mapping[str, Look]) -> None:
    axes.axhline(comparison.target, color=INK, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"target {comparison.target:.3f}", (0.01, comparison.target), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", fontsize=8.5,
    )  # fmt: skip
    for row in analysis.records(comparison.savings):
        if np.isfinite(row[f"{unit}_to_target_reuse"]):
            look = drawn[row["method"]]
            axes.plot(
                row[f"{unit}_to_target_reuse"], comparison.target, look.dot, color=look.colour,
                markersize=7, markeredgecolor="white", zorder=5, clip_on=False,
            )  # fmt: skip


# Savings


def savings(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """Savings over scratch with their intervals: full dots with the source free, open ones with the source charged."""
    rows = [row for row in analysis.records(data) if row["method"] != SCRATCH] or analysis.records(data)
    methods = [row["method"] for row in rows]
    height = 0.46 * len(rows) + 0.1
    figure, both = panels(width, [height, height], room(comparison), 2.2 if width == WIDE else 1.35, below=0.42)
    drawn = looks(comparison.methods)
    for axes, unit in zip(both, UNITS, strict=True):
        _saving_limits(axes, data, comparison.outcomes, unit)
        for row, place in zip(rows, reversed(range(len(rows))), strict=True):
            seeds = comparison.outcomes[comparison.outcomes["method"] == row["method"]]
            for ledger, offset in (("reuse", 0.17), ("build", -0.17)):
                column = f"{unit}_saving_{ledger}"
                _saving_row(axes, row, column, seeds[column], place + offset, drawn[row["method"]])
                text = _saving_text(row, column, short=width != WIDE)
                axes.annotate(
                    f"{ledger}  {text}", (1.02, place + offset), xycoords=("axes fraction", "data"), va="center", fontsize=8
                )
            axes.plot(row[f"published_{unit}_saving"], place + 0.17, "|", color=INK, markersize=12, markeredgewidth=1.4)
        axes.axvline(0, color=GREY, linewidth=1.2)
        axes.set_ylim(-0.55, len(rows) - 0.45)
        name_rows(axes, methods, comparison, drawn)
        axes.spines["left"].set_visible(False)
        percent_axis(axes.xaxis)
        axes.tick_params(axis="x", labelsize=9.5 if width == WIDE else 7.5)
        axes.xaxis.set_major_locator(MaxNLocator(8 if width == WIDE else 2, steps=[1, 2, 5, 10]))
        title(axes, TITLES[unit] + " saved against scratch")
    return figure


def _saving_limits(axes: Axes, data: pd.DataFrame, outcomes: pd.DataFrame, unit: str) -> None:
    """Savings up to 100 %; what costs more than twice scratch is drawn at the edge, with its figure beside it."""
    tables = (table.filter(regex=f"^(published_)?{unit}_saving").to_numpy().ravel() for table in (data, outcomes))
    values = np.concatenate([*tables, [0.0, 0.1]])
    low, high = max(np.nanmin(values), -1.0), np.nanmax(values)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _saving_row(axes: Axes, row: Mapping[str, Any], column: str, seeds: pd.Series, place: float, look: Look) -> None:
    left = axes.get_xlim()[0]
    ends = np.maximum([row[f"{column}_low"], row[f"{column}_high"]], left)
    face = "white" if column.endswith("build") else look.colour
    axes.plot(np.maximum(seeds, left), [place] * len(seeds), "o", color=look.colour, markersize=3, alpha=0.45)
    axes.plot(ends, [place] * 2, color=look.colour, linewidth=1.6)
    mean = np.maximum(row[column], left)
    axes.plot(mean, place, look.dot, color=look.colour, markerfacecolor=face, markersize=7.5, clip_on=False)


def _saving_text(row: Mapping[str, Any], column: str, short: bool) -> str:
    """The saving with its interval; in the narrow cut, where that has no room, without."""
    text = units.outcome(row["reached"], row["seeds"], row[column], row[f"{column}_low"], row[f"{column}_high"])
    return text.partition(" (")[0] if short else text


def savings_curve(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """The FLOPs saving at every loss that scratch passed, until the target."""
    height = high_enough(2.6 if width == WIDE else 2.3, comparison)
    figure, both = panels(width, [height] * 2, 0.75, 0.25 + room(comparison))
    drawn = looks(comparison.methods)
    for axes, ledger in zip(both, LEDGERS, strict=True):
        rows = data[data["ledger"] == ledger]
        if len(rows):
            axes.set_xlim(data["loss"].max(), min(data["loss"].min(), comparison.target))
        low, high = (max(rows["low"].min(), -1.0), rows["high"].max()) if len(rows) else (0.0, 1.0)
        axes.set_ylim(min(low, 0) - 0.05, min(max(high, 0.1) + 0.05, 1))
        ends = []
        for method, curve in rows.groupby("method"):
            look = drawn[str(method)]
            axes.plot(curve["loss"], curve["saving"], look.line, color=look.colour, linewidth=1.7, markersize=4, markevery=10)
            axes.fill_between(curve["loss"], curve["low"], curve["high"], color=look.colour, alpha=0.15, linewidth=0)
            name = comparison.label(str(method))
            ends += [(x, y, name, look) for x, y in _last_seen(axes, curve["loss"], curve["saving"])]
        axes.axhline(0, color=GREY, linewidth=1.2)
        label_ends(axes, [*ends, (axes.get_xlim()[1], 0.0, SCRATCH, drawn[SCRATCH])])
        percent_axis(axes.yaxis)
        title(axes, "FLOPs saved, " + LEDGER_TITLES[ledger])
        axes.set_xlabel("validation loss (nats), training from left to right", loc="left")
    return figure


# Costs

# An account's strength of the method's colour, and its hatching.
FILLS = {"source": (0.0, ""), "growth": (1.0, ""), "operator": (0.35, "///"), "teacher": (0.35, "xxx"), "train": (0.75, "")}


def cost_breakdown(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """What each method's whole run cost, stacked by account; the source model's own training, outlined, comes first."""
    methods = [method for method in comparison.methods if method in set(data["method"])]
    height = 0.36 * len(methods) + 0.1
    figure, both = panels(width, [height, height], room(comparison), 0.6)
    drawn = looks(comparison.methods)
    for axes, unit in zip(both, UNITS, strict=True):
        costs = {(row["method"], row["account"]): row["cost"] for row in analysis.records(data[data["unit"] == unit])}
        scale = units.scale(max((sum(costs[method, account] for account in ACCOUNTS) for method in methods), default=0.0), unit)
        for place, method in enumerate(reversed(methods)):
            total = 0.0
            for account in ACCOUNTS:
                if cost := costs[method, account]:
                    axes.barh(place, cost, left=total, height=0.62, **_fill(account, drawn[method].colour))
                    total += cost
            axes.annotate(scale.text(total), (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        name_rows(axes, methods, comparison, drawn)
        title(axes, f"{TITLES[unit]} of a whole run ({scale.name})")
        human_axis(axes, scale)
    paid = set(data.loc[data["cost"] > 0, "account"])
    patches = [Patch(label=account, **_fill(account, GREY)) for account in ACCOUNTS if account in paid]
    figure.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0.1 / width, 0), ncols=len(patches), frameon=False,
        fontsize=8, handlelength=1.2, handletextpad=0.5, columnspacing=1.0,
    )  # fmt: skip
    return figure


def _fill(account: str, colour: str) -> dict[str, Any]:
    strength, hatch = FILLS[account]
    tint = [1 - strength * (1 - channel) for channel in to_rgb(colour)]
    return {"facecolor": tint, "hatch": hatch, "edgecolor": colour, "linewidth": 0.8}


@dataclass(frozen=True)
class Plot:
    """A figure: the data it shows (also its CSV), and how to draw that at a given width in inches."""

    data: Callable[[Comparison], pd.DataFrame]
    draw: Callable[[Comparison, pd.DataFrame, float], Figure]


PLOTS = {
    "loss_vs_flops": Plot(analysis.mean_curves, curves("flops")),
    "loss_vs_seconds": Plot(analysis.mean_curves, curves("seconds")),
    "accuracy_vs_flops": Plot(analysis.mean_curves, curves("flops", "val_accuracy")),
    "savings": Plot(lambda comparison: comparison.savings, savings),
    "savings_curve": Plot(analysis.savings_curve, savings_curve),
    "cost_breakdown": Plot(analysis.cost_breakdown, cost_breakdown),
}


def of(comparison: Comparison) -> dict[str, Plot]:
    """The plots of this comparison, by name: accuracy for images only."""
    return {name: plot for name, plot in PLOTS.items() if comparison.has_accuracy or name != "accuracy_vs_flops"}


def save(comparison: Comparison, out: Path) -> dict[str, tuple[bytes, bytes]]:
    """Write every plot to `out` as CSV, PNG and SVG. Gives, by name, its SVG for wide and for narrow screens."""
    images = {}
    with style.context(["default", PARAMETERS]):
        for name, plot in of(comparison).items():
            data = plot.data(comparison)
            data.to_csv(out / f"{name}.csv", index=False)
            wide = plot.draw(comparison, data, WIDE)
            wide.savefig(out / f"{name}.png", dpi=160, metadata={"Software": None})
            images[name] = svg(wide), svg(plot.draw(comparison, data, NARROW))
            (out / f"{name}.svg").write_bytes(images[name][0])
    return images


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
