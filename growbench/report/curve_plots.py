"""Loss and accuracy against cost: curves of runs, and the final losses of the ladder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import Scale
from growbench.registry import SCRATCH
from growbench.report import inline
from growbench.report.cells import cost_scale
from growbench.report.drawing import (
    LEDGER_TITLES,
    TITLES,
    End,
    Frame,
    high_enough,
    human_axis,
    is_wide,
    label_ends,
    last_seen,
    line,
    panels,
    percent_axis,
    room,
    target_line,
    title,
)
from growbench.report.looks import PAPER, REST, Look
from growbench.report.ranking import named, shown_looks

BESIDE_TARGET = 0.3  # nats that the second panel shows above and below the target


def curves(unit: Unit, measure: str = columns.VAL_LOSS) -> Callable[[Comparison, pd.DataFrame, float], Figure]:
    """How to draw validation loss or accuracy against what was spent: mean line, band over seeds, growth events, target loss.

    Of the loss, a second panel shows the surroundings of the target, on a linear axis of cost.
    """
    draw_in = _loss if measure == columns.VAL_LOSS else _accuracy

    def draw(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
        return draw_in(Curves(comparison, data, unit, measure), width)

    return draw


@dataclass(frozen=True)
class Curves:
    """The mean curves of one experiment over one unit of cost."""

    comparison: Comparison
    data: pd.DataFrame
    unit: Unit
    measure: str

    @property
    def looks(self) -> dict[str, Look]:
        return shown_looks(self.comparison)

    @property
    def labels(self) -> list[str]:
        """Of the methods that are named."""
        return [self.comparison.label(method) for method in named(self.comparison)]

    @property
    def most(self) -> float:
        """The largest cost, of a run or of what it takes to meet the target with the source charged."""
        column = columns.cost_to_target(self.unit, Ledger.BUILD)
        paid = [cost for cost in self.comparison.savings[column] if np.isfinite(cost)]
        return max([self.spent, *paid])

    @property
    def spent(self) -> float:
        return float(self.data[self.unit].max()) or 1.0

    @property
    def scale(self) -> Scale:
        return cost_scale(self.spent, self.unit)

    @property
    def late(self) -> pd.DataFrame:
        """Without the first hundredths of the cost, in which the loss falls by more than the figure shows."""
        return self.data[self.data[self.unit] >= 0.02 * self.spent]

    def draw(self, axes: Axes) -> list[End]:
        """All lines, the named ones on top; gives their ends within the axes."""
        ends, looks = [], self.looks
        for (method, _, status), curve in self.data.groupby([columns.METHOD, columns.SEEDS, columns.STATUS], sort=False):
            look, finished = looks[str(method)], status == "finished"
            before = {*axes.get_children()}
            _curve(axes, _part_within(axes, curve, self.unit, self.measure), self, look, finished)
            inline.tag({*axes.get_children()} - before, str(method))
            if finished and look != REST:
                seen = last_seen(axes, curve[self.unit], curve[self.measure])
                ends += [End(x, y, str(method), self.comparison.label(str(method)), look) for x, y in seen]
        return ends

    def name_cost(self, axes: Axes, log: bool) -> None:
        human_axis(axes, self.scale, (1, 2, 5) if log else ())
        axes.set_xlabel(f"{TITLES[self.unit]} ({self.scale.name}), source model free" + ", log scale" * log, loc="left")
        axes.grid(axis="y")


def _loss(shown: Curves, width: float) -> Figure:
    """The whole curves, and their surroundings of the target; a name stands where its line ends within the second panel."""
    height = high_enough(3.5 if is_wide(width) else 3.0, shown.labels)
    figure, (whole, near) = panels(width, [height], 2, Frame(0.62, room(shown.labels), 0.35))
    log, target = shown.unit == Unit.FLOPS, shown.comparison.target_loss
    _loss_limits(whole, shown.late, shown.data, target)
    whole.set_xlim(0.02 * shown.spent if log else 0, 1.02 * shown.most)
    if log:
        whole.set_xscale("log")
    near.set_ylim(target - BESIDE_TARGET, target + BESIDE_TARGET)
    within = shown.data[(shown.data[columns.VAL_LOSS] - target).abs() <= BESIDE_TARGET]
    near.set_xlim(0.97 * (within[shown.unit].min() if len(within) else 0), 1.02 * shown.most)
    all_ends, near_ends = shown.draw(whole), shown.draw(near)
    for axes, is_log in ((whole, log), (near, False)):
        shown.name_cost(axes, is_log)
        _target(axes, shown)
    whole.set_ylabel("validation loss (nats)")
    seen = {end.method for end in near_ends}
    label_ends(whole, all_ends if not is_wide(width) else [end for end in all_ends if end.method not in seen])
    label_ends(near, near_ends)
    title(whole, "The whole training")
    title(near, f"Near the target: ± {BESIDE_TARGET} nats, linear cost")
    return figure


def _accuracy(shown: Curves, width: float) -> Figure:
    height = high_enough(3.5 if is_wide(width) else 3.0, shown.labels)
    figure, (axes,) = panels(width, [height], 1, Frame(0.65, room(shown.labels), above=0.12))
    low = shown.late[columns.low(columns.VAL_ACCURACY)].min()
    high = shown.late[columns.high(columns.VAL_ACCURACY)].max()
    axes.set_ylim(low - 0.03 * (high - low), high + 0.06 * (high - low))
    log = shown.unit == Unit.FLOPS
    axes.set_xlim(0.02 * shown.spent if log else 0, 1.02 * shown.spent)
    if log:
        axes.set_xscale("log")
    label_ends(axes, shown.draw(axes))
    shown.name_cost(axes, log)
    percent_axis(axes.yaxis)
    axes.set_ylabel("validation accuracy")
    return figure


def _loss_limits(axes: Axes, shown: pd.DataFrame, data: pd.DataFrame, target: float) -> None:
    """From just below the best loss to the highest one shown, but never above scratch's start: a diverging run is cut off."""
    start = data.loc[data[columns.METHOD] == SCRATCH, columns.VAL_LOSS].max()
    top = np.nanmin([shown[columns.VAL_LOSS].replace(np.inf, np.nan).max(), start])
    low = min(shown[columns.low(columns.VAL_LOSS)].min(), target)
    axes.set_ylim(low - 0.06 * (top - low), top + 0.03 * (top - low))


def _part_within(axes: Axes, curve: pd.DataFrame, unit: str, measure: str) -> pd.DataFrame:
    """From the row before the first that the axes show to the row after the last."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    seen = np.flatnonzero(curve[unit].between(left, right) & curve[measure].between(low, high))
    return curve.iloc[max(seen[0] - 1, 0) : seen[-1] + 2] if len(seen) else curve.iloc[:0]


def _curve(axes: Axes, curve: pd.DataFrame, shown: Curves, look: Look, finished: bool) -> None:
    if curve.empty:
        return
    unit, measure, rest = shown.unit, shown.measure, look == REST
    curve = curve[:: 2 if rest else 1]
    values = curve[measure]
    scored, unscored = values.where(curve[columns.SCORED]), values.where(_touches_unscored(curve[columns.SCORED]))
    order = 1.5 if rest else 3
    width = 0.7 if rest or not finished else 1.6
    every = max(len(curve) // 5, 1)
    line(axes, curve[unit], unscored, look, marker="", linewidth=0.8 * width, linestyle=(0, (1, 1.4)), zorder=order)
    line(axes, curve[unit], scored, look, linewidth=width, markevery=every, zorder=order)
    if rest:
        return
    if " " in curve[columns.SEEDS].iloc[0]:
        low, high = curve[columns.low(measure)], curve[columns.high(measure)]
        axes.fill_between(curve[unit], low, high, color=look.colour, alpha=0.12, linewidth=0)
    grown = curve[curve[columns.PHASE].ne(curve[columns.PHASE].shift()) & (curve.index != curve.index[0])]
    if len(grown):
        line(axes, grown[unit], grown[measure], look, linestyle="", marker="|", markersize=13, markeredgewidth=1.3)
    if not finished:
        line(axes, curve[unit].iloc[-1:], values.iloc[-1:], look, marker="x", markersize=7)


def _touches_unscored(scored: pd.Series) -> pd.Series:
    """Unscored evaluations, and the one after each, so that the dotted line joins the full one."""
    unscored = ~scored.astype(bool)
    return unscored | unscored.shift(1, fill_value=False)


def _target(axes: Axes, shown: Curves) -> None:
    """The target, and on it where each named method meets it: full markers with the source free, open ones with it charged."""
    target_line(axes, shown.comparison.target_loss)
    looks = shown.looks
    for row in tables.records(shown.comparison.savings):
        look = looks[row[columns.METHOD]]
        reuse, build = (row[columns.cost_to_target(shown.unit, ledger)] for ledger in Ledger)
        if np.isfinite(reuse) and look != REST:
            dots = axes.plot(reuse, shown.comparison.target_loss, **_dot(look), markeredgecolor=PAPER.light, zorder=6)
            if build > reuse:
                dots += axes.plot(build, shown.comparison.target_loss, **_dot(look), markerfacecolor=PAPER.light, zorder=5)
            inline.tag(dots, row[columns.METHOD])


def _dot(look: Look) -> Mapping[str, Any]:
    return {"marker": look.marker, "color": look.colour, "markersize": 7, "linestyle": ""}


def ladder(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """Final loss against cost, a dot for each budget; every run has a complete schedule of its own."""
    looks, shown = shown_looks(comparison), [comparison.label(method) for method in named(comparison)]
    height = high_enough(3.0 if is_wide(width) else 2.8, shown)
    figure, both = panels(width, [height], 2, Frame(0.62, room(shown), 0.35))
    scale = cost_scale(data[Unit.FLOPS].max(), Unit.FLOPS)
    low, high = min(data[columns.LOW].min(), comparison.ladder_loss), max(data[columns.HIGH].max(), comparison.ladder_loss)
    for axes, ledger in zip(both, Ledger, strict=True):
        axes.set_xscale("log")
        axes.set_xlim(data[Unit.FLOPS].min() / 1.06, data[Unit.FLOPS].max() * 1.06)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        label_ends(axes, list(_rungs(axes, comparison, data[data[columns.LEDGER] == ledger], looks)))
        target_line(axes, comparison.ladder_loss)
        human_axis(axes, scale, (1, 1.5, 2, 3, 4, 5, 6, 8))
        axes.grid(axis="y")
        axes.set_xlabel(f"FLOPs of a whole run ({scale.name}), log scale", loc="left")
        title(axes, LEDGER_TITLES[ledger])
    both[0].set_ylabel("final validation loss (nats)")
    return figure


def _rungs(axes: Axes, comparison: Comparison, data: pd.DataFrame, looks: Mapping[str, Look]) -> Sequence[End]:
    """A line a method in one ledger; gives the ends of the named ones."""
    ends = []
    for name, rungs in data.groupby(columns.METHOD, sort=False):
        method, look = str(name), looks[str(name)]
        rest = look == REST
        drawn = line(axes, rungs[Unit.FLOPS], rungs[columns.VAL_LOSS], look, linewidth=0.7 if rest else 1.6)
        inline.tag(drawn, method)
        if not rest:
            band = axes.fill_between(
                rungs[Unit.FLOPS], rungs[columns.LOW], rungs[columns.HIGH], color=look.colour, alpha=0.12, linewidth=0
            )
            inline.tag(band, method)
            last = rungs.iloc[-1]
            ends.append(End(last[Unit.FLOPS], last[columns.VAL_LOSS], method, comparison.label(method), look))
    return ends
