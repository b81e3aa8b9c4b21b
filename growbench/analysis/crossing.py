"""What a run paid until its loss first met a level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from growbench.costs.accounts import Ledger, Unit
from growbench.runs.store import Run


def cost_to_loss(curve: Iterable[Mapping[str, Any]], level: float, unit: str) -> float:
    """What a curve pays until its loss first is at or below `level`; inf if it never is.

    `unit`: flops or seconds, in the reuse ledger, or step. Only scored rows count. Between two scored evaluations in a row the
    crossing is interpolated linearly; after an unscored one, or at the start, the evaluation's own cost stands.
    """
    above: Mapping[str, Any] | None = None
    for row in curve:
        if row["scored"] and row["val_loss"] <= level:
            if above is None:
                return row[unit]
            share = (above["val_loss"] - level) / (above["val_loss"] - row["val_loss"])
            return above[unit] + share * (row[unit] - above[unit])
        above = row if row["scored"] and math.isfinite(row["val_loss"]) else None
    return math.inf


def cost_to_target(run: Run, level: float, unit: Unit, ledger: Ledger) -> float:
    """What a run paid until the loss `level`, in FLOPs or seconds. Inf if it never got there, or did not finish.

    NaN in the build ledger if the source's cost is unknown.
    """
    own = cost_to_loss(run.curve, level, unit) if run.finished else math.inf
    return own + run.source_cost(unit) if ledger == Ledger.BUILD and own < math.inf else own


def reference_cost(scratch: Run, unit: Unit, ledger: Ledger, given_target: float | None = None) -> float:
    """What a saving is measured against: scratch's full budget; for a target given by hand, what scratch paid to reach it.

    A given target that scratch never reached leaves the full budget, so that the saving is a lower bound.
    """
    full = scratch.cost(unit, ledger)
    return full if given_target is None else min(full, cost_to_target(scratch, given_target, unit, ledger))
