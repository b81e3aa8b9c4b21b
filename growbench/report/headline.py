"""The result of an experiment in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from growbench.analysis import tables
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import percent
from growbench.registry import SCRATCH
from growbench.report.cells import saving_of, unknown


def headline(comparison: Comparison) -> str:
    """The result in a few sentences: the best method, and what the best control saves."""
    rows = [row for row in tables.records(comparison.savings) if row["method"] != SCRATCH]
    target = f"the target loss of {comparison.target:.3f}"
    if not rows:
        return f"Only scratch has been run. Other methods will have to meet {target}."
    best, control = (_best(row for row in rows if row["control"] == control) for control in (False, True))
    if best is None:
        sentences = [f"No method has a saving: none met {target} in every seed that scratch finished too."]
    else:
        saves = best["flops_saving_reuse"] > 0
        sentences = [
            f"{'' if saves else 'No method saves training. At best, '}{comparison.label(best['method'])} meets {target} with "
            f"{_more_or_less(best['flops_saving_reuse'])} FLOPs than scratch{_certainty(best)}; {_with_source_charged(best)}."
        ]
        sentences += [_on_ladder(row) for row in tables.records(comparison.ladder) if row["method"] == best["method"]]
    if control:
        sentences.append(f"The best control, {control['method']}, needs {_more_or_less(control['flops_saving_reuse'])}.")
    return " ".join(sentences)


def _with_source_charged(row: Mapping[str, Any]) -> str:
    if unknown(row, "flops_saving_build"):
        return "what the small model's own training cost is not known"
    return f"with {_more_or_less(row['flops_saving_build'])}, once the small model's own training is charged"


def _on_ladder(row: Mapping[str, Any]) -> str:
    if row["reached"] < row["seeds"]:
        return f"On the ladder it meets the target in {row['reached']} of {row['seeds']} seeds only."
    return f"On the ladder it saves {saving_of(row, Unit.FLOPS, Ledger.REUSE)}."


def _best(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The method that saves most FLOPs; None if none has a saving."""
    saving = [row for row in rows if not math.isnan(row["flops_saving_reuse"])]
    return max(saving, key=lambda row: row["flops_saving_reuse"], default=None)


def _certainty(row: Mapping[str, Any]) -> str:
    if row["seeds"] == 1:
        return " (one seed)"
    low, high = (percent(row[f"flops_saving_reuse_{end}"], 0) for end in ("low", "high"))
    return f" (95\N{NO-BREAK SPACE}% interval of the saving {low} to {high}, {row['seeds']} seeds)"


def _more_or_less(saving: float) -> str:
    return f"{percent(abs(saving), 0)} {'fewer' if saving > 0 else 'more'}"
