"""The tables that set methods side by side: costs and savings, the ladder, the papers' claims, tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.protocols import Protocol
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import NONE, Scale, counted, difference, digits, p_value, percent
from growbench.report.cells import DID_NOT_FINISH, cost_scale, saving_of, verdict_of
from growbench.report.parts import GroupedTable, MethodRow, markdown_table, method_names

GROUPS = {Unit.FLOPS: "FLOPs", Unit.SECONDS: "Time"}  # titles of groups of columns
TITLES = {Unit.FLOPS: "FLOPs", Unit.SECONDS: "time"}  # within a head


@dataclass(frozen=True)
class SavingsTable:
    """Per method its final loss, in how many seeds it met scratch or the target, what it saved, and what the tests say."""

    comparison: Comparison

    @property
    def own_heads(self) -> list[str]:
        """The heads between the methods' names and the columns on savings."""
        met = "met target" if self.comparison.target_loss_given else "met scratch"
        return ["final loss", *(["final accuracy"] if self.comparison.has_accuracy else []), met]

    @property
    def groups(self) -> dict[str, dict[str, str]]:
        """By a group's title its heads, and by each the same readable alone."""
        flops = {f"FLOPs, {ledger}": {"saved": f"FLOPs saved, {ledger}", "verdict": f"verdict, {ledger}"} for ledger in Ledger}
        time = {"Time saved": _heads("time saved", Ledger)} if Unit.SECONDS in self.comparison.units else {}
        price = self.comparison.price
        return flops | time | ({f"Price at {price:g} an hour": _heads("price", Ledger)} if price else {})

    def cells(self, row: Mapping[str, Any]) -> list[str]:
        """A method's figures in the order of the heads."""
        loss = row["final_val_loss"]
        cells = [NONE if math.isnan(loss) else f"{loss:.3f}"]
        if self.comparison.has_accuracy:
            cells.append(percent(row["final_val_accuracy"]))
        cells.append(f"{row['reached']} of {row['seeds']}")
        for ledger in Ledger:
            cells += [saving_of(row, Unit.FLOPS, ledger), verdict_of(row, ledger)]
        prices = [digits(row[columns.price_to_target(ledger)]) for ledger in Ledger if self.comparison.price]
        return cells + _seconds_cells(self.comparison, row) + prices

    def grouped(self) -> GroupedTable:
        """The table of the page."""
        names = method_names(self.comparison)
        rows = [MethodRow(names[row["method"]], self.cells(row)) for row in tables.records(self.comparison.savings)]
        return GroupedTable(self.own_heads, self.groups, rows)

    def markdown(self) -> str:
        """The same to paste into a README."""
        heads = ["method", *self.own_heads, *(head for group in self.groups.values() for head in group.values())]
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
    groups = {}
    for ledger in Ledger:
        title = f"FLOPs saved, {ledger}"
        groups[title] = {str(protocol): f"{title}: {protocol}" for protocol in Protocol} | {
            "verdict": f"verdict, {ledger}: ladder"
        }
    if Unit.SECONDS in comparison.units:
        groups["Time saved, ladder"] = {str(ledger): f"time saved, {ledger}: ladder" for ledger in Ledger}
    names = method_names(comparison)
    rows = [
        MethodRow(names[row["method"]], _ladder_cells(comparison, single[row["method"]], row))
        for row in tables.records(comparison.ladder)
    ]
    rungs = comparison.rungs
    charged, spent = rungs[columns.cost(Unit.FLOPS, Ledger.REUSE)].sum(), rungs[columns.spent(Unit.FLOPS)].sum()
    runs = counted(len(rungs), "run")
    return Ladder(GroupedTable([], groups, rows), runs, charged, spent, cost_scale(charged, Unit.FLOPS))


def _seconds_cells(comparison: Comparison, row: Mapping[str, Any]) -> list[str]:
    """With the number of seeds that they are over, if there are some, but not all. None where no seconds compare."""
    timed, seeds = row[columns.TIMED], row["seeds"]
    some = f"; {timed} of {seeds} seeds" if 0 < timed < seeds else ""
    cells = [saving_of(row, Unit.SECONDS, ledger) for ledger in Ledger if Unit.SECONDS in comparison.units]
    return [cell + some * (not cell.startswith((DID_NOT_FINISH, NONE))) for cell in cells]


def _ladder_cells(comparison: Comparison, single: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    cells = []
    for ledger in Ledger:
        cells += [*(saving_of(each, Unit.FLOPS, ledger) for each in (single, row)), verdict_of(row, ledger)]
    return cells + _seconds_cells(comparison, row)


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


TEST_HEADS = ("difference", "at", "p", "Holm's p")


def tests(comparison: Comparison) -> dict[Protocol, GroupedTable]:
    """By protocol, each method's test in either ledger; none where the seeds are too few for any."""
    found = {Protocol.SINGLE: comparison.savings, Protocol.LADDER: comparison.ladder}
    made = {protocol: _tests(comparison, table) for protocol, table in found.items() if not table.empty}
    return {protocol: table for protocol, table in made.items() if table.rows}


def _tests(comparison: Comparison, table: pd.DataFrame) -> GroupedTable:
    groups = {f"FLOPs, {ledger}": {head: f"{head}, {ledger}" for head in TEST_HEADS} for ledger in Ledger}
    names = method_names(comparison)
    tested = [row for row in tables.records(table) if any(row[columns.p_value(ledger)] >= 0 for ledger in Ledger)]
    rows = [MethodRow(names[row["method"]], [cell for ledger in Ledger for cell in _test_cells(row, ledger)]) for row in tested]
    return GroupedTable([], groups, rows)


def _test_cells(row: Mapping[str, Any], ledger: Ledger) -> list[str]:
    return [
        difference(row[columns.difference(ledger)]),
        percent(row[columns.tested_at(ledger)]),
        p_value(row[columns.p_value(ledger)]),
        p_value(row[columns.adjusted_p_value(ledger)]),
    ]


def _heads(title: str, heads: Iterable[str]) -> dict[str, str]:
    """Heads, and by each the same readable without its group's title."""
    return {str(head): f"{title}, {head}" for head in heads}
