"""The driver of a method's phases: the only code that advances a method's generator.

Training, planning and checking all use it, so that a plan and a run cannot differ.
"""

from __future__ import annotations

import inspect
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from growbench.architectures import parameter_shapes
from growbench.config.schema import ModelConfig
from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.errors import Interrupted, UsageError
from growbench.guards import Guard
from growbench.method import Method, Phase, Phases, Task, Trained
from growbench.method.growth_options import GrowthOptions
from growbench.method.interface import MethodError
from growbench.training import entries
from growbench.training.views import with_view

MOST_PHASES = 1000  # of a method: a generator that yields more is taken for an endless one
IN_PLACE_OF_RETURN = "write `yield Phase(model=...)` in place of `return`"


@dataclass(frozen=True)
class PhaseStart:
    """A phase that is about to be trained."""

    phase: Phase
    number: int  # among the method's phases, from 0
    model: nn.Module  # on the task's device, in training mode
    optimizer: Optimizer
    steps: int
    first_step: int  # the steps of the run before it
    first_scored_step: int  # the steps of the budget before it
    target_sized: bool  # whether its target has the sizes of the task's target
    growth_flops: int  # of the growth before it
    keeps_optimizer_state: bool  # whether its optimizer starts with a state that is not all zero
    lr_factor: Callable[[int], float] | None = None  # of every lr_multiplier, by the step within the phase

    @property
    def target(self) -> nn.Module:
        """The part of the model that is the target."""
        return self.phase.target or self.model


class PhaseObserver:
    """Is told of the phases of a method."""

    def method_begins(self) -> None:
        """The method is about to be asked for its first phase."""

    def phase_begins(self, start: PhaseStart) -> None:
        """The method has yielded a phase, which is about to be trained."""

    def step(self, start: PhaseStart, number: int, flops: Mapping[Account, int]) -> AbstractContextManager[Any]:
        """Entered around each training step (from 0). `flops`: what it was found to take when the phase began, by account."""
        return nullcontext()

    def phase_ends(self, start: PhaseStart) -> None:
        """A phase has been trained; the method's own code runs next."""

    def method_ends(self) -> None:
        """The method has yielded its last phase."""


def observed(
    observers: Sequence[PhaseObserver], start: PhaseStart, number: int, flops: Mapping[Account, int]
) -> AbstractContextManager[Any]:
    """Show a step to all observers, as PhaseObserver.step has it."""
    stack = ExitStack()
    for observer in observers:
        stack.enter_context(observer.step(start, number, flops))
    return stack


@dataclass(frozen=True)
class Limits:
    """Limits on a method. A check on a miniature has closer ones, which keep it short."""

    fixed_steps: int | None = None  # the most steps of a phase whose number of steps is fixed
    phases: int = MOST_PHASES  # more are an error


class PhaseDriver:
    """Iterates over the phases of a method. Call `trained` for each before asking for the next.

    Raises MethodError if the method breaks the interface, and any exception of the method itself.
    """

    def __init__(
        self, method: Method, task: Task, costs: Costs, observers: Sequence[PhaseObserver] = (), limits: Limits | None = None
    ) -> None:
        self.method, self.task, self.costs, self.observers = method, task, costs, observers
        self.limits = limits or Limits()
        self.target_shapes = task.architecture.shapes(task.target_config)
        self.steps = self.scored_steps = 0  # done
        self.last_scored: PhaseStart | None = None
        self._cut: str | None = None  # the phase that asked for more steps than the budget had left
        self._loss: float | None = None  # of the phase that was trained last
        self.guard, self._task = Guard(), _text(task)
        self.options = GrowthOptions(method, task)

    def __iter__(self) -> Iterator[PhaseStart]:
        for observer in self.observers:
            observer.method_begins()
        with closing(self._generator()) as generator:
            trained: Any = None
            for number in itertools.count():
                flops = self.costs.flops[Account.GROWTH]
                self.guard.begin()
                try:
                    with self.options.following():
                        yielded = self.costs.charged(Account.GROWTH, partial(_next, generator, trained))
                except StopIteration as stop:
                    self._refuse_changes_of_growth()
                    if stop.value is not None:
                        raise MethodError(f"phases() returned {_a(stop.value)}, which is ignored: {IN_PLACE_OF_RETURN}") from None
                    break
                self._refuse_changes_of_growth()
                trained = None  # frees the model of the last phase, unless the method still holds it
                phase = self._checked(yielded, number)
                if phase.scored and self.scored_steps >= self.task.budget:
                    self._refuse_after_cut(phase)
                    break
                start = self._start(phase, number, self.costs.flops[Account.GROWTH] - flops)
                for observer in self.observers:
                    observer.phase_begins(start)
                self._loss = None
                yield start
                if self._loss is None:
                    raise RuntimeError(f"phase {phase.name!r} was not reported as trained")
                for observer in self.observers:
                    observer.phase_ends(start)
                self.steps += start.steps
                self.scored_steps += start.steps if phase.scored else 0
                self.options.phase_ends(start.model, start.optimizer)
                trained = Trained(start.model, start.optimizer, start.steps, self._loss)
        for observer in self.observers:
            observer.method_ends()
        self._check_last()

    def trained(self, loss: float) -> None:
        """Report the present phase as trained. `loss` (nats): its last training loss, NaN if nothing was computed.

        Raises MethodError if the phase has changed what it must leave as it is.
        """
        self._loss = loss
        if changes := self._changes():
            raise MethodError(f"phase: {changes}: loss, schedule, optimizer and hooks must leave it as it is")

    def _refuse_changes_of_growth(self) -> None:
        if changes := self._changes():
            raise MethodError(f"the growth {changes}: it must be as before at each yield, and at the end")
        if changes := self.guard.random_changes():
            raise MethodError(f"the growth {changes}, which a resumed run does not restore: draw with generator=task.rng")

    def _changes(self) -> str:
        return self.guard.changes() or ("" if _text(self.task) == self._task else "changed the task that it was given")

    def _generator(self) -> Phases:
        phases: Any = self.method.phases(self.task)
        if not inspect.isgenerator(phases):
            how = "write `yield Phase(model=...)`" if phases is None else IN_PLACE_OF_RETURN
            raise MethodError(f"phases() returned {_a(phases)}: {how}")
        return cast(Phases, phases)

    def _checked(self, yielded: Any, number: int) -> Phase:
        if not isinstance(yielded, Phase):
            raise MethodError(f"phases() yielded {_a(yielded)}: write `yield Phase(model=...)`")
        if number >= self.limits.phases:
            raise MethodError(
                f"phases() still goes on after {self.limits.phases} phases, within a budget of {self.task.budget} steps"
            )
        if yielded.target is not None and all(part is not yielded.target for part in yielded.model.modules()):
            raise MethodError(f"phase {yielded.name!r}: target is not a part of model: give one of its submodules")
        return yielded

    def _limited(self, phase: Phase) -> Phase:
        if phase.steps is None or self.limits.fixed_steps is None:
            return phase
        return replace(phase, steps=min(phase.steps, self.limits.fixed_steps))

    def _start(self, phase: Phase, number: int, growth_flops: int) -> PhaseStart:
        model = phase.model.to(self.task.device).train()
        optimizer = self.options.with_state(phase.optimizer or self.task.optimizer(model), model)
        _check_optimizer(phase, model, optimizer)
        entries.check(phase, model, optimizer)
        limited = self._limited(phase)
        steps = limited.length(self.task.budget, self.scored_steps)
        if phase.scored and limited.steps is not None and limited.steps > steps:
            self._cut = (
                f"phase {phase.name!r} asked for {limited.steps} steps where the budget of {self.task.budget} had {steps} left"
            )
        before = self.costs.flops[Account.GROWTH]
        seen = phase
        if phase.view is not None:  # it is asked for what it shows at first and at the end
            seen = self.costs.charged(Account.GROWTH, partial(with_view, phase, model, steps))
        start = PhaseStart(
            phase=seen,
            number=number,
            model=model,
            optimizer=optimizer,
            steps=steps,
            first_step=self.steps,
            first_scored_step=self.scored_steps,
            target_sized=parameter_shapes(phase.target or model) == self.target_shapes,
            growth_flops=growth_flops + self.costs.flops[Account.GROWTH] - before,
            keeps_optimizer_state=_has_state(optimizer),
            lr_factor=self.options.phase_begins(model, self.scored_steps) if phase.scored else None,
        )
        if phase.scored:
            self.last_scored = start
        return start

    def _refuse_after_cut(self, phase: Phase) -> None:
        if self._cut:
            raise MethodError(f"{self._cut}, so nothing is left for phase {phase.name!r}: use fewer steps, or share=")

    def _check_last(self) -> None:
        """Refuse a method whose last scored model does not have the target's sizes, or that has no use for its options."""
        if self.last_scored is None:
            raise MethodError("no phase is scored: nothing is trained within the budget: write `yield Phase(model=...)`")
        if not self.last_scored.target_sized:
            how = _difference(self.last_scored.target, self.task.target_config, self.target_shapes)
            raise MethodError(f"the last scored model does not have the target's sizes: {how}")
        self.options.refuse_unused()


class Escaped(Exception):
    """A method raised what would end the whole program. Its text says what."""


@contextmanager
def contained() -> Iterator[None]:
    """Turns what would end the program, as sys.exit() does, into Escaped. Only a signal still ends it."""
    try:
        yield
    except (Exception, Interrupted):
        raise
    except BaseException as error:
        text = f"raised {type(error).__name__}({text_of(error)}), which would end the whole program: raise another error"
        raise Escaped(text).with_traceback(error.__traceback__) from error


def text_of(error: BaseException) -> str:
    """The text of an error in one line, even if the class of the error fails to give it."""
    try:
        with contained():
            return " ".join(str(error).split())
    except Exception as second:
        return f"no text: its __str__ raised {type(second).__name__}"


def one_line(error: BaseException, method: Method) -> str:
    """A method's error as one line: where in its file it was raised, type and text; a refusal by the method is its text alone."""
    if isinstance(error, UsageError) and not isinstance(error, MethodError):
        return str(error)
    kind = "" if isinstance(error, (MethodError, Escaped)) else f"{type(error).__name__}: "
    return f"{where_raised(error, method)}{kind}{text_of(error)}"


def where_raised(error: BaseException, method: Method) -> str:
    """`mine.py, line 12: ` if an error was raised by code in the file of a method's class or called from it; else empty."""
    file = inspect.getsourcefile(type(method))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file.rpartition('/')[2]}, line {frames[-1].lineno}: " if file and frames else ""


def _next(generator: Phases, trained: Any) -> Any:
    """What the generator yields next. Of a phase a copy, which the method can no longer change, and whose fields are plain."""
    yielded = generator.send(trained)
    return Phase(**{each.name: getattr(yielded, each.name) for each in fields(Phase)}) if isinstance(yielded, Phase) else yielded


def _text(task: Task) -> str:
    """What a task says that no method may change."""
    return repr((task.budget, task.training, task.source_config, task.target_config, task.device))


def _a(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _has_state(optimizer: Optimizer) -> bool:
    """Whether an optimizer has a state with a value that is not 0: moments that are all zero are like new ones."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return any(hasattr(value, "dim") and value.dim() > 0 and not value.is_meta and bool(value.any()) for value in values)


def _check_optimizer(phase: Phase, model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that does not hold exactly the model's trainable parameters, or cannot step without a closure."""
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for key, name in trainable.items() if key not in held]
    if missing or len(held) != len(trainable):
        wrong = f"lacks {missing}" if missing else "holds others as well"
        raise MethodError(f"phase {phase.name!r}: the optimizer must hold exactly the trainable parameters; it {wrong}")
    arguments = inspect.signature(optimizer.step).parameters.values()
    if any(each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in arguments):
        raise MethodError(
            f"phase {phase.name!r}: {type(optimizer).__name__}.step() needs an argument, as a closure that computes the loss "
            "again: use an optimizer that steps on the gradients alone"
        )


def _difference(model: nn.Module, config: ModelConfig, shapes: dict[str, torch.Size]) -> str:
    """How a model differs from the target: the first size, or else parameter, that is not equal."""
    sizes = getattr(model, "sizes", None)
    if isinstance(sizes, ModelConfig) and sizes != config:
        key = next(each.name for each in fields(config) if getattr(sizes, each.name) != getattr(config, each.name))
        return f"it has {key} = {getattr(sizes, key)}, the target {getattr(config, key)}"
    found = parameter_shapes(model)
    if missing := shapes.keys() - found.keys():
        return f"it has no {min(missing)}"
    if more := found.keys() - shapes.keys():
        return f"it has {min(more)}, which the target does not have"
    name = next(name for name, shape in shapes.items() if found[name] != shape)
    return f"{name} has shape {tuple(found[name])}, in the target {tuple(shapes[name])}"
