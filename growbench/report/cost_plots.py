"""What whole runs cost, by account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Account
from growbench.report import inline
from growbench.report.cells import cost_scale
from growbench.report.drawing import (
    SMALL,
    TITLES,
    Frame,
    Name,
    human_axis,
    is_wide,
    labels,
    left_edge,
    panels,
    room,
    title,
    write_name,
)
from growbench.report.looks import SOFT, looks

STRENGTHS = {  # of the method's colour, in the order of a bar; the source's part is an outline
    Account.SOURCE: 0.0,
    Account.GROWTH: 1.0,
    Account.OPERATOR: 0.5,
    Account.TEACHER: 0.25,
    Account.TRAIN: 0.75,
}


@dataclass(frozen=True)
class Bar:
    """What one method's whole run cost by account, at a height from above."""

    method: str
    place: int
    costs: Mapping[Any, float]

    @property
    def known(self) -> bool:
        """Whether it is known but for its source. Seconds that do not compare are not."""
        return not any(np.isnan(cost) for account, cost in self.costs.items() if account != Account.SOURCE)

    @property
    def total(self) -> float:
        return float(np.nansum(list(self.costs.values()))) if self.known else 0.0


def cost_breakdown(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
    """What each method's whole run cost, stacked by account; the source model's own training, outlined, comes first."""
    methods = [method for method in comparison.methods if method in set(data[columns.METHOD])]
    names = room(labels(comparison)) - 0.1
    height = 0.25 * len(methods) + 0.1
    figure, both = panels(width, [height], len(comparison.units), Frame(names, 0.7, 0.2 if is_wide(width) else 0.0))
    drawn = looks(comparison.methods)
    for number, (axes, unit) in enumerate(zip(both, comparison.units, strict=True)):
        rows = data[data[columns.UNIT] == unit]
        costs = rows.pivot(index=columns.ACCOUNT, columns=columns.METHOD, values=columns.COST).to_dict()
        bars = [Bar(method, place, costs[method]) for place, method in enumerate(methods)]
        scale = cost_scale(max((bar.total for bar in bars), default=0.0), unit)
        for bar in bars:
            text = scale.text(bar.total) + " + source" * bool(np.isnan(bar.costs[Account.SOURCE])) if bar.known else "not known"
            inline.tag([*_parts(axes, bar, drawn[bar.method].colour), _total(axes, bar, text)], bar.method)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_yticks([])
        if number == 0 or not is_wide(width):
            for bar in bars:
                write_name(axes, left_edge(axes), bar.place, Name(bar.method, comparison.label(bar.method), drawn[bar.method]))
        title(axes, f"{TITLES[unit]} of a whole run ({scale.name})")
        human_axis(axes, scale)
    paid = set(data.loc[data[columns.COST] > 0, columns.ACCOUNT])
    patches = [Patch(label=account, **_fill(account, SOFT.light)) for account in STRENGTHS if account in paid]
    left = (names - 0.1) / width if is_wide(width) else 0.0
    figure.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(left, 0), ncols=len(patches), frameon=False, fontsize=SMALL,
        handlelength=1.2, handletextpad=0.5, columnspacing=1.0, labelcolor=SOFT.light,
    )  # fmt: skip
    return figure


def _parts(axes: Axes, bar: Bar, colour: str) -> list[Any]:
    """A bar's parts one after another; none whose cost is not known."""
    total, drawn = 0.0, []
    for account in STRENGTHS if bar.known else ():
        if (cost := bar.costs[account]) > 0:
            drawn += axes.barh(bar.place, cost, left=total, height=0.62, clip_on=False, **_fill(account, colour)).patches
            total += cost
    return drawn


def _total(axes: Axes, bar: Bar, text: str) -> Any:
    return axes.annotate(text, (bar.total, bar.place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL)


def _fill(account: Account, colour: str) -> dict[str, Any]:
    return {"facecolor": to_rgba(colour, STRENGTHS[account]), "edgecolor": colour, "linewidth": 0.8}
