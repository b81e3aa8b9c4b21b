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
from growbench.training.replicas import Replica


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


# of an Outcome
COUNTERS = ("steps", "tokens", "scored_steps", "rows", "waited", "final_val_loss", "final_val_accuracy", "phases")


UNDER_WAY = ("done", "laps", "train_loss", "growth")  # of a Stretch


@dataclass
class Stretch:
    """A phase under way."""

    phase: Phase
    number: int
    model: nn.Module
    optimizer: Optimizer
    steps: int
    first_step: int  # of the run
    full_size: bool
    flops: dict[int, dict[str, int]] = field(default_factory=dict)  # of a step of each workload, by account
    paper_flops: int | None = None  # of a step, by the counter of LiGO's paper
    done: int = 0
    laps: list[float] = field(default_factory=list)  # seconds of each step
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last evaluation
    train_loss: float = float("nan")  # of the last step before the last evaluation
    growth: dict[str, Any] = field(default_factory=dict)  # what happened before its first step
    randomness: RandomStates | None = None  # that the run goes on with after it, if its steps have random states of their own

    def __post_init__(self) -> None:
        _check_parameters(self.model, self.optimizer)
        self.live = self.whole = Replica(self.model, self.model, self.optimizer)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    def set_rates(self, step: int, share: float) -> None:
        """The learning rates of a step: this share of each peak, or what a param group's own schedule says."""
        schedules = dict(enumerate(self.phase.group_schedules))
        for place, (group, peak) in enumerate(zip(self.optimizer.param_groups, self.peaks, strict=True)):
            schedule = schedules.get(place)
            group["lr"] = peak * (share if schedule is None else schedule(step, self.steps))

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
            "target_sized": self.full_size,
            "first_step": self.first_step,
            "steps": self.done,
            "flops_per_step": {account: flops / self.done for account, flops in spent.items()},
            "paper_flops_per_step": self.paper_flops,
            "median_step_seconds": statistics.median(self.laps),
            **self.growth,
        }


def charge(flops: MutableMapping[str, int], of_a_step: Mapping[int, dict[str, int]], steps: Mapping[int, int]) -> None:
    """Add to `flops`, by account, those of so many steps of each workload. `of_a_step`: of one step, by workload."""
    for workload, number in steps.items():
        for account, each in of_a_step[workload].items():
            flops[account] += number * each


def pack(outcome: Outcome, now: Stretch) -> dict[str, Any]:
    """A run's counters, costs and the phase under way, as plain JSON values."""
    costs = {"flops": outcome.costs.flops, "seconds": outcome.costs.seconds}
    stretch = {key: getattr(now, key) for key in UNDER_WAY}
    under_way = {"stretch": stretch, "losses": [loss.item() for loss in now.losses]}
    return {key: getattr(outcome, key) for key in COUNTERS} | costs | under_way


def unpack(state: Mapping[str, Any], outcome: Outcome, now: Stretch, device: torch.device) -> None:
    """The reverse."""
    for key in COUNTERS:
        setattr(outcome, key, state[key])
    for key in UNDER_WAY:
        setattr(now, key, state["stretch"][key])
    now.losses = [torch.tensor(loss, device=device) for loss in state["losses"]]
    outcome.costs.flops.update(state["flops"])
    outcome.costs.seconds.update(state["seconds"])


def refuse_not_finite(losses: list[float], first_step: int) -> None:
    """Raise TrainingFailed at the first of the losses, of one step each, that is infinite or no number."""
    for step, loss in enumerate(losses, first_step):
        if not math.isfinite(loss):
            raise TrainingFailed(step, f"the loss is {loss}")


def _check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise ValueError unless the optimizer holds exactly the model's trainable parameters."""
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for key, name in trainable.items() if key not in held]
    if missing or len(held) != len(trainable):
        raise ValueError(
            f"the optimizer must hold exactly the trainable parameters; it lacks {missing or 'none, and holds others'}"
        )
