"""Loss and accuracy against cost: curves of runs, and the final losses of the ladder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.report.cells import cost_scale
from growbench.report.drawing import (
    LEDGER_TITLES,
    TITLES,
    WIDE,
    Look,
    high_enough,
    human_axis,
    label_ends,
    labels,
    last_seen,
    looks,
    panels,
    percent_axis,
    room,
    target_line,
    title,
)


def curves(unit: Unit, measure: str = columns.VAL_LOSS) -> Callable[[Comparison, pd.DataFrame, float], Figure]:
    """How to draw validation loss or accuracy against what was spent: mean line, band over seeds, growth events, target loss."""

    def draw(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
        height = high_enough(4.1 if width == WIDE else 3.6, labels(comparison))
        figure, (axes,) = panels(
            width, [height], 0.6 if measure == columns.VAL_LOSS else 0.75, 0.25 + room(labels(comparison)), above=0.12
        )
        log = unit == Unit.FLOPS
        most = data[unit].max() or 1.0
        scale = cost_scale(most, unit)
        shown = data[data[unit] >= 0.02 * most]
        if measure == columns.VAL_LOSS:
            _loss_limits(axes, shown, data, comparison.target_loss)
            axes.set_ylabel("validation loss (nats)")
        else:
            _accuracy_limits(axes, shown)
            axes.set_ylabel("validation accuracy")
        paid = [cost for cost in comparison.savings[columns.cost_to_target(unit, Ledger.BUILD)] if np.isfinite(cost)]
        axes.set_xlim(0.02 * most if log else 0, 1.02 * max([most, *paid]))
        if log:
            axes.set_xscale("log")
        human_axis(axes, scale, (1, 2, 5) if log else ())
        drawn = looks(comparison.methods)
        ends = []
        for (method, _, status), curve in data.groupby([columns.METHOD, columns.SEEDS, columns.STATUS], sort=False):
            look, name = drawn[str(method)], comparison.label(str(method))
            _curve(axes, curve, unit, measure, look, finished=status == "finished")
            if status == "finished":
                ends += [(x, y, name, look) for x, y in last_seen(axes, curve[unit], curve[measure])]
        if measure == columns.VAL_LOSS:
            _target(axes, comparison, unit, drawn)
        label_ends(axes, ends)
        axes.set_xlabel(f"{TITLES[unit]} ({scale.name}), source model free" + (", log scale" if log else ""), loc="left")
        return figure

    return draw


def _loss_limits(axes: Axes, shown: pd.DataFrame, data: pd.DataFrame, target: float) -> None:
    """From just below the best loss to the highest one shown, but never above scratch's start: a diverging run is cut off."""
    start = data.loc[data[columns.METHOD] == SCRATCH, columns.VAL_LOSS].max()
    top = np.nanmin([shown[columns.VAL_LOSS].replace(np.inf, np.nan).max(), start])
    low = min(shown[columns.low(columns.VAL_LOSS)].min(), target)
    axes.set_ylim(low - 0.06 * (top - low), top + 0.03 * (top - low))


def _accuracy_limits(axes: Axes, shown: pd.DataFrame) -> None:
    low, high = shown[columns.low(columns.VAL_ACCURACY)].min(), shown[columns.high(columns.VAL_ACCURACY)].max()
    axes.set_ylim(low - 0.03 * (high - low), high + 0.06 * (high - low))
    percent_axis(axes.yaxis)


def _curve(axes: Axes, curve: pd.DataFrame, unit: str, measure: str, look: Look, finished: bool) -> None:
    values = curve[measure]
    scored, unscored = values.where(curve[columns.SCORED]), values.where(_touches_unscored(curve[columns.SCORED]))
    width = 1.7 if finished else 0.8
    every = max(len(curve) // 8, 1)
    axes.plot(curve[unit], unscored, color=look.colour, linewidth=0.8 * width, linestyle=(0, (1, 1.2)))
    axes.plot(curve[unit], scored, look.line, color=look.colour, linewidth=width, markersize=4, markevery=every)
    if " " in curve[columns.SEEDS].iloc[0]:
        low, high = curve[columns.low(measure)], curve[columns.high(measure)]
        axes.fill_between(curve[unit], low, high, color=look.colour, alpha=0.15, linewidth=0)
    grown = curve[curve[columns.PHASE].ne(curve[columns.PHASE].shift()) & (curve.index != curve.index[0])]
    axes.plot(grown[unit], grown[measure], linestyle="", marker="|", markersize=13, markeredgewidth=1.3, color=look.colour)
    if not finished:
        axes.plot(curve[unit].iloc[-1], values.iloc[-1], marker="x", color=look.colour, markersize=7)


def _touches_unscored(scored: pd.Series) -> pd.Series:
    """Unscored evaluations, and the one after each, so that the dotted line joins the full one."""
    unscored = ~scored.astype(bool)
    return unscored | unscored.shift(1, fill_value=False)


def _target(axes: Axes, comparison: Comparison, unit: Unit, drawn: Mapping[str, Look]) -> None:
    target_line(axes, comparison.target_loss)
    for row in tables.records(comparison.savings):
        look = drawn[row[columns.METHOD]]
        reuse, build = (row[columns.cost_to_target(unit, ledger)] for ledger in Ledger)
        if np.isfinite(reuse):
            dot: dict[str, Any] = {"marker": look.dot, "color": look.colour, "markersize": 7, "clip_on": False}
            axes.plot(reuse, comparison.target_loss, **dot, markeredgecolor="white", zorder=6)
            if build > reuse:
                axes.plot(build, comparison.target_loss, **dot, markerfacecolor="white", zorder=5)


def ladder(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """Final loss against cost, a dot for each budget; every run has a complete schedule of its own."""
    height = high_enough(3.2 if width == WIDE else 2.8, labels(comparison))
    figure, both = panels(width, [height] * 2, 0.75, 0.25 + room(labels(comparison)))
    drawn = looks(comparison.methods)
    scale = cost_scale(data[Unit.FLOPS].max(), Unit.FLOPS)
    for axes, ledger in zip(both, Ledger, strict=True):
        rows, ends = data[data[columns.LEDGER] == ledger], []
        axes.set_xscale("log")
        axes.set_xlim(data[Unit.FLOPS].min() / 1.06, data[Unit.FLOPS].max() * 1.06)
        low, high = min(data[columns.LOW].min(), comparison.ladder_loss), max(data[columns.HIGH].max(), comparison.ladder_loss)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        for method, rungs in rows.groupby(columns.METHOD, sort=False):
            look = drawn[str(method)]
            axes.plot(
                rungs[Unit.FLOPS], rungs[columns.VAL_LOSS], f"-{look.dot}", color=look.colour, linewidth=1.7, markersize=4.5
            )
            axes.fill_between(
                rungs[Unit.FLOPS], rungs[columns.LOW], rungs[columns.HIGH], color=look.colour, alpha=0.15, linewidth=0
            )
            ends.append((rungs[Unit.FLOPS].iloc[-1], rungs[columns.VAL_LOSS].iloc[-1], comparison.label(str(method)), look))
        target_line(axes, comparison.ladder_loss)
        label_ends(axes, ends)
        human_axis(axes, scale, (1, 1.5, 2, 3, 4, 5, 6, 8))
        axes.set_ylabel("final validation loss (nats)")
        axes.set_xlabel(f"FLOPs of a whole run ({scale.name}), log scale", loc="left")
        title(axes, LEDGER_TITLES[ledger][0].upper() + LEDGER_TITLES[ledger][1:])
    return figure
