"""Methods against scratch at equal cost: a table with both ledgers, and a figure of the differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from growbench.analysis import tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.equal_cost import EqualCost, table
from growbench.analysis.estimator import Saving
from growbench.costs.accounts import Ledger
from growbench.formatting import NONE, difference, p_value
from growbench.report import inline
from growbench.report.drawing import LEDGER_TITLES, title
from growbench.report.forest import Forest, Line
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
    """Differences in final loss with their intervals: full markers with the source free, open ones with the source charged."""
    known = data.dropna(subset="difference")
    methods = list(dict.fromkeys(known["method"]))
    shown = Forest(comparison, [Line(comparison.label(method), method) for method in methods], width)
    figure, both = shown.panels(1)
    ends = known[["low", "difference", "high"]].to_numpy(float)
    low, high = min(np.nanmin(ends), 0), max(np.nanmax(ends), 0)
    for axes, ledger in zip(both, Ledger, strict=True):
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        for row in tables.records(known[known["ledger"] == ledger]):
            place, found = methods.index(row["method"]), Saving(row["difference"], row["low"], row["high"])
            drawn = shown.interval(axes, place, found, ledger)
            drawn += shown.write(axes, place, difference(row["difference"], row["low"], row["high"]))
            inline.tag(drawn, row["method"])
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_xlabel("final loss minus scratch's at the same FLOPs (nats)", loc="left")
        title(axes, LEDGER_TITLES[ledger])
    return figure
