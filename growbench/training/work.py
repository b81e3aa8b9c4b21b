"""What a training loop is given: what to train, where its results go, and when it stops early."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from growbench.config.schema import Machine
from growbench.console import Progress
from growbench.costs.ledger import Costs
from growbench.data import Data
from growbench.method import Task
from growbench.training.checkpoint import Checkpoints
from growbench.training.phases import Limits
from growbench.training.state import Curve, Outcome


@dataclass(frozen=True)
class Work:
    """What to train, on which data, and with which limits."""

    task: Task
    data: Data
    seed: int
    costs: Costs  # the ledger that the task charges as well
    machine: Machine = field(default_factory=Machine)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Output:
    """Where the loop writes a run's results."""

    curve: Curve  # receives a row for each evaluation
    progress: Progress
    checkpoints: Checkpoints | None = None  # to resume from; a new one is written every minute, or less often where that is slow
    branches: Collection[int] = ()  # scored steps at which a checkpoint is kept for other runs to branch off


@dataclass(frozen=True)
class Stop:
    """When a run stops before the end of its last phase."""

    at_loss: float = -math.inf  # nats: the run ends at its first scored evaluation at or below it
    interrupted: Callable[[], bool] = lambda: False  # asked before each step; the run can be resumed
    after_steps: float = math.inf  # the run ends before the next step, and can be resumed
    after_scored_steps: float = math.inf  # likewise

    def is_due(self, outcome: Outcome) -> bool:
        """Whether as many steps are done as were asked for."""
        return outcome.steps >= self.after_steps or outcome.scored_steps >= self.after_scored_steps
