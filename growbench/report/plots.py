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
    """A figure: the table it shows (also its CSV), how to draw that at a given width in inches, and whether it has a place."""

    table: Callable[[Comparison], pd.DataFrame]
    draw: Callable[[Comparison, pd.DataFrame, float], Figure]
    applies: Callable[[Comparison], bool] = lambda comparison: True

    def data(self, comparison: Comparison) -> pd.DataFrame:
        """Its table; an empty one where there is nothing to show, and no figure."""
        return self.table(comparison) if self.applies(comparison) else pd.DataFrame()


def _timed(comparison: Comparison) -> bool:
    """Whether there are seconds that compare."""
    return Unit.SECONDS in comparison.units


PLOTS = {
    "loss_vs_flops": Plot(tables.mean_curves, curves(Unit.FLOPS)),
    "loss_vs_seconds": Plot(tables.mean_curves, curves(Unit.SECONDS), _timed),
    "accuracy_vs_flops": Plot(
        tables.mean_curves, curves(Unit.FLOPS, columns.VAL_ACCURACY), lambda comparison: comparison.has_accuracy
    ),
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
    applying = {name: plot for name, plot in PLOTS.items() if plot.applies(comparison)}
    data = {table: table(comparison) for table in {plot.table for plot in applying.values()}}
    return {
        name: drawing.save(name, data[plot.table], partial(plot.draw, comparison), out)
        for name, plot in applying.items()
        if not data[plot.table].empty
    }
