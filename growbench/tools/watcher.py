"""Runs a method on a miniature, and records where it breaks the promises of the plugin interface."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_post_hook

from growbench.architectures import Architecture
from growbench.config.schema import ModelConfig
from growbench.console import Progress
from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.errors import UsageError
from growbench.growth.weights import Weights
from growbench.method import Method, Task, Trained
from growbench.method.interface import MethodError
from growbench.planning.plan import PlannedPhase, remember_moments
from growbench.tools.miniatures import CPU, SEED, VOCABULARY, Cell, RandomData
from growbench.tools.step_counts import StepCounts
from growbench.training.phases import Escaped, Limits, PhaseObserver, PhaseStart, contained, text_of, where_raised
from growbench.training.state import TrainingFailed
from growbench.training.trainer import Output, Trainer, Work

T = TypeVar("T")
LIMITS = Limits(fixed_steps=3, phases=20)
GLOBAL_SEED = 0x5EED5EED  # of torch's global generator: none that a method would seed it with, so that its seeding is noticed
SMALL_MULTIPLIER = 0.05  # a schedule that never exceeds it gives rates, not multiples of the peak


@dataclass(frozen=True)
class Poisoned(Architecture):
    """An architecture whose models hold NaN until weights are written to them."""

    def write(self, weights: Weights, model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            nn.init.constant_(parameter, float("nan"))
        return super().write(weights, model)


class Sparing(Costs):
    """A ledger that skips counting where it is not needed: counting takes most of a miniature's time.

    It counts no FLOPs of evaluations, and none at all unless `counts`.
    """

    def __init__(self, counts: bool) -> None:
        super().__init__(CPU)
        self.counts = counts

    def charged(self, account: Account, function: Callable[[], T]) -> T:
        if self.counts and account != Account.EVALUATION:
            return super().charged(account, function)
        allowed = nullcontext() if account == Account.EVALUATION else self.gradients.allowed()
        with allowed, sdpa_kernel(SDPBackend.MATH):  # the same attention kernel as where FLOPs are counted
            return function()

    def probe(self, step: Callable[[], None], account: Account, trained: Iterable[Tensor] = ()) -> dict[Account, int]:
        if self.counts:
            return super().probe(step, account, trained)
        with self.gradients.allowed(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            step()
        self.teacher_seconds()
        return {account: 0}


@dataclass
class WatchedTask(Task):
    """A task that records whether its source is read, by itself or by a copy of it."""

    reads: set[str] = field(default_factory=set, repr=False)

    @property
    def source(self) -> nn.Module:
        self.reads.add("source")
        return super().source


WatchedTask.__name__ = Task.__name__  # so that Python's messages name what a method knows


class Watcher(PhaseObserver):
    """Checks the model, the source and the random generators whenever a phase begins or ends."""

    def __init__(self, task: WatchedTask, source: nn.Module) -> None:
        self.task, self.source, self.source_before, self.hooks_before = task, source, _values(source), _hooks(source)
        self.broken: dict[str, str] = {}  # what is wrong -> where it was seen first
        self.warnings: list[str] = []
        self.place = "before the first phase"
        self.growing = True  # the method's own code runs, outside of a phase
        self.ended = False  # the method has yielded its last phase
        self.asked = 0  # steps of the budget, without the check's limits
        self.asks_for_steps = False  # the last scored phase says steps=
        self.model: nn.Module | None = None  # of the last phase
        self.frozen: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        hook = register_optimizer_step_post_hook(self._stepped)
        try:
            yield
        finally:
            hook.remove()
            self.check_source()

    def method_begins(self) -> None:
        self.task.reads.clear()  # the loop has read it, to evaluate it

    def phase_begins(self, start: PhaseStart) -> None:
        self.check_source()
        if start.model is self.model:
            self._check_frozen("moved by hand after it")
        self.growing, self.place = False, f"phase {start.phase.name!r}"
        if start.phase.scored:
            self.asks_for_steps = start.phase.steps is not None
            self.asked += start.steps if start.phase.steps is None else start.phase.steps
        self.model = start.model
        self.frozen = {name: p.detach().clone() for name, p in start.model.named_parameters() if not p.requires_grad}
        self._check_finite("begins")
        self._check_schedules(start)

    def phase_ends(self, start: PhaseStart) -> None:
        self._check_frozen("moved")
        self._check_finite("ends")
        self.check_source()
        self.growing, self.place = True, f"after {self.place}"

    def method_ends(self) -> None:
        self.ended = True
        if self.asks_for_steps and self.asked < self.task.budget:
            self.warnings.append(
                f"phases train {self.asked} of {self.task.budget} steps of the budget: the rest is not trained; write share=1.0 "
                "or leave steps out"
            )

    def check_source(self) -> None:
        now = _values(self.source)
        changed = [name for name, value in self.source_before.items() if name not in now or not _equal(now[name], value)]
        changed += sorted(now.keys() - self.source_before.keys())
        if changed:
            self._breaks(f"the source was changed: {_some(changed)}")
        if self.source.training or any(p.requires_grad for p in self.source.parameters()):
            self._breaks("the source, frozen and in evaluation mode, was unfrozen or put in training mode")
        if self.growing and _hooks(self.source) != self.hooks_before:
            self._breaks("hooks are left on the source, which other methods use after this one")

    def _breaks(self, what: str) -> None:
        self.broken.setdefault(what, self.place)

    def _stepped(self, *_: Any) -> None:
        if self.growing:
            self._breaks("an optimizer stepped outside a phase")

    def _check_schedules(self, start: PhaseStart) -> None:
        own = (each.schedule for each in start.phase.entry_schedules)
        for schedule in filter(None, (start.phase.schedule, *start.phase.group_schedules, *own)):
            multipliers = [schedule(step, start.steps) for step in range(start.steps)]
            if not all(0 <= each < math.inf for each in multipliers):
                self._breaks(f"a schedule gives {min(multipliers)} to {max(multipliers)}: must be multiples of the peak lr")
            elif 0 < max(multipliers) < SMALL_MULTIPLIER:
                self.warnings.append(
                    f"{self.place}: a schedule never exceeds {max(multipliers):g}: it must return a multiple of the peak "
                    "learning rate, 1 at the peak, and not a rate"
                )

    def _check_frozen(self, how: str) -> None:
        assert self.model is not None
        now = dict(self.model.named_parameters())
        moved = [name for name, value in self.frozen.items() if name in now and not _equal(now[name], value)]
        if moved:
            self._breaks(f"frozen parameters {how}: {_some(moved)}")

    @torch.no_grad()
    def _check_finite(self, when: str) -> None:
        assert self.model is not None
        bad = [name for name, p in self.model.named_parameters() if not p.isfinite().all()]
        if bad:
            self._breaks(f"parameters are not finite when it {when}, perhaps never written: {_some(bad)}")


class Run:
    """One run of a method in a cell, complete or up to its first error."""

    def __init__(self, method: Method, cell: Cell, source: nn.Module, costs: Sparing, counts_steps: bool) -> None:
        experiment = cell.experiment
        self.method = method
        self.curve: list[dict[str, Any]] = []
        self.error: Exception | None = None
        torch.manual_seed(GLOBAL_SEED)
        own = source if method.uses_source else None
        task = WatchedTask.of(experiment, "target", VOCABULARY, CPU, SEED)
        if own:
            task = task.with_source(own, partial(_resumed, Task.of(experiment, "source", VOCABULARY, CPU)))
        assert isinstance(task, WatchedTask)
        self.task = task
        kind = self.task.architecture
        self.task.architecture = Poisoned(**{each.name: getattr(kind, each.name) for each in fields(kind)})
        data = RandomData(experiment.data, kind.objective, experiment.train.batch)
        self.watcher = Watcher(task, source)
        work = Work(self.task, data, SEED, costs, limits=LIMITS)
        output = Output(self.curve, Progress("check", 1, None, shown=False))
        self.steps = StepCounts(costs.gradients, counts_steps, costs.counts)
        self.trainer = Trainer(work, output, observers=[self.watcher, self.steps])
        if not counts_steps:  # no second run is compared with this one's curve: each phase is evaluated at both ends
            self.trainer.every = experiment.train.steps
        try:
            with redirect_stderr(io.StringIO()), self.watcher.watching(), contained():
                self.trainer.run(method)
        except Exception as error:
            self.error = error

    @property
    def refusal(self) -> str:
        """The method's own reason for refusing the cell; empty if it does not."""
        refuses = isinstance(self.error, UsageError) and not isinstance(self.error, MethodError) and self.watcher.growing
        return str(self.error) if refuses else ""

    def broken(self) -> list[str]:
        """The promises that this run breaks, without comparing it with others."""
        watcher, outcome = self.watcher, self.trainer.outcome
        broken = [f"{place}: {what}" for what, place in (watcher.broken | self.steps.broken).items()]
        if outcome.target is not None and (watcher.ended or not self.error):
            broken += self._last_model(outcome.target)
        if self.error and not (watcher.ended and broken):
            kind = "" if isinstance(self.error, (MethodError, TrainingFailed, Escaped)) else f"{type(self.error).__name__}: "
            told = f"{where_raised(self.error, self.method)}{kind}{text_of(self.error)}"
            broken.append(told if told.startswith(watcher.place) else f"{watcher.place}: {told}")
        elif self.method.uses_source and not self.task.reads:
            broken.append(
                "uses_source is True, so the source is charged, but task.source is never read: write uses_source = False"
            )
        return broken

    def _last_model(self, model: nn.Module) -> list[str]:
        """What is wrong with the target: the last scored model, or the part of it that the phase names."""
        place = self.watcher.place
        sizes, target = getattr(model, "sizes", None), self.task.target_config
        if not isinstance(sizes, ModelConfig):
            return [f"{place}: the last scored model was not made by task.build or task.model_from"]
        wrong = [each.name for each in fields(target) if getattr(sizes, each.name) != getattr(target, each.name)]
        broken = [f"the last scored model has {key} = {getattr(sizes, key)}, the target {getattr(target, key)}" for key in wrong]
        if self.task.architecture.objective != "classes":
            tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]
            if tied != target.tied:
                broken.append(f"the last scored model's embeddings are {'tied' if tied else 'no longer tied'}")
        return [f"{place}: {line}" for line in broken]

    def against_plan(self, planned: list[PlannedPhase]) -> list[str]:
        """Where the plan, which is made without values of weights, differs from what the run was charged."""
        keys = ("name", "steps", "scored", "flops_per_step", "growth_flops")
        plans, runs = (
            [{key: getattr(phase, key) for key in keys} for phase in of] for of in (planned, self.trainer.outcome.phases)
        )
        if [phase["name"] for phase in plans] != [phase["name"] for phase in runs]:
            names = [", ".join(phase["name"] for phase in phases) for phases in (plans, runs)]
            return [f"planned phases: {names[0]}; phases of the run: {names[1]}"]
        return [
            f"phase {ran['name']!r}: planned {key} {_shown(expected[key])}, in the run {_shown(ran[key])}"
            for expected, ran in zip(plans, runs, strict=True)
            for key in keys
            if expected[key] != ran[key]
        ]

    def against(self, again: Run) -> list[str]:
        """Where a second run with the same seed differs."""
        if again.error:
            return [f"{again.watcher.place}: fails when run again: {type(again.error).__name__}: {again.error}"]
        for one, other in zip(self.curve, again.curve, strict=False):
            different = [key for key in one if key not in ("seconds", "flops") and one[key] != other[key]]
            if different:
                values = ", ".join(f"{key} {one[key]} and {other[key]}" for key in different[:2])
                where = f"phase {one['phase']!r}: two runs of one seed differ at step {one['step']}"
                return [f"{where}: draw every random number from task.rng ({values})"]
        if len(self.curve) != len(again.curve):
            return ["two runs of one seed have different numbers of evaluations"]
        return again.broken()


def _resumed(task: Task, model: nn.Module) -> Trained:
    """A copy of the source with an optimizer as after some steps: nothing that it keeps is zero. `task`: the source's own."""
    optimizer = task.optimizer(model)
    remember_moments(optimizer)
    rng = torch.Generator().manual_seed(SEED)
    for value in (each for state in optimizer.state.values() for each in state.values()):
        value.copy_(0.01 * torch.rand(value.shape, generator=rng) if value.dim() else torch.tensor(10))
    return Trained(model, optimizer, task.budget, 1.0)


def _shown(value: Any) -> Any:
    """What is kept by account, with their names."""
    return {str(account): each for account, each in value.items()} if isinstance(value, dict) else value


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers."""
    return {name: value.detach().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def _equal(now: Tensor, before: Tensor) -> bool:
    """Whether all values are equal; NaN equals NaN."""
    return now.shape == before.shape and torch.equal(now.detach().nan_to_num(), before.nan_to_num())


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
