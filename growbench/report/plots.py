"""The figures of one experiment: one colour a method throughout, each in a wide and a narrow cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.protocols import Protocol
from growbench.costs.accounts import Unit
from growbench.report import drawing, equal_cost
from growbench.report.cost_plots import cost_breakdown
from growbench.report.curve_plots import curves, ladder
from growbench.report.forest import savings
from growbench.report.savings_plots import amortised, savings_curve


@dataclass(frozen=True)
class Plot:
    """A figure: the data it shows (also its CSV; none, no figure), and how to draw that at a given width in inches."""

    data: Callable[[Comparison], pd.DataFrame]
    draw: Callable[[Comparison, pd.DataFrame, float], Figure]


def _accuracy_curves(comparison: Comparison) -> pd.DataFrame:
    """Of images only."""
    return tables.mean_curves(comparison) if comparison.has_accuracy else pd.DataFrame()


def _timed_curves(comparison: Comparison) -> pd.DataFrame:
    """Where there are seconds that compare."""
    return tables.mean_curves(comparison) if Unit.SECONDS in comparison.units else pd.DataFrame()


PLOTS = {
    "loss_vs_flops": Plot(tables.mean_curves, curves(Unit.FLOPS)),
    "loss_vs_seconds": Plot(_timed_curves, curves(Unit.SECONDS)),
    "accuracy_vs_flops": Plot(_accuracy_curves, curves(Unit.FLOPS, columns.VAL_ACCURACY)),
    "ladder_savings": Plot(lambda comparison: comparison.ladder, savings(Protocol.LADDER)),
    "savings": Plot(lambda comparison: comparison.savings, savings(Protocol.SINGLE)),
    "savings_curve": Plot(tables.savings_curve, savings_curve),
    "ladder": Plot(tables.ladder_curves, ladder),
    "equal_cost": Plot(equal_cost.data, equal_cost.differences),
    "amortised": Plot(tables.amortised, amortised),
    "cost_breakdown": Plot(tables.cost_breakdown, cost_breakdown),
}


def save(comparison: Comparison, out: Path) -> dict[str, drawing.Cuts]:
    """Write every plot that there are data for to `out`, and give it by its name."""
    data = {name: plot.data(comparison) for name, plot in PLOTS.items()}
    return {
        name: drawing.save(name, data[name], partial(plot.draw, comparison), out)
        for name, plot in PLOTS.items()
        if not data[name].empty
    }
