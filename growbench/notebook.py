"""Stored results in Python, as in a notebook: `compare("results/gpt2-mini")` gives typed outcomes, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison, analyse
from growbench.analysis.estimator import Saving
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError, did_you_mean
from growbench.report import drawing, terminal
from growbench.report.headline import headline
from growbench.report.plots import PLOTS

__all__ = ["Ledger", "Outcome", "Results", "Saving", "Unit", "compare"]


@dataclass(frozen=True)
class Outcome:
    """What one method saves over scratch, in one ledger.

    `flops`, `seconds`: shares of scratch's cost, with 95 % intervals; NaN where none can be given. `verdict`: what the paired
    test of the FLOPs says. `p`: its p-value after Holm's correction; NaN without a test.
    """

    method: str
    ledger: Ledger
    flops: Saving
    seconds: Saving
    verdict: str
    p: float


@dataclass(frozen=True)
class Results:
    """The results of one experiment, as its report has them."""

    comparison: Comparison

    @property
    def headline(self) -> str:
        """Which methods save FLOPs, in a few sentences."""
        return headline(self.comparison)

    @property
    def savings(self) -> pd.DataFrame:
        """One row a method, by the protocol that decides: the columns of savings.csv, or of ladder_savings.csv."""
        return self.comparison.verdicts.copy()

    @property
    def curves(self) -> pd.DataFrame:
        """The loss curves: per method the mean over its seeds, with the lowest and the highest. FLOPs: multiply-add = 2."""
        return tables.mean_curves(self.comparison)

    @property
    def runs(self) -> pd.DataFrame:
        """One row a run: what it paid until it met scratch's loss (inf: it did not), and what that saves."""
        return self.comparison.outcomes.copy()

    @property
    def figures(self) -> list[str]:
        """The names of the figures that there are data for."""
        return [name for name, plot in PLOTS.items() if not plot.data(self.comparison).empty]

    def outcome(self, method: str, ledger: Ledger | str = Ledger.REUSE) -> Outcome:
        """What a method saves, in the ledger "reuse" or "build". Raises UsageError for one that was not compared."""
        rows = {row["method"]: row for row in tables.records(self.comparison.verdicts)}
        if method not in rows:
            raise UsageError(f"no method {method!r} was compared: {did_you_mean(method, rows)}")
        return _outcome(rows[method], Ledger(ledger))

    def plot(self, name: str = "loss_vs_flops", width: float = drawing.WIDE) -> Figure:
        """A figure of the report, `width` inches wide. Raises UsageError for a name that is not in `figures`."""
        if name not in self.figures:
            raise UsageError(f"no figure {name!r}: {did_you_mean(name, self.figures)}")
        plot = PLOTS[name]
        with style.context(["default", drawing.PARAMETERS]):
            return plot.draw(self.comparison, plot.data(self.comparison), width)

    def __str__(self) -> str:
        return terminal.text(self.comparison)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def _outcome(row: Mapping[str, Any], ledger: Ledger) -> Outcome:
    flops, seconds = (columns.saving_in(row, unit, ledger) for unit in (Unit.FLOPS, Unit.SECONDS))
    verdict, p = row[columns.verdict(ledger)], row[columns.adjusted_p_value(ledger)]
    return Outcome(row["method"], ledger, flops, seconds, str(verdict), float(p))


def compare(folder: Path | str, target_loss: float | None = None) -> Results:
    """The results in an experiment's folder, such as results/gpt2-mini. `target_loss`: nats; default: scratch's final loss.

    Raises UsageError when there are no runs, or neither a finished scratch run nor a `target_loss`.
    """
    return Results(analyse(Path(folder), target_loss))
