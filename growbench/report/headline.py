"""The result of an experiment in a few sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from growbench.analysis import tables
from growbench.analysis.columns import Saving
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import percent
from growbench.registry import SCRATCH
from growbench.report.cells import saving_of, source_unknown


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
        method, reuse = best["method"], _saving(best)
        sentences = [
            f"{'' if reuse.mean > 0 else 'No method saves training. At best, '}{comparison.label(method)} meets {target} with "
            f"{_more_or_less(reuse)} FLOPs than scratch{_certainty(reuse, best['seeds'])}; {_with_source_charged(best)}."
        ]
        sentences += [_on_ladder(row) for row in tables.records(comparison.ladder) if row["method"] == method]
    if control:
        sentences.append(f"The best control, {control['method']}, needs {_more_or_less(_saving(control))}.")
    return " ".join(sentences)


def _saving(row: Mapping[str, Any], ledger: Ledger = Ledger.REUSE) -> Saving:
    return Saving.of(row, Unit.FLOPS, ledger)


def _best(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The method that saves most FLOPs; None if none has a saving."""
    return max((row for row in rows if _saving(row).known), key=lambda row: _saving(row).mean, default=None)


def _certainty(saving: Saving, seeds: int) -> str:
    if seeds == 1:
        return " (one seed)"
    low, high = percent(saving.low, 0), percent(saving.high, 0)
    return f" (95\N{NO-BREAK SPACE}% interval of the saving {low} to {high}, {seeds} seeds)"


def _with_source_charged(row: Mapping[str, Any]) -> str:
    if source_unknown(row, Unit.FLOPS, Ledger.BUILD):
        return "what the small model's own training cost is not known"
    return f"with {_more_or_less(_saving(row, Ledger.BUILD))}, once the small model's own training is charged"


def _on_ladder(row: Mapping[str, Any]) -> str:
    if row["reached"] < row["seeds"]:
        return f"On the ladder it meets the target in {row['reached']} of {row['seeds']} seeds only."
    return f"On the ladder it saves {saving_of(row, Unit.FLOPS, Ledger.REUSE)}."


def _more_or_less(saving: Saving) -> str:
    return f"{percent(abs(saving.mean), 0)} {'fewer' if saving.mean > 0 else 'more'}"
