"""The state of a run that is being trained: its counters, and its present phase."""

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

from growbench.architectures import changed_settings
from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.costs.published import output_share, paper_step
from growbench.method import Phase, Schedule, Task
from growbench.method.optimizer import step_flops
from growbench.training.audit import Timetable
from growbench.training.checkpoint import Checkpoint, RandomStates
from growbench.training.evaluation import Evaluation
from growbench.training.graphs import CapturedStep
from growbench.training.phases import PhaseStart
from growbench.training.records import HeldOutLoss, PhaseRecord, PhaseUnderWay, RunState
from growbench.training.replicas import Replica
from growbench.training.step import Step
from growbench.training.views import SeenModel


class TrainingFailed(Exception):
    """A run that cannot be continued: what went wrong, and at which step."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step


class Curve(Protocol):
    """Holds a row for each evaluation of a run: a list, or a file."""

    def append(self, row: dict[str, Any], /) -> None: ...

    def __delitem__(self, rows: slice, /) -> None: ...


@dataclass
class Outcome:
    """The results of a run, complete or up to the present step."""

    costs: Costs
    model: nn.Module | None = None  # of the last scored phase
    target: nn.Module | None = None  # the part of `model` that is the target
    optimizer: Optimizer | None = None  # of the last scored phase
    train_loss: float = math.nan  # nats, of the last training step of the last phase
    steps: int = 0
    tokens: int = 0
    scored_steps: int = 0
    rows: int = 0  # rows of the curve
    waited: float = 0.0  # seconds that its steps spent waiting for data
    val_loss: float | None = None  # of the last evaluation, on the fixed part of the validation split
    validation: HeldOutLoss | None = None  # on the whole split, at the run's end
    test: HeldOutLoss | None = None
    phases: list[PhaseRecord] = field(default_factory=list)

    def end(self, evaluation: Evaluation) -> None:
        """Measure the final losses, on whole splits. Raises TrainingFailed if one is not finite.

        A run that was stopped before its first scored phase has none.
        """
        if self.model is None:
            return
        self.validation, self.test = (evaluation.held_out(self.model, split) for split in ("validation", "test"))
        refuse_not_finite([self.validation.loss], self.steps)
        refuse_not_finite([self.test.loss], self.steps)


@dataclass
class PhaseState:
    """A phase that is being trained."""

    start: PhaseStart
    timetable: Timetable
    whole: Replica  # the model and optimizer that the method gave
    live: Replica  # the same while they are trained: replicated or sharded over processes
    step: Step | CapturedStep | None = None  # None before the first step
    to_capture: bool = False  # before the next step
    flops: dict[int, dict[Account, int]] = field(default_factory=dict)  # of one step, by workload and account
    paper_flops: int | None = None  # of one step, by the counter of LiGO's paper
    paper_output_share: float | None = None  # of positions, at which that counter counts outputs
    hidden: frozenset[int] = frozenset()  # steps that are probed although the method cannot know it
    skips_parameters: bool = False  # whether some workload leaves some of the trainable parameters without gradients
    done: int = 0  # steps
    evaluated: int = -1  # steps that were done at the last evaluation
    step_seconds: list[float] = field(default_factory=list)
    cpu_seconds: float | None = 0.0  # of these steps; None: not known, in a run resumed from a checkpoint of earlier code
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last evaluation
    train_loss: float = math.nan  # of the last step before the last evaluation
    growth: dict[str, Any] = field(default_factory=dict)  # what growth changed, measured before the first step
    randomness: RandomStates | None = None  # of the run, restored after the phase if its steps have their own

    @classmethod
    def of(cls, start: PhaseStart, schedule: Schedule, budget: int) -> PhaseState:
        """`schedule`: the run's, of `budget` steps."""
        whole = Replica(start.model, start.optimizer)
        return cls(start, Timetable.of(start, schedule, budget), whole, whole)

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
    def counts(self) -> bool:
        """Whether a loss that is measured now is one of the target: of its sizes, and not seen through a view."""
        return self.phase.scored and self.start.target_sized and (self.phase.view is None or self.ended)

    @property
    def evaluation_module(self) -> nn.Module:
        """What is called to evaluate the model after the present steps: at the end of a phase with a view, the model itself."""
        if self.phase.view is None or self.ended:
            return self.live.evaluation_module
        return SeenModel(self.model, self.phase.view, self.done, self.start.steps)

    @property
    def account(self) -> Account:
        """What its steps are charged to."""
        return Account(self.phase.account)

    @property
    def ended(self) -> bool:
        return self.done == self.start.steps

    @property
    def next_is_hidden(self) -> bool:
        """Whether the next step is one of those that are probed; none is where the model is sharded."""
        return self.done in self.hidden and self.live.is_whole

    def set_rates(self) -> None:
        """Set the learning rates of the next step."""
        for place, (group, peak) in enumerate(zip(self.optimizer.param_groups, self.peaks, strict=True)):
            group["lr"] = peak * self.timetable.of_group(place)[self.done]
        self.live.entries.factors = [factors[self.done] for factors in self.timetable.entry_factors]

    def optimizer_flops(self) -> dict[Account, int]:
        """What the optimizer's products take with the present gradients. All processes compute the same ones: counted once."""
        flops = step_flops(self.optimizer, lambda parameter: parameter.grad is not None)
        return {Account.OPTIMIZER: flops} if flops else {}

    def count_as_paper(self, task: Task) -> None:
        """Count the FLOPs of a step by the counter of LiGO's paper, unless steps have several workloads."""
        if self.phase.workload is None:
            teacher = task.source_config if Account.TEACHER in self.flops[0] else None
            sizes, own = task.target_config, self.phase.paper_step_flops
            self.paper_flops = paper_step(task.architecture, self.model, task.training.batch, sizes.positions, teacher, own)
            self.paper_output_share = None if self.paper_flops is None else output_share(sizes)

    def reset_rates(self) -> None:
        """Set the learning rates to their peaks, so that the next phase can continue with this optimizer."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak

    def join(self) -> None:
        """End training: gather the whole model and optimizer state in this process."""
        self.live.gather()
        self.live.close()
        self.live, self.step = self.whole, None

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise an exception for a checkpoint that the phase cannot be resumed from. Changes nothing."""
        checkpoint.check(self.model, self.optimizer)
        if checkpoint.state.phase.done > self.start.steps:
            raise ValueError("it counts more steps than the phase has")

    def record(self) -> PhaseRecord:
        """The record of the trained phase."""
        spent: Counter[Account] = Counter()
        charge(spent, self.flops, self.timetable.count(range(self.done)))
        return PhaseRecord(
            name=self.phase.name,
            scored=self.phase.scored,
            target_sized=self.start.target_sized,
            first_step=self.start.first_step,
            steps=self.done,
            flops_per_step={account: flops / self.done for account, flops in spent.items()},
            paper_flops_per_step=self.paper_flops,
            paper_output_share=self.paper_output_share,
            median_step_seconds=statistics.median(self.step_seconds),
            seconds=sum(self.step_seconds),
            cpu_seconds=self.cpu_seconds,
            settings=changed_settings(self.start.target) or None,
            **self.growth,
        )


def charge(flops: MutableMapping[Account, int], of_a_step: Mapping[int, dict[Account, int]], steps: Mapping[int, int]) -> None:
    """Add the FLOPs of steps to `flops`, by account. `of_a_step`: of one step, by workload. `steps`: how many, by workload."""
    for workload, number in steps.items():
        for account, each in of_a_step[workload].items():
            flops[account] += number * each


def pack(outcome: Outcome, now: PhaseState, overhead: float, reached: bool, evaluation_flops: int) -> RunState:
    """What a checkpoint holds of a run's counters, its costs and its present phase."""
    return RunState(
        steps=outcome.steps,
        tokens=outcome.tokens,
        scored_steps=outcome.scored_steps,
        rows=outcome.rows,
        waited=outcome.waited,
        val_loss=outcome.val_loss,
        phases=outcome.phases,
        flops=outcome.costs.flops,
        seconds=outcome.costs.seconds,
        energy=outcome.costs.energy.joules,
        phase=PhaseUnderWay(
            done=now.done,
            evaluated=now.evaluated,
            step_seconds=now.step_seconds,
            train_loss=now.train_loss,
            growth=now.growth,
            cpu_seconds=now.cpu_seconds,
        ),
        losses=[loss.item() for loss in now.losses],
        overhead=overhead,
        reached=reached,
        evaluation_flops=evaluation_flops,
    )


def unpack(state: RunState, outcome: Outcome, now: PhaseState, device: torch.device) -> None:
    """Set `outcome` and `now` to what `pack` was given."""
    outcome.steps, outcome.tokens, outcome.scored_steps = state.steps, state.tokens, state.scored_steps
    outcome.rows, outcome.waited, outcome.phases = state.rows, state.waited, state.phases
    outcome.val_loss = state.val_loss
    outcome.costs.flops.update(state.flops)
    outcome.costs.seconds.update(state.seconds)
    outcome.costs.energy.resume(state.energy)
    phase = state.phase
    now.done, now.evaluated, now.step_seconds = phase.done, phase.evaluated, phase.step_seconds
    now.train_loss, now.growth, now.cpu_seconds = phase.train_loss, phase.growth, phase.cpu_seconds
    now.losses = [torch.tensor(loss, device=device) for loss in state.losses]


def refuse_not_finite(losses: list[float], first_step: int) -> None:
    """Raise TrainingFailed if a loss is infinite or NaN. `losses`: of consecutive steps, from `first_step`."""
    for step, loss in enumerate(losses, first_step):
        if not math.isfinite(loss):
            raise TrainingFailed(step, f"the loss is {loss}")
