"""What each figure shows, in words, for those who do not see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pandas as pd

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.protocols import Protocol
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import difference, percent
from growbench.registry import SCRATCH
from growbench.report.cells import cost_scale, outcome
from growbench.report.headline import headline


def described(comparison: Comparison) -> Mapping[str, str]:
    """The result that each figure shows, by the figure's name."""
    deciding = Protocol.SINGLE if comparison.ladder.empty else Protocol.LADDER
    said = {name: say(comparison) for name, say in WORDS.items()}
    decides = "savings" if deciding == Protocol.SINGLE else "ladder_savings"
    return {**said, decides: f"{headline(comparison)} {said[decides]}"}


def _finals(measure: str, form: Callable[[float], str]) -> Callable[[Comparison], str]:
    """The methods' final values, scratch among them, from the smallest to the largest."""

    def say(comparison: Comparison) -> str:
        column = f"final_{measure}"
        if column not in comparison.savings:
            return ""
        ranked = comparison.savings.dropna(subset=column).sort_values(column)
        values = ", ".join(f"{comparison.label(row['method'])} {form(row[column])}" for row in tables.records(ranked))
        return f"Means over the seeds at the end: {values}."

    return say


def _savings(table: Callable[[Comparison], pd.DataFrame]) -> Callable[[Comparison], str]:
    def say(comparison: Comparison) -> str:
        rows = [row for row in tables.records(table(comparison)) if row["method"] != SCRATCH]
        said = [
            f"{comparison.label(row['method'])} {', '.join(f'{ledger} {outcome(row, Unit.FLOPS, ledger)}' for ledger in Ledger)}"
            for row in rows
        ]
        return f"FLOPs saved, with 95 % intervals: {'; '.join(said)}." if said else ""

    return say


def _saving_ends(comparison: Comparison) -> str:
    """Of the curves of savings over the loss."""
    curve = tables.savings_curve(comparison)
    reuse = curve[curve[columns.LEDGER] == Ledger.REUSE]
    ends = [
        (str(method), rows[columns.SAVING].iloc[0], rows[columns.SAVING].iloc[-1]) for method, rows in reuse.groupby("method")
    ]
    said = [f"{comparison.label(method)} from {percent(first)} to {percent(last)}" for method, first, last in ends]
    return f"With the source free, from the highest to the lowest loss: {', '.join(said)}." if said else ""


def _ends(savings: pd.Series) -> tuple[str, str]:
    """The first and the last."""
    return percent(savings.iloc[0]), percent(savings.iloc[-1])


def _amortised(comparison: Comparison) -> str:
    table = tables.amortised(comparison)
    said = [
        f"{comparison.label(str(method))} {' and '.join(_ends(rows[columns.SAVING]))}"
        for method, rows in table.groupby("method", sort=False)
    ]
    return f"Saved on one target, and on each of infinitely many: {', '.join(said)}." if said else ""


def _costs(comparison: Comparison) -> str:
    table = tables.cost_breakdown(comparison)
    totals = table[table[columns.UNIT] == Unit.FLOPS].groupby(columns.METHOD, sort=False)[columns.COST].sum()
    scale = cost_scale(totals.max(), Unit.FLOPS)
    said = ", ".join(f"{comparison.label(str(method))} {scale.text(total)}" for method, total in totals.items())
    return f"{scale.name} of a whole run with its source: {said}." if said else ""


def _equal_cost(comparison: Comparison) -> str:
    known = [each for each in comparison.equal_cost if not math.isnan(each.difference)]
    said = [
        f"{comparison.label(each.method)}, {each.ledger} {difference(each.difference, each.low, each.high)}" for each in known
    ]
    return f"Nats above scratch at equal cost, with 95 % intervals: {'; '.join(said)}." if said else ""


_losses = _finals("val_loss", "{:.3f}".format)
WORDS: Mapping[str, Callable[[Comparison], str]] = {
    "loss_vs_flops": _losses,
    "loss_vs_seconds": _losses,
    "accuracy_vs_flops": _finals("val_accuracy", percent),
    "ladder_savings": _savings(lambda comparison: comparison.ladder),
    "savings": _savings(lambda comparison: comparison.savings),
    "savings_curve": _saving_ends,
    "ladder": _savings(lambda comparison: comparison.ladder),
    "equal_cost": _equal_cost,
    "amortised": _amortised,
    "cost_breakdown": _costs,
}
