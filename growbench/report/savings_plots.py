"""Savings over scratch: at the target, at every loss, and of several targets that share a source."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.estimator import Relation, Saving
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.report.cells import outcome
from growbench.report.drawing import (
    GREY,
    INK,
    LEDGER_TITLES,
    TITLES,
    WIDE,
    Look,
    high_enough,
    label_ends,
    labels,
    last_seen,
    looks,
    name_rows,
    panels,
    percent_axis,
    room,
    title,
)


def savings(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """Savings over scratch with their intervals: full dots with the source free, open ones with the source charged.

    An arrow stands where a value is only a bound, or an interval has an open end.
    """
    rows = [row for row in tables.records(data) if row["method"] != SCRATCH] or tables.records(data)
    methods = [row["method"] for row in rows]
    height = 0.46 * len(rows) + 0.1
    heights = [height] * len(comparison.units)
    figure, both = panels(width, heights, room(labels(comparison)), 2.35 if width == WIDE else 1.4, below=0.42)
    drawn = looks(comparison.methods)
    for axes, unit in zip(both, comparison.units, strict=True):
        _saving_limits(axes, data, comparison.outcomes, unit)
        for row, place in zip(rows, reversed(range(len(rows))), strict=True):
            seeds = comparison.outcomes[comparison.outcomes["method"] == row["method"]]
            look = drawn[row["method"]]
            for ledger, offset, face in ((Ledger.REUSE, 0.17, look.colour), (Ledger.BUILD, -0.17, "white")):
                _seeds(axes, seeds, columns.saving(unit, ledger), columns.relation(unit, ledger), place + offset, look)
                _saving_row(axes, columns.saving_in(row, unit, ledger), place + offset, look, face)
                text = outcome(row, unit, ledger)
                if width != WIDE:
                    text = text.partition(" (")[0]  # the interval has no room
                beside = (1.02 if width == WIDE else 1.05, place + offset)
                axes.annotate(f"{ledger}  {text}", beside, xycoords=("axes fraction", "data"), va="center", fontsize=8)
            axes.plot(row[columns.published_saving(unit)], place + 0.17, "|", color=INK, markersize=12, markeredgewidth=1.4)
        axes.axvline(0, color=GREY, linewidth=1.2)
        axes.set_ylim(-0.55, len(rows) - 0.45)
        name_rows(axes, [comparison.label(method) for method in methods], [drawn[method] for method in methods])
        axes.spines["left"].set_visible(False)
        percent_axis(axes.xaxis)
        axes.tick_params(axis="x", labelsize=9.5 if width == WIDE else 7.5)
        axes.xaxis.set_major_locator(MaxNLocator(8 if width == WIDE else 2, steps=[1, 2, 5, 10]))
        title(axes, TITLES[unit] + " saved against scratch, off one run's curve")
    return figure


ARROWS = {Relation.BELOW: "<", Relation.ABOVE: ">"}  # markers


def _saving_limits(axes: Axes, data: pd.DataFrame, outcomes: pd.DataFrame, unit: Unit) -> None:
    """Savings up to 100 %; what costs more than twice scratch is drawn at the edge, with its figure beside it."""
    values = [0.0, 0.1, *data[columns.published_saving(unit)]]
    for ledger in Ledger:
        values += [*outcomes[columns.saving(unit, ledger)]]
        for row in tables.records(data):
            found = columns.saving_in(row, unit, ledger)
            values += [value for value in (found.mean, found.low, found.high) if np.isfinite(value)]
    low, high = max(np.nanmin(values), -1.0), min(np.nanmax(values), 1.0)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _seeds(axes: Axes, seeds: pd.DataFrame, column: str, relation: str, place: float, look: Look) -> None:
    """A small dot for what each seed saves by itself, an arrow where that is only a bound."""
    left, _ = axes.get_xlim()
    for saving, kind in zip(seeds[column], seeds[relation], strict=True):
        marker = ARROWS.get(Relation(kind), "o")
        axes.plot(max(saving, left), place, marker, color=look.colour, markersize=3, alpha=0.45)


def _saving_row(axes: Axes, saving: Saving, place: float, look: Look, face: str) -> None:
    """The interval as a line, to the edge of the axes with an arrow where its end is open."""
    left, right = axes.get_xlim()
    if saving.has_interval:
        axes.plot(np.clip([saving.low, saving.high], left, right), [place] * 2, color=look.colour, linewidth=1.6)
        for edge, arrow, beyond in ((left, "<", saving.low < left), (right, ">", saving.high > right)):
            if beyond:
                axes.plot(edge, place, arrow, color=look.colour, markersize=5, clip_on=False)
    mean = np.maximum(saving.mean, left)
    dot = look.dot if saving.relation == Relation.EQUAL else ARROWS[saving.relation]
    axes.plot(mean, place, dot, color=look.colour, markerfacecolor=face, markersize=7.5, clip_on=False)


def savings_curve(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """The FLOPs saving at every loss that scratch passed, until the target."""
    height = high_enough(2.6 if width == WIDE else 2.3, labels(comparison))
    figure, both = panels(width, [height] * 2, 0.75, 0.25 + room(labels(comparison)))
    drawn = looks(comparison.methods)
    for axes, ledger in zip(both, Ledger, strict=True):
        rows = data[data["ledger"] == ledger]
        if len(rows):
            axes.set_xlim(data["loss"].max(), min(data["loss"].min(), comparison.target_loss))
        low, high = (max(rows["low"].min(), -1.0), rows["high"].max()) if len(rows) else (0.0, 1.0)
        axes.set_ylim(min(low, 0) - 0.05, min(max(high, 0.1) + 0.05, 1))
        ends = []
        for method, curve in rows.groupby("method"):
            look = drawn[str(method)]
            axes.plot(curve["loss"], curve["saving"], look.line, color=look.colour, linewidth=1.7, markersize=4, markevery=10)
            axes.fill_between(curve["loss"], curve["low"], curve["high"], color=look.colour, alpha=0.15, linewidth=0)
            name = comparison.label(str(method))
            ends += [(x, y, name, look) for x, y in last_seen(axes, curve["loss"], curve["saving"])]
        axes.axhline(0, color=GREY, linewidth=1.2)
        label_ends(axes, [*ends, (axes.get_xlim()[1], 0.0, SCRATCH, drawn[SCRATCH])])
        percent_axis(axes.yaxis)
        title(axes, "FLOPs saved, " + LEDGER_TITLES[ledger])
        axes.set_xlabel("validation loss (nats), training from left to right", loc="left")
    return figure


def amortised(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """The FLOPs saving over the number of targets grown from one source: open dots at its build, full ones at its reuse value."""
    height = high_enough(2.6 if width == WIDE else 2.3, labels(comparison))
    figure, (axes,) = panels(width, [height], 0.75, 0.25 + room(labels(comparison)), above=0.12)
    drawn, named = looks(comparison.methods), []
    finite = data.loc[np.isfinite(data["targets"]), "targets"]
    ends = data[["low", "high"]].replace([-np.inf, np.inf], np.nan)
    low = min(max(np.nanmin([data["saving"].min(), ends["low"].min()]), -1.0), 0.0)
    high = min(np.nanmax([data["saving"].max(), ends["high"].max(), 0.1]), 1.0)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(finite.min() - 0.3, finite.max() + 1.5)
    for method, rows in data.groupby("method", sort=False):
        look, places = drawn[str(method)], rows["targets"].clip(upper=finite.max() + 1.3)
        axes.plot(places[:-1], rows["saving"][:-1], color=look.colour, linewidth=1.7)
        axes.plot(places[-2:], rows["saving"][-2:], color=look.colour, linewidth=1.2, linestyle=(0, (1, 1.2)))
        axes.fill_between(places, rows["low"].clip(-9, 1), rows["high"].clip(-9, 1), color=look.colour, alpha=0.15, linewidth=0)
        for end, face in ((0, "white"), (-1, look.colour)):
            axes.plot(places.iloc[end], rows["saving"].iloc[end], look.dot, color=look.colour, markerfacecolor=face, markersize=6)
        named.append((places.iloc[-1], rows["saving"].iloc[-1], comparison.label(str(method)), look))
    axes.axhline(0, color=GREY, linewidth=1.2)
    label_ends(axes, [*named, (axes.get_xlim()[1], 0.0, SCRATCH, drawn[SCRATCH])])
    axes.set_xticks([*finite.unique(), finite.max() + 1.3], [*(f"{number:.0f}" for number in finite.unique()), "∞"])
    percent_axis(axes.yaxis)
    axes.set_ylabel("FLOPs saved")
    axes.set_xlabel("targets grown from one source model", loc="left")
    return figure
