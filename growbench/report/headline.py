"""The result of an experiment in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.estimator import Verdict
from growbench.analysis.notes import LEFT_OUT
from growbench.analysis.protocols import Protocol
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import counted
from growbench.registry import SCRATCH
from growbench.report.cells import saving_of
from growbench.runs import store

Row = Mapping[str, Any]

PROTOCOLS = {Protocol.SINGLE: "Read off one run's curve", Protocol.LADDER: "By the ladder of budgets"}
LEDGERS = {
    Ledger.REUSE: "with the source free (reuse ledger),",
    Ledger.BUILD: "with the source's training charged (build ledger),",
}
MANY = 3  # methods, above which not all are named


def headline(comparison: Comparison) -> str:
    """Which methods save FLOPs in either ledger by the protocol that decides, and whether controls do."""
    return " ".join(sentences(comparison))


def sentences(comparison: Comparison) -> list[str]:
    """The headline's: one a ledger, and one on the controls."""
    rows = [row for row in tables.records(comparison.verdicts) if row["method"] != SCRATCH]
    if not rows:
        return [f"Only scratch has been run. It ends at a loss of {comparison.target_loss:.3f}."]
    methods, controls = ([row for row in rows if row["control"] == control] for control in (False, True))
    found = [_sentence(comparison, methods, ledger) for ledger in Ledger if methods]
    if found:
        protocol = PROTOCOLS[Protocol(methods[0]["protocol"])]
        found[0] = f"{protocol}, {found[0]}"
        found[1] = found[1][0].upper() + found[1][1:]
    return [*found, *_controls(comparison, controls)]


def urgent(comparison: Comparison) -> list[str]:
    """The notes that belong beside every table of savings: what was left out, and costs that are not known."""
    return [note for note in comparison.notes if store.UNKNOWN_SOURCE in note or note.startswith(LEFT_OUT)]


def _sentence(comparison: Comparison, rows: Sequence[Row], ledger: Ledger) -> str:
    """One ledger's. What saves is named with its savings, the largest first; where nothing does, the nearest method is."""
    known = [row for row in rows if columns.saving_in(row, Unit.FLOPS, ledger).known]
    ranked = sorted(known, key=lambda row: -row[columns.saving(Unit.FLOPS, ledger)])
    savers = [row for row in ranked if row[columns.verdict(ledger)] == Verdict.SAVES]
    tested = [row for row in rows if row[columns.p_value(ledger)] >= 0]
    if savers:
        named = ", ".join(_named(comparison, row, ledger) for row in savers[:MANY])
        rest = f" and {counted(len(savers) - MANY, 'other')}" if len(savers) > MANY else ""
        number = f"{len(savers)} of {counted(len(rows), 'method')} {'saves' if len(savers) == 1 else 'save'}"
        return f"{LEDGERS[ledger]} {number} FLOPs: {named}{rest}."
    nothing = f"{LEDGERS[ledger]} no method is shown to save FLOPs"
    measured = [row for row in ranked if columns.saving_in(row, Unit.FLOPS, ledger).measured]
    if not measured:
        return f"{nothing}."
    verdict = measured[0][columns.verdict(ledger)]
    said = verdict if measured[0] in tested else f"no verdict: {verdict}"
    return f"{nothing}; the best estimate is {_named(comparison, measured[0], ledger)}, {said}."


def _named(comparison: Comparison, row: Row, ledger: Ledger) -> str:
    return f"{comparison.label(row['method'])} {saving_of(row, Unit.FLOPS, ledger)}"


def _controls(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """In the reuse ledger, which favours those that have a source."""
    if not rows:
        return []
    savers = [row for row in rows if row[columns.verdict(Ledger.REUSE)] == Verdict.SAVES]
    if not savers:
        return [f"No control is shown to save ({', '.join(row['method'] for row in rows)})."]
    return [f"Controls save too: {', '.join(_named(comparison, row, Ledger.REUSE) for row in savers)}."]
