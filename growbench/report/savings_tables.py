"""The tables that set methods side by side: costs and savings, the ladder, the papers' claims, tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import NONE, Scale, counted, p_value, percent
from growbench.report.cells import UNKNOWN, cost_scale, saving_of
from growbench.report.parts import GroupedTable, MethodRow, markdown_table, method_names

GROUPS = {Unit.FLOPS: "FLOPs", Unit.SECONDS: "Time"}  # titles of groups of columns
TITLES = {Unit.FLOPS: "FLOPs", Unit.SECONDS: "time"}  # within a head


@dataclass(frozen=True)
class SavingsTable:
    """Per method its final loss, how often it met the target, and what that cost and saved."""

    comparison: Comparison

    @property
    def own_heads(self) -> list[str]:
        """The heads between the methods' names and the columns on costs."""
        return ["final loss", *(["final accuracy"] if self.comparison.has_accuracy else []), "reached"]

    @property
    def scales(self) -> dict[Unit, Scale]:
        """One scale a unit: the one that suits the most expensive run."""
        ended = [run for run in self.comparison.runs if run.curve]
        return {unit: cost_scale(max(run.curve[-1][unit] for run in ended), unit) for unit in Unit}

    def cost_heads(self, unit: Unit) -> dict[str, str]:
        """The heads of a unit's columns: below the group's title, and readable alone."""
        name = self.scales[unit].name
        return {f"to target, {ledger}": f"{name} to target, {ledger}" for ledger in Ledger} | {
            f"saved, {ledger}": f"{TITLES[unit]} saved, {ledger}" for ledger in Ledger
        }

    def cells(self, row: Mapping[str, Any]) -> list[str]:
        """A method's figures in the order of the heads."""
        loss, scales = row["final_val_loss"], self.scales
        cells = [NONE if math.isnan(loss) else f"{loss:.3f}"]
        if self.comparison.has_accuracy:
            cells.append(percent(row["final_val_accuracy"]))
        cells.append(f"{row['reached']} of {row['seeds']}")
        for unit in Unit:
            costs = [row[columns.cost_to_target(unit, ledger)] for ledger in Ledger]
            cells += [UNKNOWN if math.isnan(cost) else scales[unit].text(cost) for cost in costs]
            cells += [saving_of(row, unit, ledger) for ledger in Ledger]
        return cells

    def grouped(self) -> GroupedTable:
        """The table of the page."""
        groups = {f"{GROUPS[unit]} ({self.scales[unit].name})": self.cost_heads(unit) for unit in Unit}
        names = method_names(self.comparison)
        rows = [MethodRow(names[row["method"]], self.cells(row)) for row in tables.records(self.comparison.savings)]
        return GroupedTable(self.own_heads, groups, rows)

    def markdown(self) -> str:
        """The same to paste into a README."""
        heads = ["method", *self.own_heads, *(head for unit in Unit for head in self.cost_heads(unit).values())]
        rows = [
            [self.comparison.label(row["method"]) + " (control)" * row["control"], *self.cells(row)]
            for row in tables.records(self.comparison.savings)
        ]
        return markdown_table(heads, rows)


@dataclass(frozen=True)
class Ladder:
    """What one budget says and what several say, side by side; the FLOPs that the ladder's runs were charged, and spent."""

    table: GroupedTable
    runs: str
    charged: float
    spent: float
    scale: Scale

    @property
    def charged_text(self) -> str:
        return f"{self.scale.text(self.charged)} {self.scale.name}"

    @property
    def spent_text(self) -> str:
        return f"{self.scale.text(self.spent)} {self.scale.name}"


def ladder(comparison: Comparison) -> Ladder | None:
    """None where there is one budget only."""
    if comparison.ladder.empty:
        return None
    single = {row["method"]: row for row in tables.records(comparison.savings)}
    pairs = [(unit, ledger) for unit in Unit for ledger in Ledger]
    groups = {
        f"{GROUPS[unit]} saved, {ledger}": {
            protocol: f"{TITLES[unit]} saved, {ledger}: {protocol}" for protocol in ("single", "ladder")
        }
        for unit, ledger in pairs
    }
    names = method_names(comparison)
    rows = [
        MethodRow(
            names[row["method"]],
            [saving_of(table_row, *pair) for pair in pairs for table_row in (single[row["method"]], row)],
        )
        for row in tables.records(comparison.ladder)
    ]
    rungs = comparison.rungs
    charged, spent = rungs[columns.cost(Unit.FLOPS, Ledger.REUSE)].sum(), rungs[columns.spent(Unit.FLOPS)].sum()
    runs = counted(len(rungs), "run")
    return Ladder(GroupedTable([], groups, rows), runs, charged, spent, cost_scale(charged, Unit.FLOPS))


def papers(comparison: Comparison) -> GroupedTable | None:
    """The papers' figures beside ours, each counter in a column of its own; None where no paper gives any."""
    claims = comparison.savings[[columns.published_saving(unit) for unit in Unit]].notna().any(axis=1)
    if not claims.any():
        return None
    groups = {
        "FLOPs saved, reuse": _heads("FLOPs saved", ("our counter", "the paper's counter", "the paper claims")),
        "Time saved, reuse": _heads("time saved", ("measured", "the paper claims")),
    }
    names = method_names(comparison)
    rows = [
        MethodRow(
            names[row["method"]],
            [
                saving_of(row, Unit.FLOPS, Ledger.REUSE),
                percent(row[columns.PAPER_SAVING]),
                percent(row[columns.published_saving(Unit.FLOPS)]),
                saving_of(row, Unit.SECONDS, Ledger.REUSE),
                percent(row[columns.published_saving(Unit.SECONDS)]),
            ],
        )
        for row in tables.records(comparison.savings[claims])
    ]
    return GroupedTable([], groups, rows)


def tests(comparison: Comparison) -> GroupedTable | None:
    """The p-values; None where the seeds are too few for any."""
    values = [columns.p_value(other, ledger) for other in ("scratch", "best") for ledger in Ledger]
    tested = comparison.savings[values].notna().any(axis=1)
    if not tested.any():
        return None
    groups = {
        "Against scratch": _heads("p against scratch", Ledger),
        "Against the best other": _heads("p against the best other", Ledger),
    }
    names = method_names(comparison)
    rows = [
        MethodRow(names[row["method"]], [p_value(row[value]) for value in values])
        for row in tables.records(comparison.savings[tested])
    ]
    return GroupedTable([], groups, rows)


def _heads(title: str, heads: Iterable[str]) -> dict[str, str]:
    """Heads, and by each the same readable without its group's title."""
    return {str(head): f"{title}, {head}" for head in heads}
