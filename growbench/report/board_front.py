"""The figure of loss and cost on a track: each method's runs, and the front that no other run beats."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison
from growbench.analysis.standing import front
from growbench.costs.accounts import Ledger, Unit
from growbench.report import drawing, inline
from growbench.report.cells import cost_scale
from growbench.report.drawing import LEDGER_TITLES
from growbench.report.looks import SOFT, looks


def figure(comparison: Comparison) -> Callable[[pd.DataFrame, float], Figure]:
    """Draws the table of growbench.analysis.standing.pareto. Methods on the front, scratch and controls among them, are named."""

    def draw(data: pd.DataFrame, width: float) -> Figure:
        named = list(dict.fromkeys(label for ledger in Ledger for label in members(data, comparison, ledger)))
        height = drawing.high_enough(3.0, named)
        drawn, both = drawing.panels(width, [height], 2, drawing.Frame(0.6, 0.3 + drawing.room(named), 0.4))
        for axes, ledger in zip(both, Ledger, strict=True):
            _panel(axes, data, ledger, comparison)
            drawing.title(axes, LEDGER_TITLES[ledger])
        return drawn

    return draw


def _panel(axes: Axes, data: pd.DataFrame, ledger: Ledger, comparison: Comparison) -> None:
    column, own = columns.cost(Unit.FLOPS, ledger), looks(comparison.methods)
    known = data.dropna(subset=column)
    if known.empty:
        axes.text(0.5, 0.5, "the cost of the source is not known", transform=axes.transAxes, ha="center", color=SOFT.light)
        return
    scale = cost_scale(known[column].max(), Unit.FLOPS)
    on_front = known[known[front(ledger)]].sort_values(column)
    axes.step(on_front[column], on_front[columns.VAL_LOSS], where="post", color=SOFT.light, linewidth=1, zorder=1)
    for method, rows in known.groupby(columns.METHOD, sort=False):
        look = own[str(method)]
        marked: list[Artist] = [
            *axes.plot(
                rows[column],
                rows[columns.VAL_LOSS],
                look.marker,
                color=look.colour,
                markersize=6,
                markeredgewidth=0,
                linestyle="",
                zorder=3,
            )
        ]
        if (rows[columns.SEEDS] > 1).any():
            low, high = rows[columns.low(columns.VAL_LOSS)], rows[columns.high(columns.VAL_LOSS)]
            marked.append(axes.vlines(rows[column], low, high, color=look.colour, linewidth=1, zorder=2))
        inline.tag(marked, str(method))
    axes.autoscale_view()  # names stand at the heights of the final axis
    last = on_front.drop_duplicates(columns.METHOD, keep="last")
    drawing.label_ends(
        axes,
        [
            drawing.End(
                row[column],
                row[columns.VAL_LOSS],
                row[columns.METHOD],
                comparison.label(row[columns.METHOD]),
                own[row[columns.METHOD]],
            )
            for row in last.to_dict("records")
        ],
    )
    drawing.human_axis(axes, scale)
    axes.grid(axis="y")
    axes.set_xlabel(f"FLOPs of a whole run, {scale.name}", loc="left")
    axes.set_ylabel("final loss (nats)")


def members(table: pd.DataFrame, comparison: Comparison, ledger: Ledger) -> list[str]:
    """The methods on the front, the cheapest first."""
    on_front = table[table[front(ledger)]].sort_values(columns.cost(Unit.FLOPS, ledger))
    return [comparison.label(method) for method in dict.fromkeys(on_front[columns.METHOD])]


def said(table: pd.DataFrame, comparison: Comparison) -> str:
    """The figure in words."""
    return " ".join(f"No run beats, {ledger}: {', '.join(members(table, comparison, ledger))}." for ledger in Ledger)
