"""The verdict of an experiment as plain text, for a terminal of 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import NONE
from growbench.registry import SCRATCH
from growbench.report.cells import NO_VERDICT, saving_of
from growbench.report.headline import headline, urgent

COLUMNS = 80
HEADS = ("method", "loss", "ledger", "FLOPs saved", "verdict")
CONTROL = "*"  # follows the name of a control


def text(comparison: Comparison) -> str:
    """The headline, and per method its final loss, what it saved in either ledger, and the verdict on that."""
    losses = {row["method"]: row["final_val_loss"] for row in tables.records(comparison.savings)}
    rows = tables.records(comparison.verdicts)
    lines = [line for row in rows for line in _lines(comparison, row, losses[row["method"]])]
    parts = [textwrap.fill(headline(comparison), COLUMNS, break_on_hyphens=False), _aligned([HEADS, *lines])]
    if any(row["control"] for row in rows):
        parts.append(f"{CONTROL} a control")
    parts += [textwrap.fill(note, COLUMNS, break_on_hyphens=False) for note in urgent(comparison)]
    return "\n\n".join(parts).replace("\N{NO-BREAK SPACE}", " ") + "\n"


def _lines(comparison: Comparison, row: Mapping[str, Any], loss: float) -> list[tuple[str, ...]]:
    """A method's line in each ledger; one line where they say the same."""
    said = {ledger: (saving_of(row, Unit.FLOPS, ledger), _verdict(row, ledger)) for ledger in Ledger}
    name = comparison.label(row["method"]) + CONTROL * row["control"]
    head = name, NONE if math.isnan(loss) else f"{loss:.3f}"
    if len({*said.values()}) == 1:
        return [(*head, "both", *said[Ledger.REUSE])]
    return [(*(head if ledger == Ledger.REUSE else ("", "")), str(ledger), *cells) for ledger, cells in said.items()]


def _verdict(row: Mapping[str, Any], ledger: Ledger) -> str:
    """Without what every verdict compares with; blank for scratch."""
    if row["method"] == SCRATCH:
        return ""
    untested = math.isnan(row[columns.adjusted_p_value(ledger)])
    return NO_VERDICT if untested else str(row[columns.verdict(ledger)]).removesuffix(" from scratch")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
