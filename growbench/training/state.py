"""What a run is while it is trained: its counters, and the phase under way."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench.costs.ledger import Costs
from growbench.method import Phase
from growbench.training.checkpoint import RandomStates
from growbench.training.phases import PhaseStart
from growbench.training.replicas import Replica
from growbench.training.step import Step


class TrainingFailed(Exception):
    """A run that cannot go on: what went wrong, and at which step."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step


class Curve(Protocol):
    """Where the rows of a run's evaluations go: a list, or a file."""

    def append(self, row: dict[str, Any], /) -> None: ...

    def __delitem__(self, rows: slice, /) -> None: ...


@dataclass
class Outcome:
    """What a run leaves behind, complete or as far as it came."""

    costs: Costs
    model: nn.Module | None = None  # the last scored one
    target: nn.Module | None = None  # its part that is the target
    steps: int = 0
    tokens: int = 0
    scored_steps: int = 0
    rows: int = 0  # of the curve
    waited: float = 0.0  # seconds of its steps that went by waiting for data
    final_val_loss: float | None = None
    final_val_accuracy: float | None = None  # of images
    phases: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class PhaseState:
    """A phase under way."""

    start: PhaseStart
    whole: Replica  # the model and optimizer as the method gave them
    live: Replica  # the same as they are trained here: replicated or divided among processes
    step: Step | None = None  # how its steps are done, once they have begun
    flops: dict[int, dict[str, int]] = field(default_factory=dict)  # of a step of each workload, by account
    paper_flops: int | None = None  # of a step, by the counter of LiGO's paper
    skips_parameters: bool = False  # whether some workload leaves some of the trainable parameters without gradients
    done: int = 0
    evaluated: int = -1  # how many steps were done at the last evaluation
    step_seconds: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last evaluation
    train_loss: float = math.nan  # of the last step before the last evaluation
    growth: dict[str, Any] = field(default_factory=dict)  # what happened before its first step
    randomness: RandomStates | None = None  # that the run goes on with after it, if its steps have random states of their own

    @classmethod
    def of(cls, start: PhaseStart) -> PhaseState:
        whole = Replica(start.model, start.optimizer)
        return cls(start, whole, whole)

    def __post_init__(self) -> None:
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def phase(self) -> Phase:
        return self.start.phase

    @property
    def model(self) -> nn.Module:
        return self.start.model

    @property
    def optimizer(self) -> Optimizer:
        return self.start.optimizer

    @property
    def ended(self) -> bool:
        return self.done == self.start.steps

    def set_rates(self, lr_multiplier: float) -> None:
        """The learning rates of the next step: this multiple of each peak, or what a param group's own schedule says."""
        own = dict(enumerate(self.phase.group_schedules))
        for place, (group, peak) in enumerate(zip(self.optimizer.param_groups, self.peaks, strict=True)):
            schedule = own.get(place)
            group["lr"] = peak * (lr_multiplier if schedule is None else schedule(self.done, self.start.steps))

    def reset_rates(self) -> None:
        """Back to the peaks, so that the next phase can go on with this optimizer."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak

    def join(self) -> None:
        """Training is over: all of the model and its optimizer is in this process again."""
        self.live.gather()
        self.live.close()
        self.live = self.whole

    def record(self) -> dict[str, Any]:
        """What run.json says of it when it has ended."""
        spent: Counter[str] = Counter()
        charge(spent, self.flops, self.phase.workloads(range(self.done)))
        return {
            "name": self.phase.name,
            "scored": self.phase.scored,
            "target_sized": self.start.target_sized,
            "first_step": self.start.first_step,
            "steps": self.done,
            "flops_per_step": {account: flops / self.done for account, flops in spent.items()},
            "paper_flops_per_step": self.paper_flops,
            "median_step_seconds": statistics.median(self.step_seconds),
            **self.growth,
        }


def charge(flops: MutableMapping[str, int], of_a_step: Mapping[int, dict[str, int]], steps: Mapping[int, int]) -> None:
    """Add to `flops`, by account, those of so many steps of each workload. `of_a_step`: of one step, by workload."""
    for workload, number in steps.items():
        for account, each in of_a_step[workload].items():
            flops[account] += number * each


# what a checkpoint keeps
COUNTERS = ("steps", "tokens", "scored_steps", "rows", "waited", "final_val_loss", "final_val_accuracy", "phases")
UNDER_WAY = ("done", "evaluated", "step_seconds", "train_loss", "growth")


def pack(outcome: Outcome, now: PhaseState) -> dict[str, Any]:
    """A run's counters, costs and the phase under way, as plain JSON values."""
    costs = {"flops": outcome.costs.flops, "seconds": outcome.costs.seconds}
    phase = {key: getattr(now, key) for key in UNDER_WAY}
    under_way = {"phase": phase, "losses": [loss.item() for loss in now.losses]}
    return {key: getattr(outcome, key) for key in COUNTERS} | costs | under_way


def unpack(state: Mapping[str, Any], outcome: Outcome, now: PhaseState, device: torch.device) -> None:
    """The reverse."""
    for key in COUNTERS:
        setattr(outcome, key, state[key])
    for key in UNDER_WAY:
        setattr(now, key, state["phase"][key])
    now.losses = [torch.tensor(loss, device=device) for loss in state["losses"]]
    outcome.costs.flops.update(state["flops"])
    outcome.costs.seconds.update(state["seconds"])


def refuse_not_finite(losses: list[float], first_step: int) -> None:
    """Raise TrainingFailed at the first of the losses, of one step each, that is infinite or no number."""
    for step, loss in enumerate(losses, first_step):
        if not math.isfinite(loss):
            raise TrainingFailed(step, f"the loss is {loss}")
