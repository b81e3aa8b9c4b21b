"""LAG: landscape-aware growing, a choice among operators after some steps of each."""

from dataclasses import field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from growbench.method import Batch, Method, Phase, Phases, Schedule, Task, UsageError, first_phase, tunable
from growbench.registry import get_all


class Lag(Method):
    """Grow by several methods, train each for some steps, and go on with the one whose loss is lowest then.

    Formula: each of `candidates` grows the source and trains for `lag` of the budget, with the beginning of the run's schedule
    and data that come one after the other. The one with the lowest mean training loss over the second half of these steps is
    trained on to the budget's end, with its optimizer and the rest of its schedule.
    Paper: Karp et al. 2024: the loss some hundred to thousand steps after growth predicts the final loss; the loss at
    growth does not.
    Function preserving: as its candidates.
    Claim: finds the best of several stacking operators for BERT and UL2; no saving of its own.
    Defaults: three layer maps of depth_map, at 2 % of the budget each; the paper gives numbers of steps for its own budgets. All
    candidates must grow the source, and train the grown model in one phase that takes the whole budget. options are their
    hyperparameters, by the candidate's name: also state, rewarm_steps and rewarm_peak, and values of [train] such as
    {mid = {train = {lr = 1e-3}}}. A state or a re-warm of lag itself holds for all of them, and then none has its own.
    Costs beyond training: the steps of all candidates, those of the chosen one too, are charged to `operator`. The budget
    of the chosen one is shortened by its own trial steps, so only the other trials are extra cost. All grown models and
    their optimizers are in memory. The curve shows each trial's losses.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.02469"
    candidates: tuple[str, ...] = ("stack=depth_map", "inter=depth_map", "mid=depth_map")  # names, files or variants
    options: dict[str, Any] = field(default_factory=lambda: {"inter": {"map": "interpose"}, "mid": {"map": "middle"}})  # theirs
    lag: float = tunable(0.02, 0.005, 0.1)  # of the budget, for each candidate

    def __post_init__(self) -> None:
        if not all(isinstance(each, dict) for each in self.options.values()):
            raise UsageError(f"options = {self.options}: must be a table for each candidate, as {{mid = {{map = 'middle'}}}}")

    @property
    def wraps(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.candidates

    def phases(self, task: Task) -> Phases:
        steps = max(2, round(self.lag * task.budget))
        if len(self.candidates) < 2 or steps >= task.budget:
            raise UsageError(
                f"lag: {len(self.candidates)} candidates of {steps} of {task.budget} steps: must be two, of fewer steps"
            )
        trials = []
        for found in get_all(list(self.candidates), self.options):
            if not found.method.uses_source or found.method.keeps_source:
                raise UsageError(f"lag: {found.name} must be a method that grows a source, and does not keep it")
            if all(method.state != "new" or method.rewarm_steps for method in (self, found.method)):
                raise UsageError(f"lag: {found.name} has a state or a re-warm of its own, so lag must have none")
            whole = first_phase(found.method, task, found.training)
            if not whole.scored or whole.steps is not None or whole.share is not None:
                raise UsageError(f"lag: {found.name} must train the grown model in one phase that takes the whole budget")
            trial = part_of(whole, 0, task.budget)
            tried = with_mean_loss(trial, steps)
            trained = yield replace(tried, steps=steps, account="operator", name=f"try {found.name}")
            del whole.model.trial_losses
            trials.append((trained.loss, whole, trained.optimizer))
        _, whole, optimizer = min(trials, key=lambda trial: trial[0])
        share = 1 - steps / task.budget
        yield replace(part_of(whole, steps, task.budget), share=share, optimizer=optimizer, name="go on with the best")


def part_of(phase: Phase, begin: int, budget: int) -> Phase:
    """A phase that has a schedule and takes the whole budget, from its step `begin` on."""
    assert phase.schedule is not None

    def later(schedule: Schedule) -> Schedule:
        return lambda step, steps: schedule(begin + step, budget)

    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        return phase.loss(model, batch, begin + step)

    view, workload = phase.view, phase.workload
    return replace(
        phase,
        loss=loss,
        schedule=later(phase.schedule),
        group_schedules=[each and later(each) for each in phase.group_schedules],
        entry_schedules=[replace(each, schedule=later(each.schedule)) for each in phase.entry_schedules],
        view=view and (lambda model, step, steps: view(model, begin + step, budget)),
        workload=workload and (lambda step: workload(begin + step)),
    )


def with_mean_loss(phase: Phase, steps: int) -> Phase:
    """The phase, whose loss is shown as its mean over the second half of `steps`. The gradients are those of each step's loss.

    The losses are in a buffer of the model, `trial_losses`, so that a run that is resumed has them.
    """
    losses = torch.zeros(steps, device=next(phase.model.parameters()).device)
    phase.model.register_buffer("trial_losses", losses)

    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        value = phase.loss(model, batch, step)
        seen = model.get_buffer("trial_losses")
        seen[step] = value.detach()
        return value + (seen[min(step, steps // 2) : step + 1].mean() - value).detach()

    return replace(phase, loss=loss)
