"""The figures of one experiment: one colour a method throughout, each in a wide and a narrow cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from growbench.analysis import tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.tables import ACCOUNTS
from growbench.costs.accounts import LEDGERS, UNITS
from growbench.registry import SCRATCH
from growbench.report import drawing
from growbench.report.cells import UNKNOWN, cost_scale, outcome, unknown
from growbench.report.drawing import (
    GREY,
    INK,
    LEDGER_TITLES,
    TITLES,
    WIDE,
    Look,
    high_enough,
    human_axis,
    label_ends,
    looks,
    name_rows,
    panels,
    percent_axis,
    room,
    title,
)


def labels(comparison: Comparison) -> list[str]:
    """The methods as a reader sees them."""
    return [comparison.label(method) for method in comparison.methods]


# Loss and accuracy against cost


def curves(unit: str, measure: str = "val_loss") -> Callable[[Comparison, pd.DataFrame, float], Figure]:
    """How to draw validation loss or accuracy against what was spent: mean line, band over seeds, growth events, target."""

    def draw(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
        height = high_enough(4.1 if width == WIDE else 3.6, labels(comparison))
        figure, (axes,) = panels(
            width, [height], 0.6 if measure == "val_loss" else 0.75, 0.25 + room(labels(comparison)), above=0.12
        )
        log = unit == "flops"
        most = data[unit].max() or 1.0
        scale = cost_scale(most, unit)
        shown = data[data[unit] >= 0.02 * most]
        if measure == "val_loss":
            _loss_limits(axes, shown, data, comparison.target)
            axes.set_ylabel("validation loss (nats)")
        else:
            _accuracy_limits(axes, shown)
            axes.set_ylabel("validation accuracy")
        paid = [cost for cost in comparison.savings[f"{unit}_to_target_build"] if np.isfinite(cost)]
        axes.set_xlim(0.02 * most if log else 0, 1.02 * max([most, *paid]))
        if log:
            axes.set_xscale("log")
        human_axis(axes, scale, (1, 2, 5) if log else ())
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
    target_line(axes, comparison.target)
    for row in tables.records(comparison.savings):
        look = drawn[row["method"]]
        reuse, build = (row[f"{unit}_to_target_{ledger}"] for ledger in LEDGERS)
        if np.isfinite(reuse):
            dot: dict[str, Any] = {"marker": look.dot, "color": look.colour, "markersize": 7, "clip_on": False}
            axes.plot(reuse, comparison.target, **dot, markeredgecolor="white", zorder=6)
            if build > reuse:
                axes.plot(build, comparison.target, **dot, markerfacecolor="white", zorder=5)


def target_line(axes: Axes, target: float) -> None:
    axes.axhline(target, color=INK, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"target {target:.3f}", (0.01, target), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", fontsize=8.5, zorder=7,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


# Savings


def savings(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """Savings over scratch with their intervals: full dots with the source free, open ones with the source charged."""
    rows = [row for row in tables.records(data) if row["method"] != SCRATCH] or tables.records(data)
    methods = [row["method"] for row in rows]
    height = 0.46 * len(rows) + 0.1
    figure, both = panels(width, [height, height], room(labels(comparison)), 2.2 if width == WIDE else 1.35, below=0.42)
    drawn = looks(comparison.methods)
    for axes, unit in zip(both, UNITS, strict=True):
        _saving_limits(axes, data, comparison.outcomes, unit)
        for row, place in zip(rows, reversed(range(len(rows))), strict=True):
            seeds = comparison.outcomes[comparison.outcomes["method"] == row["method"]]
            for ledger, offset in (("reuse", 0.17), ("build", -0.17)):
                column = f"{unit}_saving_{ledger}"
                _saving_row(axes, row, column, seeds[column], place + offset, drawn[row["method"]])
                text = _saving_text(row, column, short=width != WIDE)
                beside = (1.02 if width == WIDE else 1.05, place + offset)
                axes.annotate(f"{ledger}  {text}", beside, xycoords=("axes fraction", "data"), va="center", fontsize=8)
            axes.plot(row[f"published_{unit}_saving"], place + 0.17, "|", color=INK, markersize=12, markeredgewidth=1.4)
        axes.axvline(0, color=GREY, linewidth=1.2)
        axes.set_ylim(-0.55, len(rows) - 0.45)
        name_rows(axes, [comparison.label(method) for method in methods], [drawn[method] for method in methods])
        axes.spines["left"].set_visible(False)
        percent_axis(axes.xaxis)
        axes.tick_params(axis="x", labelsize=9.5 if width == WIDE else 7.5)
        axes.xaxis.set_major_locator(MaxNLocator(8 if width == WIDE else 2, steps=[1, 2, 5, 10]))
        title(axes, TITLES[unit] + " saved against scratch")
    return figure


def _saving_limits(axes: Axes, data: pd.DataFrame, outcomes: pd.DataFrame, unit: str) -> None:
    """Savings up to 100 %; what costs more than twice scratch is drawn at the edge, with its figure beside it."""
    shown = f"^((published_)?{unit}_saving|{unit}_saving_(reuse|build)(_low|_high)?)$"
    tables = (table.filter(regex=shown).to_numpy().ravel() for table in (data, outcomes))
    values = np.concatenate([*tables, [0.0, 0.1]])
    low, high = max(np.nanmin(values), -1.0), min(np.nanmax(values), 1.0)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _saving_row(axes: Axes, row: Mapping[str, Any], column: str, seeds: pd.Series, place: float, look: Look) -> None:
    left, right = axes.get_xlim()
    ends = np.clip([row[f"{column}_low"], row[f"{column}_high"]], left, right)
    face = "white" if column.endswith("build") else look.colour
    axes.plot(np.maximum(seeds, left), [place] * len(seeds), "o", color=look.colour, markersize=3, alpha=0.45)
    axes.plot(ends, [place] * 2, color=look.colour, linewidth=1.6)
    mean = np.maximum(row[column], left)
    axes.plot(mean, place, look.dot, color=look.colour, markerfacecolor=face, markersize=7.5, clip_on=False)


def _saving_text(row: Mapping[str, Any], column: str, short: bool) -> str:
    """The saving with its interval; in the narrow cut, where that has no room, without."""
    if unknown(row, column):
        return UNKNOWN
    text = outcome(row, column)
    return text.partition(" (")[0] if short else text


def savings_curve(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """The FLOPs saving at every loss that scratch passed, until the target."""
    height = high_enough(2.6 if width == WIDE else 2.3, labels(comparison))
    figure, both = panels(width, [height] * 2, 0.75, 0.25 + room(labels(comparison)))
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
    figure, both = panels(width, [height, height], room(labels(comparison)), 0.6)
    drawn = looks(comparison.methods)
    for axes, unit in zip(both, UNITS, strict=True):
        costs = {(row["method"], row["account"]): row["cost"] for row in tables.records(data[data["unit"] == unit])}
        totals = [np.nansum([costs[method, account] for account in ACCOUNTS]) for method in methods]
        scale = cost_scale(max(totals, default=0.0), unit)
        for place, method in enumerate(reversed(methods)):
            total = 0.0
            for account in ACCOUNTS:
                if (cost := costs[method, account]) > 0:  # not of a source whose cost is not known
                    axes.barh(place, cost, left=total, height=0.62, **_fill(account, drawn[method].colour))
                    total += cost
            text = scale.text(total) + " + source" * bool(np.isnan(costs[method, "source"]))
            axes.annotate(text, (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        name_rows(axes, [comparison.label(method) for method in methods], [drawn[method] for method in methods])
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


# Several targets, several budgets


def amortised(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """The FLOPs saving over the number of targets grown from one source: open dots at its build, full ones at its reuse value."""
    height = high_enough(2.6 if width == WIDE else 2.3, labels(comparison))
    figure, (axes,) = panels(width, [height], 0.75, 0.25 + room(labels(comparison)), above=0.12)
    drawn, ends = looks(comparison.methods), []
    finite = data.loc[np.isfinite(data["targets"]), "targets"]
    low, high = min(max(data["low"].min(), -1.0), 0.0), max(data["high"].max(), 0.1)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(finite.min() - 0.3, finite.max() + 1.5)
    for method, rows in data.groupby("method", sort=False):
        look, places = drawn[str(method)], rows["targets"].clip(upper=finite.max() + 1.3)
        axes.plot(places[:-1], rows["saving"][:-1], color=look.colour, linewidth=1.7)
        axes.plot(places[-2:], rows["saving"][-2:], color=look.colour, linewidth=1.2, linestyle=(0, (1, 1.2)))
        axes.fill_between(places, rows["low"], rows["high"], color=look.colour, alpha=0.15, linewidth=0)
        for end, face in ((0, "white"), (-1, look.colour)):
            axes.plot(places.iloc[end], rows["saving"].iloc[end], look.dot, color=look.colour, markerfacecolor=face, markersize=6)
        ends.append((places.iloc[-1], rows["saving"].iloc[-1], comparison.label(str(method)), look))
    axes.axhline(0, color=GREY, linewidth=1.2)
    label_ends(axes, [*ends, (axes.get_xlim()[1], 0.0, SCRATCH, drawn[SCRATCH])])
    axes.set_xticks([*finite.unique(), finite.max() + 1.3], [*(f"{number:.0f}" for number in finite.unique()), "∞"])
    percent_axis(axes.yaxis)
    axes.set_ylabel("FLOPs saved")
    axes.set_xlabel("targets grown from one source model", loc="left")
    return figure


def ladder(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """Final loss against cost, a dot for each budget; every run has a complete schedule of its own."""
    height = high_enough(3.2 if width == WIDE else 2.8, labels(comparison))
    figure, both = panels(width, [height] * 2, 0.75, 0.25 + room(labels(comparison)))
    drawn = looks(comparison.methods)
    scale = cost_scale(data["flops"].max(), "flops")
    for axes, ledger in zip(both, LEDGERS, strict=True):
        rows, ends = data[data["ledger"] == ledger], []
        axes.set_xscale("log")
        axes.set_xlim(data["flops"].min() / 1.06, data["flops"].max() * 1.06)
        low, high = min(data["low"].min(), comparison.target), max(data["high"].max(), comparison.target)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        for method, rungs in rows.groupby("method", sort=False):
            look = drawn[str(method)]
            axes.plot(rungs["flops"], rungs["val_loss"], f"-{look.dot}", color=look.colour, linewidth=1.7, markersize=4.5)
            axes.fill_between(rungs["flops"], rungs["low"], rungs["high"], color=look.colour, alpha=0.15, linewidth=0)
            ends.append((rungs["flops"].iloc[-1], rungs["val_loss"].iloc[-1], comparison.label(str(method)), look))
        target_line(axes, comparison.target)
        label_ends(axes, ends)
        human_axis(axes, scale, (1, 1.5, 2, 3, 4, 5, 6, 8))
        axes.set_ylabel("final validation loss (nats)")
        axes.set_xlabel(f"FLOPs of a whole run ({scale.name}), log scale", loc="left")
        title(axes, LEDGER_TITLES[ledger][0].upper() + LEDGER_TITLES[ledger][1:])
    return figure


@dataclass(frozen=True)
class Plot:
    """A figure: the data it shows (also its CSV; none, no figure), and how to draw that at a given width in inches."""

    data: Callable[[Comparison], pd.DataFrame]
    draw: Callable[[Comparison, pd.DataFrame, float], Figure]


def _accuracy_curves(comparison: Comparison) -> pd.DataFrame:
    """Of images only."""
    return tables.mean_curves(comparison) if comparison.has_accuracy else pd.DataFrame()


PLOTS = {
    "loss_vs_flops": Plot(tables.mean_curves, curves("flops")),
    "loss_vs_seconds": Plot(tables.mean_curves, curves("seconds")),
    "accuracy_vs_flops": Plot(_accuracy_curves, curves("flops", "val_accuracy")),
    "savings": Plot(lambda comparison: comparison.savings, savings),
    "savings_curve": Plot(tables.savings_curve, savings_curve),
    "ladder": Plot(tables.ladder_curves, ladder),
    "amortised": Plot(tables.amortised, amortised),
    "cost_breakdown": Plot(tables.cost_breakdown, cost_breakdown),
}


def save(comparison: Comparison, out: Path) -> dict[str, tuple[bytes, bytes]]:
    """Write every plot that there are data for to `out`. Gives, by name, its SVG for wide and for narrow screens."""
    data = {name: plot.data(comparison) for name, plot in PLOTS.items()}
    return {
        name: drawing.save(name, data[name], partial(plot.draw, comparison), out)
        for name, plot in PLOTS.items()
        if not data[name].empty
    }
