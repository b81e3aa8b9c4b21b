"""In what order methods stand, and which of many a figure names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from growbench import registry
from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.estimator import Relation, Verdict
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.report.looks import REST, Look, looks

Row = Mapping[str, Any]
FEW, NAMED = 10, 8  # methods that a figure names: all up to the first number, else scratch and others, in all the second


class Group(NamedTuple):
    """Methods that stand together, the largest saving first."""

    title: str
    rows: Sequence[Row]


def groups(table: pd.DataFrame) -> list[Group]:
    """The rows of a table of savings without scratch, by whether a method meets scratch, and controls by themselves."""
    rows = [row for row in tables.records(table) if row[columns.METHOD] != SCRATCH]
    ranked = sorted(rows, key=_rank)
    found = {title: [row for row in ranked if _title(row) == title] for title in (MEETS, MISSES, UNKNOWN, CONTROLS)}
    return [Group(title, members) for title, members in found.items() if members]


MEETS, MISSES, UNKNOWN, CONTROLS = "Meet scratch", "End above scratch", "No saving known", "Controls"


def _title(row: Row) -> str:
    saving = columns.saving_in(row, Unit.FLOPS, Ledger.REUSE)
    if row["control"]:
        return CONTROLS
    return UNKNOWN if not saving.known else MISSES if saving.relation == Relation.BELOW else MEETS


def _rank(row: Row) -> tuple[bool, bool, float]:
    """What is shown to save first; then by saving, with bounds from above last."""
    saving = columns.saving_in(row, Unit.FLOPS, Ledger.REUSE)
    claimed = row[columns.verdict(Ledger.REUSE)] == Verdict.SAVES
    below = saving.relation == Relation.BELOW
    return not claimed, below, math.inf if math.isnan(saving.mean) else -saving.mean


def named(comparison: Comparison) -> list[str]:
    """The methods that figures name and colour: all of few; of many scratch, the first of the ranking, and the best control."""
    if len(comparison.methods) <= FEW:
        return comparison.methods
    found = groups(comparison.verdicts)
    controls = [row[columns.METHOD] for group in found if group.title == CONTROLS for row in group.rows][:1]
    others = [row[columns.METHOD] for group in found if group.title != CONTROLS for row in group.rows]
    chosen = {SCRATCH, *controls, *others[: NAMED - 1 - len(controls)]}
    return [method for method in comparison.methods if method in chosen]


def shown_looks(comparison: Comparison) -> dict[str, Look]:
    """The looks of figures in which many lines cross: those of the named methods; the rest is grey."""
    found, chosen = looks(comparison.methods), named(comparison)
    return {method: found[method] if method in chosen else REST for method in comparison.methods}


def papers(comparison: Comparison) -> dict[str, str]:
    """The addresses of the papers that built-in methods, and variants of them, come from."""
    known = registry.papers()
    owners = {run.record.method: run.record.variant_of or run.record.method for run in comparison.runs}
    return {method: known[owner] for method, owner in owners.items() if owner in known}
