"""What a page holds of its runs for its interactive layer, in JSON's types: all that estimates of savings and curves need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from growbench.analysis.comparison import Comparison
from growbench.analysis.protocols import Protocol
from growbench.costs.accounts import Ledger, Unit
from growbench.runs.store import Run


def runs_of(comparison: Comparison) -> list[dict[str, Any]]:
    """The compared runs, those of a ladder's other budgets without their curves. Null: not known, or not finite.

    Costs and losses keep all their digits, so that a page estimates what growbench.analysis does.
    """
    kept = comparison.runs if comparison.ladder.empty else comparison.readings[Protocol.LADDER].runs
    return [_run(run, comparison.has_accuracy) for run in kept]


def _run(run: Run, accuracy: bool) -> dict[str, Any]:
    record = run.record
    return {
        "method": record.method,
        "seed": record.seed,
        "budget": record.budget_share,
        "finished": run.finished,
        "final": number(run.final_loss),
        "tokens": record.tokens,
        "charged": {unit: number(run.cost(unit, Ledger.REUSE)) for unit in Unit},
        "source": {unit: number(run.source_cost(unit)) for unit in Unit},
        "curve": _curve(run.curve, accuracy) if record.budget_share == 1 else None,
        **({"accuracy": number(record.final_val_accuracy or math.nan)} if accuracy else {}),
    }


def _curve(rows: Sequence[dict[str, Any]], accuracy: bool) -> dict[str, Any]:
    """Its columns. `phases`: their names, in order; `phase`: by row the place of its phase among them."""
    phases, places = list[str](), list[int]()
    for row in rows:
        if not phases or row["phase"] != phases[-1]:
            phases.append(row["phase"])
        places.append(len(phases) - 1)
    columns = {key: packed(row.get(key, math.nan) for row in rows) for key in ("step", "tokens", *Unit)}  # older rows lack tokens
    scored = packed(int(row["scored"]) for row in rows)
    if accuracy:
        columns["accuracy"] = packed(row.get("val_accuracy", math.nan) for row in rows)
    return columns | {
        "loss": packed(row["val_loss"] for row in rows),
        "scored": scored,
        "phase": packed(places),
        "phases": phases,
    }


def number(value: float) -> float | None:
    """Null where it is not finite."""
    return value if math.isfinite(value) else None


def packed(values: Iterable[float]) -> list[Any]:
    """Numbers as they are, null where they are not finite; three or more that rise by one step as [first, count, step].

    Only where the page's repeated addition, of doubles, gives exactly these numbers.
    """
    left, found = [number(value) for value in values], list[Any]()
    while left:
        count, step = _rising(left)
        found.append([left[0], count, step] if count > 2 else left[0])
        left = left[count if count > 2 else 1 :]
    return found


def _rising(values: Sequence[float | None]) -> tuple[int, float]:
    """How many numbers from the first on rise by the same step, and that step."""
    first, second = (*values, None)[:2]
    if first is None or second is None:
        return 1, 0
    step, expected, count = second - first, float(first), 0
    while count < len(values) and values[count] == expected:
        expected, count = expected + step, count + 1
    return count, step
