"""Savings over scratch: at the target, at every loss, and of several targets that share a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.estimator import Relation, Saving
from growbench.analysis.protocols import Protocol
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


def savings(protocol: Protocol) -> Callable[[Comparison, pd.DataFrame, float], Figure]:
    """How to draw savings over scratch with their intervals: full dots with the source free, open ones with it charged.

    An arrow stands where a value is only a bound, or an interval has an open end.
    """

    def draw(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
        rows = [row for row in tables.records(data) if row[columns.METHOD] != SCRATCH] or tables.records(data)
        methods = [row[columns.METHOD] for row in rows]
        heights = [0.46 * len(rows) + 0.1] * len(comparison.units)
        figure, both = panels(width, heights, room(labels(comparison)), 2.35 if width == WIDE else 1.4, below=0.42)
        drawn = [looks(comparison.methods)[method] for method in methods]
        own = comparison.own_savings(protocol)
        for axes, unit in zip(both, comparison.units, strict=True):
            _saving_limits(axes, rows, own, unit)
            for row, look, place in zip(rows, drawn, reversed(range(len(rows))), strict=True):
                _method_rows(axes, row, own[own[columns.METHOD] == row[columns.METHOD]], Place(unit, place, look, width == WIDE))
            axes.axvline(0, color=GREY, linewidth=1.2)
            axes.set_ylim(-0.55, len(rows) - 0.45)
            name_rows(axes, [comparison.label(method) for method in methods], drawn)
            axes.spines["left"].set_visible(False)
            percent_axis(axes.xaxis)
            axes.tick_params(axis="x", labelsize=9.5 if width == WIDE else 7.5)
            axes.xaxis.set_major_locator(MaxNLocator(8 if width == WIDE else 2, steps=[1, 2, 5, 10]))
            title(axes, f"{TITLES[unit]} saved against scratch, {protocol} protocol")
        return figure

    return draw


@dataclass(frozen=True)
class Place:
    """Where and how a method is drawn: the unit, the height, its look, and whether there is room for intervals as text."""

    unit: Unit
    height: float
    look: Look
    wide: bool


def _method_rows(axes: Axes, row: Mapping[str, Any], own: pd.DataFrame, place: Place) -> None:
    """A method's two rows, one a ledger, and its paper's claim."""
    for ledger, offset, face in ((Ledger.REUSE, 0.17, place.look.colour), (Ledger.BUILD, -0.17, "white")):
        height = place.height + offset
        _seeds(axes, own[columns.saving(place.unit, ledger)], own[columns.relation(place.unit, ledger)], height, place.look)
        _saving_row(axes, columns.saving_in(row, place.unit, ledger), height, place.look, face)
        text = outcome(row, place.unit, ledger)
        beside = (1.02 if place.wide else 1.05, height)
        text = text if place.wide else text.partition(" (")[0]
        axes.annotate(f"{ledger}  {text}", beside, xycoords=("axes fraction", "data"), va="center", fontsize=8)
    claim = row.get(columns.published_saving(place.unit), np.nan)
    axes.plot(claim, place.height + 0.17, "|", color=INK, markersize=12, markeredgewidth=1.4)


ARROWS = {Relation.BELOW: "<", Relation.ABOVE: ">"}  # markers


def _saving_limits(axes: Axes, rows: Sequence[Mapping[str, Any]], own: pd.DataFrame, unit: Unit) -> None:
    """Savings up to 100 %; what costs more than twice scratch is drawn at the edge, with its figure beside it."""
    values = [0.0, 0.1, *(row.get(columns.published_saving(unit), np.nan) for row in rows)]
    for ledger in Ledger:
        values += [*own[columns.saving(unit, ledger)]]
        for row in rows:
            found = columns.saving_in(row, unit, ledger)
            values += [value for value in (found.mean, found.low, found.high) if np.isfinite(value)]
    low, high = max(np.nanmin(values), -1.0), min(np.nanmax(values), 1.0)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _seeds(axes: Axes, savings: pd.Series, relations: pd.Series, height: float, look: Look) -> None:
    """A small dot for what each seed saves by itself, an arrow where that is only a bound."""
    left, _ = axes.get_xlim()
    for saving, relation in zip(savings, relations, strict=True):
        marker, size = (ARROWS[relation], 4.5) if relation in ARROWS else ("o", 3)
        axes.plot(max(saving, left), height, marker, color=look.colour, markersize=size, alpha=0.45)


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
    """The FLOPs saving at every loss that scratch passed."""
    height = high_enough(2.6 if width == WIDE else 2.3, labels(comparison))
    figure, both = panels(width, [height] * 2, 0.75, 0.25 + room(labels(comparison)))
    drawn = looks(comparison.methods)
    for axes, ledger in zip(both, Ledger, strict=True):
        rows = data[data[columns.LEDGER] == ledger]
        if len(rows):
            axes.set_xlim(data[columns.LOSS].max(), min(data[columns.LOSS].min(), comparison.target_loss))
        low, high = (max(rows[columns.LOW].min(), -1.0), rows[columns.HIGH].max()) if len(rows) else (0.0, 1.0)
        axes.set_ylim(min(low, 0) - 0.05, min(max(high, 0.1) + 0.05, 1))
        ends = []
        for method, curve in rows.groupby(columns.METHOD):
            look = drawn[str(method)]
            axes.plot(
                curve[columns.LOSS],
                curve[columns.SAVING],
                look.line,
                color=look.colour,
                linewidth=1.7,
                markersize=4,
                markevery=10,
            )
            axes.fill_between(
                curve[columns.LOSS], curve[columns.LOW], curve[columns.HIGH], color=look.colour, alpha=0.15, linewidth=0
            )
            name = comparison.label(str(method))
            ends += [(x, y, name, look) for x, y in last_seen(axes, curve[columns.LOSS], curve[columns.SAVING])]
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
    finite = data.loc[np.isfinite(data[columns.TARGETS]), columns.TARGETS]
    ends = data[[columns.LOW, columns.HIGH]].replace([-np.inf, np.inf], np.nan)
    low = min(max(np.nanmin([data[columns.SAVING].min(), ends[columns.LOW].min()]), -1.0), 0.0)
    high = min(np.nanmax([data[columns.SAVING].max(), ends[columns.HIGH].max(), 0.1]), 1.0)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(finite.min() - 0.3, finite.max() + 1.5)
    for method, rows in data.groupby(columns.METHOD, sort=False):
        look, places = drawn[str(method)], rows[columns.TARGETS].clip(upper=finite.max() + 1.3)
        axes.plot(places[:-1], rows[columns.SAVING][:-1], color=look.colour, linewidth=1.7)
        axes.plot(places[-2:], rows[columns.SAVING][-2:], color=look.colour, linewidth=1.2, linestyle=(0, (1, 1.2)))
        axes.fill_between(
            places, rows[columns.LOW].clip(-9, 1), rows[columns.HIGH].clip(-9, 1), color=look.colour, alpha=0.15, linewidth=0
        )
        for end, face in ((0, "white"), (-1, look.colour)):
            axes.plot(
                places.iloc[end], rows[columns.SAVING].iloc[end], look.dot, color=look.colour, markerfacecolor=face, markersize=6
            )
        named.append((places.iloc[-1], rows[columns.SAVING].iloc[-1], comparison.label(str(method)), look))
    axes.axhline(0, color=GREY, linewidth=1.2)
    label_ends(axes, [*named, (axes.get_xlim()[1], 0.0, SCRATCH, drawn[SCRATCH])])
    axes.set_xticks([*finite.unique(), finite.max() + 1.3], [*(f"{number:.0f}" for number in finite.unique()), "∞"])
    percent_axis(axes.yaxis)
    axes.set_ylabel("FLOPs saved")
    axes.set_xlabel("targets grown from one source model", loc="left")
    return figure
