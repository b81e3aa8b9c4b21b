"""How a saving depends on the loss at which it is read, and on how many targets share a source."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger
from growbench.registry import SCRATCH
from growbench.report import inline
from growbench.report.drawing import (
    LEDGER_TITLES,
    End,
    Frame,
    high_enough,
    is_wide,
    label_ends,
    last_seen,
    line,
    panels,
    percent_axis,
    room,
    title,
)
from growbench.report.looks import INK, PAPER, REST, Look, looks
from growbench.report.ranking import named, shown_looks


def savings_curve(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """The FLOPs saving at every loss that scratch passed."""
    drawn, shown = shown_looks(comparison), [comparison.label(method) for method in named(comparison)]
    height = high_enough(2.6 if is_wide(width) else 2.3, shown)
    figure, both = panels(width, [height], 2, Frame(0.72, room(shown), 0.5))
    for axes, ledger in zip(both, Ledger, strict=True):
        rows = data[data[columns.LEDGER] == ledger]
        if len(rows):
            axes.set_xlim(data[columns.LOSS].max(), min(data[columns.LOSS].min(), comparison.target_loss))
        low, high = (max(rows[columns.LOW].min(), -1.0), rows[columns.HIGH].max()) if len(rows) else (0.0, 1.0)
        axes.set_ylim(min(low, 0) - 0.05, min(max(high, 0.1) + 0.05, 1))
        ends = []
        for name, curve in rows.groupby(columns.METHOD):
            method, look = str(name), drawn[str(name)]
            _saving_line(axes, curve, method, look)
            if look != REST:
                seen = last_seen(axes, curve[columns.LOSS], curve[columns.SAVING])
                ends += [End(x, y, method, comparison.label(method), look) for x, y in seen]
        axes.axhline(0, color=INK.light, linewidth=0.9)
        label_ends(axes, [*ends, End(axes.get_xlim()[1], 0.0, SCRATCH, SCRATCH, looks([])[SCRATCH])])
        percent_axis(axes.yaxis)
        axes.grid(axis="y")
        title(axes, LEDGER_TITLES[ledger])
        axes.set_xlabel("validation loss (nats), training from left to right", loc="left")
    return figure


def _saving_line(axes: Axes, curve: pd.DataFrame, method: str, look: Look) -> None:
    rest = look == REST
    curve = curve[:: 8 if rest else 2]
    xs, low, high = curve[columns.LOSS], curve[columns.LOW], curve[columns.HIGH]
    inline.tag(line(axes, xs, curve[columns.SAVING], look, markevery=6, linewidth=0.7 if rest else 1.6), method)
    if not rest:
        inline.tag(axes.fill_between(xs, low, high, color=look.colour, alpha=0.12, linewidth=0), method)


def amortised(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """The FLOPs saving over the number of targets grown from one source: open dots at its build, full ones at its reuse value."""
    drawn, shown = shown_looks(comparison), [comparison.label(method) for method in named(comparison)]
    height = high_enough(2.6 if is_wide(width) else 2.3, shown)
    figure, (axes,) = panels(width, [height], 1, Frame(0.75, room(shown), above=0.12))
    finite = data.loc[np.isfinite(data[columns.TARGETS]), columns.TARGETS]
    ends = data[[columns.LOW, columns.HIGH]].replace([-np.inf, np.inf], np.nan)
    low = min(max(np.nanmin([data[columns.SAVING].min(), ends[columns.LOW].min()]), -1.0), 0.0)
    high = min(np.nanmax([data[columns.SAVING].max(), ends[columns.HIGH].max(), 0.1]), 1.0)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(finite.min() - 0.3, finite.max() + 1.5)
    named_ends = []
    for name, rows in data.groupby(columns.METHOD, sort=False):
        method, look, places = str(name), drawn[str(name)], rows[columns.TARGETS].clip(upper=finite.max() + 1.3)
        _amortised_line(axes, rows.assign(**{columns.TARGETS: places}), method, look)
        if look != REST:
            named_ends.append(End(places.iloc[-1], rows[columns.SAVING].iloc[-1], method, comparison.label(method), look))
    axes.axhline(0, color=INK.light, linewidth=0.9)
    label_ends(axes, [*named_ends, End(axes.get_xlim()[1], 0.0, SCRATCH, SCRATCH, looks([])[SCRATCH])])
    axes.set_xticks([*finite.unique(), finite.max() + 1.3], [*(f"{number:.0f}" for number in finite.unique()), "∞"])
    percent_axis(axes.yaxis)
    axes.grid(axis="y")
    axes.set_ylabel("FLOPs saved")
    axes.set_xlabel("targets grown from one source model", loc="left")
    return figure


def _amortised_line(axes: Axes, rows: pd.DataFrame, method: str, look: Look) -> None:
    """Dotted where it goes on to infinitely many targets."""
    places, saving = rows[columns.TARGETS], rows[columns.SAVING]
    rest = look == REST
    drawn = [
        line(axes, places[:-1], saving[:-1], look, marker="", linewidth=0.7 if rest else 1.6),
        line(axes, places[-2:], saving[-2:], look, marker="", linewidth=0.7 if rest else 1.2, linestyle=(0, (1, 1.4))),
    ]
    if not rest:
        low, high = rows[columns.LOW].clip(-9, 1), rows[columns.HIGH].clip(-9, 1)
        drawn.append(axes.fill_between(places, low, high, color=look.colour, alpha=0.12, linewidth=0))  # type: ignore[arg-type]
        for end, face in ((0, PAPER.light), (-1, look.colour)):
            drawn += axes.plot(
                places.iloc[end], saving.iloc[end], look.marker, color=look.colour, markerfacecolor=face, markersize=6
            )
    inline.tag(drawn, method)
