"""The options that all growth methods have in common: what an optimizer starts with after growth, and the re-warm of its rate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, get_args
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench.errors import UsageError
from growbench.growth.carried import Carrier, Lost
from growbench.method.interface import Method, Phase, Task
from growbench.method.optimizer import refuse_foreign_state
from growbench.method.options import State
from growbench.method.schedule import Schedule, rewarm

Numbers = dict[str, Any]  # of a parameter's state, by key: what is not kept for each entry, such as a count of steps


class GrowthOptions:
    """Carries out a method's `state`, `rewarm_steps` and `rewarm_peak` around its phases; with their defaults it does nothing.

    To know what is grown from which trained model, it follows the weights through the method's code.
    """

    def __init__(self, method: Method, task: Task) -> None:
        """Raises UsageError for values that the options cannot have, and where the source's state is asked for but not known."""
        self.state, self.steps, self.peak, self.task = method.state, method.rewarm_steps, method.rewarm_peak, task
        self.carrier = Carrier("kept" if self.state == "kept" else "grown") if self.state != "new" or self.steps else None
        self.kind: type[Optimizer] = Optimizer  # that trained what was trained last
        self.numbers: dict[frozenset[str], Numbers] = {}  # by the keys of the entries that they stand beside
        self.trained: WeakSet[nn.Module] = WeakSet()  # models of phases that have ended
        self.grown_at: int | None = None  # steps of the budget before the latest growth
        self.honoured = False  # whether a phase has started with what was asked for
        self._check()
        if self.carrier and method.uses_source:
            self._know_source(task)

    def following(self) -> AbstractContextManager[None]:
        """The context of a method's own code."""
        return self.carrier.carrying() if self.carrier else nullcontext()

    def with_state(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """The optimizer of a phase. If it has no state yet, and that is asked for, it gets what was carried to its model.

        Raises UsageError if the method grew a weight in a way that says nothing of its state, or uses another kind of optimizer.
        """
        if self.carrier is None or self.state == "new" or optimizer.state:
            return optimizer
        names = {parameter: name for name, parameter in model.named_parameters()}
        for parameter in (each for group in optimizer.param_groups for each in group["params"] if each in names):
            self.honoured |= isinstance(self.carrier.of(parameter), dict)
            if (state := self._entries(parameter, names[parameter])) is not None:
                if type(optimizer) is not self.kind:
                    kinds = f"{type(optimizer).__name__} cannot start with the state of {self.kind.__name__}"
                    raise UsageError(f"state = {self.state!r}: {kinds}: allowed here is 'new'")
                optimizer.state[parameter] = state
        refuse_foreign_state(optimizer)
        return optimizer

    def phase_begins(self, model: nn.Module, scored_steps: int) -> Callable[[int], float] | None:
        """The factor of the learning rate at each step of a scored phase; None: it is not re-warmed."""
        if not (self.carrier and self.steps):
            return None
        if model not in self.trained and any(self.carrier.of(parameter) is not None for parameter in model.parameters()):
            self.grown_at, self.honoured = scored_steps, True
        if self.grown_at is None:
            return None
        since = scored_steps - self.grown_at
        return partial(_factor, since, self.steps, self.peak)

    def phase_ends(self, model: nn.Module, optimizer: Optimizer) -> None:
        """The weights of a trained model are known, with what its optimizer keeps of them."""
        self.trained.add(model)
        if self.carrier:
            self.kind = type(optimizer)
            self._know(list(model.parameters()), optimizer.state if self.state != "new" else {})

    def refuse_unused(self) -> None:
        """Raise UsageError if no phase started with what was asked for."""
        if self.carrier and not self.honoured:
            asked = f"state = {self.state!r}" if self.state != "new" else f"rewarm_steps = {self.steps}"
            raise UsageError(f"{asked}: nothing is grown from a trained model here, by the run's own optimizer")

    def _check(self) -> None:
        if self.state not in get_args(State):  # of a method that has declared it anew, with another type
            raise UsageError(f"state = {self.state!r}: must be one of {', '.join(map(repr, get_args(State)))}")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise UsageError(f"rewarm_steps = {self.steps}: must be a whole number, at least 0")
        if self.peak <= 0:
            raise UsageError(f"rewarm_peak = {self.peak}: must be above 0")
        if self.peak != 1 and not self.steps:
            raise UsageError(f"rewarm_peak = {self.peak}: needs rewarm_steps, the number of steps that lead to it")

    def _know_source(self, task: Task) -> None:
        assert self.carrier is not None
        if self.state == "new":
            self._know(list(task.source.parameters()), {})
            return
        trained = task.source_trained
        self.kind = type(trained.optimizer)
        places = zip(task.source.parameters(), trained.model.parameters(), strict=True)
        self._know(list(task.source.parameters()), {own: trained.optimizer.state.get(copied, {}) for own, copied in places})

    def _know(self, parameters: list[nn.Parameter], states: Any) -> None:
        """Follow parameters, each with its state."""
        assert self.carrier is not None
        for parameter in parameters:
            state = states.get(parameter, {})
            entries = {key: each for key, each in state.items() if isinstance(each, Tensor) and each.shape == parameter.shape}
            self.carrier.set(parameter, {key: each.detach().to(parameter.device) for key, each in entries.items()})
            if entries:
                self.numbers[frozenset(entries)] = {key: each for key, each in state.items() if key not in entries}

    def _entries(self, parameter: nn.Parameter, name: str) -> dict[str, Any] | None:
        """A parameter's state; None for a new one: of a parameter that was not grown, or whose state is all zero."""
        assert self.carrier is not None
        state = self.carrier.of(parameter)
        if isinstance(state, Lost):
            raise UsageError(
                f"state = {self.state!r}: {name} is made by {state.function}, which does not say how an optimizer's state grows: "
                "allowed here is 'new'"
            )
        if not state or not any(each.is_meta or bool(each.any()) for each in state.values()):
            return None
        entries = {key: torch.empty_like(parameter).copy_(each) for key, each in state.items()}
        return {**copy.deepcopy(self.numbers[frozenset(entries)]), **entries}


def first_phase(method: Method, task: Task, training: Mapping[str, Any]) -> Phase:
    """The first phase of a method, for another one that wraps it, with an optimizer and a schedule.

    Its `state`, `rewarm_steps` and `rewarm_peak` are carried out. `training`: its own values of [train]. Raises UsageError for a
    state that it cannot have.
    """
    task = replace(task, training=replace(task.training, **training))
    options = GrowthOptions(method, task)
    with options.following():
        phase = next(method.phases(task))
    optimizer = options.with_state(phase.optimizer or task.optimizer(phase.model), phase.model)
    factor = options.phase_begins(phase.model, 0) if phase.scored else None
    options.refuse_unused()

    def rewarmed(schedule: Schedule) -> Schedule:
        return (lambda step, steps: schedule(step, steps) * factor(step)) if factor else schedule

    schedules = [each and rewarmed(each) for each in phase.group_schedules]
    return replace(phase, optimizer=optimizer, schedule=rewarmed(phase.schedule or task.schedule), group_schedules=schedules)


def _factor(since: int, steps: int, peak: float, step: int) -> float:
    return rewarm(since + step, steps, peak)
