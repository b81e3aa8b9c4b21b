"""What whole runs cost, by account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Account
from growbench.report.cells import cost_scale
from growbench.report.drawing import GREY, TITLES, human_axis, labels, looks, name_rows, panels, room, title


@dataclass(frozen=True)
class Fill:
    """How an account's part of a bar is filled: the strength of the method's colour, and a hatching."""

    strength: float
    hatch: str = ""


FILLS = {  # in the order of a bar
    Account.SOURCE: Fill(0.0),
    Account.GROWTH: Fill(1.0),
    Account.OPERATOR: Fill(0.35, "///"),
    Account.TEACHER: Fill(0.35, "xxx"),
    Account.TRAIN: Fill(0.75),
}


def cost_breakdown(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """What each method's whole run cost, stacked by account; the source model's own training, outlined, comes first."""
    methods = [method for method in comparison.methods if method in set(data[columns.METHOD])]
    height = 0.36 * len(methods) + 0.1
    figure, both = panels(width, [height] * len(comparison.units), room(labels(comparison)), 0.6)
    drawn = looks(comparison.methods)
    for axes, unit in zip(both, comparison.units, strict=True):
        costs = {
            (row[columns.METHOD], row[columns.ACCOUNT]): row[columns.COST]
            for row in tables.records(data[data[columns.UNIT] == unit])
        }
        totals = [np.nansum([costs[method, account] for account in FILLS]) for method in methods]
        scale = cost_scale(max(totals, default=0.0), unit)
        for place, method in enumerate(reversed(methods)):
            total = 0.0
            for account in FILLS:
                if (cost := costs[method, account]) > 0:  # not of a source whose cost is not known
                    axes.barh(place, cost, left=total, height=0.62, **_fill(account, drawn[method].colour))
                    total += cost
            text = scale.text(total) + " + source" * bool(np.isnan(costs[method, Account.SOURCE]))
            axes.annotate(text, (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        name_rows(axes, [comparison.label(method) for method in methods], [drawn[method] for method in methods])
        title(axes, f"{TITLES[unit]} of a whole run ({scale.name})")
        human_axis(axes, scale)
    paid = set(data.loc[data[columns.COST] > 0, columns.ACCOUNT])
    patches = [Patch(label=account, **_fill(account, GREY)) for account in FILLS if account in paid]
    figure.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0.1 / width, 0), ncols=len(patches), frameon=False,
        fontsize=8, handlelength=1.2, handletextpad=0.5, columnspacing=1.0,
    )  # fmt: skip
    return figure


def _fill(account: Account, colour: str) -> dict[str, Any]:
    fill = FILLS[account]
    tint = [1 - fill.strength * (1 - channel) for channel in to_rgb(colour)]
    return {"facecolor": tint, "hatch": fill.hatch, "edgecolor": colour, "linewidth": 0.8}
