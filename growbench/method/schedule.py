"""Learning-rate schedules: by which factor the peak learning rate is multiplied at each step of the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

from growbench.config.schema import Training

Schedule = Callable[[int, int], float]  # (step, steps) -> lr_multiplier: 0 or more, 1 at the peak


def constant(step: int, steps: int) -> float:
    """The peak learning rate throughout."""
    return 1.0


def stable_steps(training: Training, steps: int) -> int:
    """wsd: the number of steps before the decay. Every longer budget begins with the same steps."""
    return max(training.warmup_steps, round(steps * (1 - training.decay)))


def of(training: Training) -> Schedule:
    """The schedule of `training`: linear warm-up, then a linear or cosine decay, or a late linear decay (wsd)."""

    def decayed(progress: float) -> float:
        if training.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress

    def lr_multiplier(step: int, steps: int) -> float:
        if step < training.warmup_steps:
            return (step + 1) / training.warmup_steps
        start = training.warmup_steps
        if training.schedule == "wsd":
            start = stable_steps(training, steps)
        return decayed(max(0, step - start) / (steps - start))

    return lr_multiplier


def rewarm(step: int, steps: int, peak: float) -> float:
    """The factor of the learning rate at a step after growth, from 0: it rises linearly to `peak` over `steps` steps, and stays.

    It rises from 1, the rate before growth, to a peak above 1, and from 0 to any other. Without steps nothing is changed.
    """
    if not steps:
        return 1.0
    start = 1.0 if peak > 1 else 0.0
    return start + (peak - start) * min(1.0, (step + 1) / steps)
