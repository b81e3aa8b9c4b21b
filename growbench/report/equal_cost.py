"""Methods against scratch at equal cost: a table with both ledgers, and a figure of the differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from growbench.analysis import tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.equal_cost import EqualCost, table
from growbench.costs.accounts import Ledger
from growbench.formatting import NONE, difference, p_value
from growbench.report.drawing import GREY, INK, WIDE, labels, looks, name_rows, panels, room, title
from growbench.report.parts import GroupedTable, MethodRow, method_names

HEADS = ("scratch's budget", "scratch's loss", "difference", "p")


@dataclass(frozen=True)
class EqualCostTable:
    """`reasons`: why figures are missing, a sentence each."""

    table: GroupedTable
    reasons: Sequence[str]


def at_equal_cost(comparison: Comparison) -> EqualCostTable | None:
    """None where there is scratch alone."""
    if not comparison.equal_cost:
        return None
    names = method_names(comparison)
    by_method: dict[str, list[EqualCost]] = {}
    for each in comparison.equal_cost:
        by_method.setdefault(each.method, []).append(each)
    groups = {str(ledger).capitalize(): {head: f"{ledger}: {head}" for head in HEADS} for ledger in Ledger}
    rows = [
        MethodRow(names[method], [_final_loss(found), *(cell for each in found for cell in _cells(each))])
        for method, found in by_method.items()
    ]
    reasons = [sentence for found in by_method.values() for sentence in _reasons(comparison, found)]
    return EqualCostTable(GroupedTable(["final loss"], groups, rows), reasons)


def _final_loss(found: Sequence[EqualCost]) -> str:
    losses = [each.final_val_loss for each in found if not math.isnan(each.final_val_loss)]
    return f"{losses[0]:.3f}" if losses else NONE


def _cells(found: EqualCost) -> list[str]:
    budget = NONE if math.isnan(found.budget) else f"{found.budget:.3g}"
    if not found.known:
        return [budget, NONE, "not known", NONE]
    figures = difference(found.difference, found.low, found.high)
    return [budget, f"{found.scratch_loss:.3f}", figures, p_value(found.p_holm)]


def _reasons(comparison: Comparison, found: Sequence[EqualCost]) -> list[str]:
    """One sentence for each reason, which both ledgers may share."""
    ledgers: dict[str, list[str]] = {}
    for each in found:
        ledgers.setdefault(each.note, []).append(str(each.ledger))
    label = comparison.label(found[0].method)
    return [f"{label}, {' and '.join(about)}: {note}." for note, about in ledgers.items() if note]


def data(comparison: Comparison) -> pd.DataFrame:
    """Of the figure: the table; empty where no difference is known."""
    return table(comparison.equal_cost if any(each.known for each in comparison.equal_cost) else [])


def differences(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """Differences in final loss with their intervals: full dots with the source free, open ones with the source charged."""
    known = data.dropna(subset="difference")
    methods = list(dict.fromkeys(known["method"]))
    figure, (axes,) = panels(width, [0.46 * len(methods) + 0.1], room(labels(comparison)), 2.5 if width == WIDE else 1.3)
    drawn, places = looks(comparison.methods), dict(zip(reversed(methods), range(len(methods)), strict=True))
    for row in tables.records(known):
        look, reuse = drawn[row["method"]], row["ledger"] == Ledger.REUSE
        place = places[row["method"]] + (0.17 if reuse else -0.17)
        axes.plot([row["low"], row["high"]], [place] * 2, color=look.colour, linewidth=1.6)
        face = look.colour if reuse else "white"
        axes.plot(row["difference"], place, look.dot, color=look.colour, markerfacecolor=face, markersize=7.5)
        interval = (row["low"], row["high"]) if width == WIDE else (math.nan, math.nan)  # the narrow cut has no room for it
        text = f"{row['ledger']}  {difference(row['difference'], *interval)}"
        axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)
    axes.axvline(0, color=GREY, linewidth=1.2)
    axes.set_ylim(-0.55, len(methods) - 0.45)
    axes.margins(x=0.06)
    name_rows(axes, [comparison.label(method) for method in methods], [drawn[method] for method in methods])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6 if width == WIDE else 3, steps=[1, 2, 5, 10]))
    axes.set_xlabel("nats; left of 0 the method ends lower", loc="left")
    title(axes, "Final loss minus scratch's at the same FLOPs")
    return figure
