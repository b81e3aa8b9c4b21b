"""Learning-rate schedules: the share of the peak learning rate at a step of the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

from growbench.config.schema import Training

Schedule = Callable[[int, int], float]  # (step, steps) -> share of the peak learning rate


def constant(step: int, steps: int) -> float:
    """The peak learning rate throughout."""
    return 1.0


def stable_steps(training: Training, steps: int) -> int:
    """wsd: the steps before the decay, which are the same in every budget that has as many."""
    return max(training.warmup_steps, round(steps * (1 - training.decay)))


def of(training: Training) -> Schedule:
    """The schedule that `training` asks for: warm-up, then linear, cosine, or stable with a linear decay at the end (wsd)."""

    def decayed(progress: float) -> float:
        if training.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress

    def share(step: int, steps: int) -> float:
        if step < training.warmup_steps:
            return (step + 1) / training.warmup_steps
        start = training.warmup_steps
        if training.schedule == "wsd":
            start = stable_steps(training, steps)
        return decayed(max(0, step - start) / (steps - start))

    return share
