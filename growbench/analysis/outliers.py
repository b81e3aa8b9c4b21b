"""Scratch seeds whose final loss is far from that of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from growbench.registry import SCRATCH
from growbench.runs.store import Run

FALSE_ALARM = 0.01  # the chance that any seed of an even set is named, were the spread known; 0.5 to 3.5 % as it is estimated
NORMAL_MAD = stats.norm.ppf(0.75)  # median absolute deviation of a standard normal variable
FEWEST = 3  # seeds: of two that differ, neither is the outlier


def outlying_seeds(runs: Sequence[Run]) -> list[int]:
    """The scratch seeds whose final loss is too far from that of the others. `runs`: at the full budget.

    The farthest seed is held against the mean of scratch's other seeds, then, without it, the farthest of those. The spread is
    robust, of the other seeds of scratch and of every method: the median of their absolute deviations from their method's mean,
    scaled to a standard deviation. It has as many degrees of freedom as there are seeds beyond the first of each method; the
    limit is Student's, for all seeds.
    """
    losses: dict[str, dict[int, float]] = {}
    for run in runs:
        if math.isfinite(run.final_loss):
            losses.setdefault(run.record.method, {})[run.record.seed] = run.final_loss
    found: list[int] = []
    while len(losses.get(SCRATCH, {})) >= FEWEST:
        far = max(losses[SCRATCH], key=lambda seed: _distance(seed, losses[SCRATCH]))
        rest = {method: {seed: loss for seed, loss in own.items() if seed != far} for method, own in losses.items()}
        if _distance(far, losses[SCRATCH]) <= _limit(rest):
            break
        found.append(far)
        losses = rest
    return found


def _distance(seed: int, scratch: Mapping[int, float]) -> float:
    """From the mean of the other seeds (nats)."""
    return abs(scratch[seed] - float(np.mean([loss for other, loss in scratch.items() if other != seed])))


def _limit(rest: Mapping[str, Mapping[int, float]]) -> float:
    """How far another seed of scratch may be from these (nats). `rest`: final losses by method and seed."""
    groups = [np.array(list(own.values())) for own in rest.values() if len(own) > 1]
    # n values vary about their own mean by the share (n - 1) / n of their variance
    deviations = [np.abs(group - group.mean()) * math.sqrt(len(group) / (len(group) - 1)) for group in groups]
    spread = np.median(np.concatenate(deviations)) / NORMAL_MAD
    freedom, others = sum(len(group) - 1 for group in groups), len(rest[SCRATCH])
    return float(stats.t.ppf(1 - FALSE_ALARM / 2 / (others + 1), freedom) * spread * math.sqrt(1 + 1 / others))
