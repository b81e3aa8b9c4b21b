"""Where methods stand on a track: their savings over its frozen scratch, and which of their runs no other run beats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison, compare
from growbench.analysis.protocols import Protocol
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError
from growbench.registry import SCRATCH, SOURCE
from growbench.runs.store import Run
from growbench.runs.tracks import Definition, Track

ROUNDING = 1e-9  # of the target loss, relative


@dataclass(frozen=True)
class Standing:
    """A track, and the comparison of its frozen runs with the entries that count."""

    track: Track
    comparison: Comparison

    @classmethod
    def of(cls, track: Track) -> Standing:
        """Raises UsageError if a run is not as it was entered, or the frozen target not the loss that scratch ends at."""
        comparison = compare([run for run in track.runs if run.record.method != SOURCE])
        found, frozen = target_loss(track.definition, comparison), track.definition.target_loss
        if not math.isclose(found, frozen, rel_tol=ROUNDING):
            raise UsageError(f"{track.folder}: target_loss = {frozen!r}, and scratch ends at {found!r}")
        if left_out := comparison.left_out:
            raise UsageError(
                f"{track.folder}: {left_out[0].name} has another configuration, code or hyperparameters than the others"
            )
        return cls(track, comparison)

    @property
    def runs(self) -> list[Run]:
        """All runs of scratch and the methods, at every budget."""
        return [*self.comparison.runs, *self.comparison.shorter]


def target_loss(definition: Definition, comparison: Comparison) -> float:
    """The mean loss (nats) that scratch ends at, which a track freezes."""
    return comparison.ladder_loss if definition.protocol == Protocol.LADDER else comparison.target_loss


def pareto(standing: Standing) -> pd.DataFrame:
    """Each method's loss and cost at each budget, the mean over its seeds.

    Columns: method, budget, seeds; val_loss (nats, on the whole validation split), and its lowest and highest over the seeds;
    by ledger flops_* and front_*: whether no other point has as low a loss for no more FLOPs. A cost that is not known is NaN.
    Where a method has fewer seeds than the track, its losses are shifted by as much as scratch's mean over all seeds is above
    that over these seeds: then seeds that are easier for scratch too do not put it onto the front.
    """
    scratch = {run.record.seed: run.final_loss for run in standing.comparison.of(SCRATCH)}
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in standing.runs:
        groups.setdefault((run.record.method, run.record.budget_share), []).append(run)
    rows = [
        _point(method, budget, runs, scratch) for (method, budget), runs in groups.items() if all(run.finished for run in runs)
    ]
    table = pd.DataFrame(rows)
    for ledger in Ledger:
        table[front(ledger)] = _on_front(table[columns.cost(Unit.FLOPS, ledger)], table[columns.VAL_LOSS])
    return table


def front(ledger: Ledger) -> str:
    """The column of whether a point is on the front."""
    return f"front_{ledger}"


def _point(method: str, budget: float, runs: Sequence[Run], scratch: Mapping[int, float]) -> dict[str, Any]:
    shift = fmean(scratch.values()) - fmean(scratch[run.record.seed] for run in runs)  # 0 where all seeds are there
    losses = [run.final_loss + shift for run in runs]
    costs = {columns.cost(Unit.FLOPS, ledger): np.mean([run.cost(Unit.FLOPS, ledger) for run in runs]) for ledger in Ledger}
    ends = {columns.low(columns.VAL_LOSS): min(losses), columns.high(columns.VAL_LOSS): max(losses)}
    return {
        columns.METHOD: method,
        "budget": budget,
        columns.SEEDS: len(runs),
        columns.VAL_LOSS: np.mean(losses),
        **ends,
        **costs,
    }


def _on_front(costs: pd.Series, losses: pd.Series) -> list[bool]:
    def beaten() -> Iterator[bool]:
        for cost, loss in zip(costs, losses, strict=True):
            no_worse = (costs <= cost) & (losses <= loss)
            yield bool((no_worse & ((costs < cost) | (losses < loss))).any())

    return [not each and not math.isnan(cost) for each, cost in zip(beaten(), costs, strict=True)]
