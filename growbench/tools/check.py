"""What the interface promises, checked for one method on miniatures of every architecture, through the real loop.

Data are random and made from (seed, step), so nothing is read or fetched.
"""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from contextlib import closing, redirect_stderr
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_post_hook

from growbench import architectures
from growbench.architectures import Architecture
from growbench.config.schema import ModelConfig
from growbench.console import Progress
from growbench.costs.ledger import Costs
from growbench.data import Data
from growbench.errors import UsageError
from growbench.formatting import counted
from growbench.growth.weights import Weights
from growbench.method import Method, Phase, Phases, Task, Trained
from growbench.planning.plan import Unplannable, plan
from growbench.registry import Found
from growbench.tools.miniatures import BUDGET, CPU, SEED, VOCABULARY, Cell, RandomData, cells
from growbench.training.state import Curve, Outcome, TrainingFailed
from growbench.training.trainer import Trainer

T = TypeVar("T")


FIXED_STEPS = 3  # what a phase of a fixed number of steps is cut to


MANY_PHASES = 20


@dataclass
class Verdict:
    """What became of a method in one cell."""

    cell: Cell
    phases: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # promises, one line each
    warnings: list[str] = field(default_factory=list)
    refused: str = ""  # why the method does not want this cell

    def lines(self) -> list[str]:
        """What a person reads."""
        if self.broken:
            return [f"{self.cell}: BROKEN: {line}" for line in self.broken]
        if self.refused:
            return [f"{self.cell}: refused: {self.refused}"]
        number = len(self.phases)
        return [f"{self.cell}: kept, {counted(number, 'phase')}: {', '.join(self.phases)}"]


def report(found: Found) -> int:
    """Print a line for each cell, or promise broken there, then what came out. 0 if promises were kept and none was broken."""
    kept, refused, broken = 0, 0, 0
    warnings = card_warnings(found.method)
    for cell in cells():
        seen = verdict(found.method, cell)
        print(*seen.lines(), sep="\n", flush=True)
        warnings += [line for line in seen.warnings if line not in warnings]
        broken += bool(seen.broken)
        refused += bool(seen.refused)
        kept += not (seen.broken or seen.refused)
    for line in warnings:
        print(f"warning: {line}")
    rest = f", refuses {refused}" if refused else ""
    if broken:
        print(f"{found.name} breaks promises in {broken} of {broken + refused + kept} miniatures{rest}")
    else:
        print(f"{found.name} keeps every promise in {kept} of {refused + kept} miniatures{rest}")
    return 0 if kept and not broken else 1


def broken_promises(method: Method, cell: Cell) -> list[str]:
    """One line for each promise that the method breaks in this cell; a refusal is one too."""
    seen = verdict(method, cell)
    return seen.broken + [f"refused: {seen.refused}"] * bool(seen.refused)


def verdict(method: Method, cell: Cell) -> Verdict:
    """Run the method in this cell; once an architecture count its FLOPs, run it again and plan it, and compare."""
    seen, source = Verdict(cell), copy.deepcopy(_source(cell))
    shortened = Shortened(method)
    run = Run(shortened, cell, source, Sparing(counts=cell.plain))
    seen.phases = [phase["name"] for phase in run.trainer.outcome.phases]
    if isinstance(run.error, UsageError) and run.trainer.growing:
        seen.refused = str(run.error)
        return seen
    seen.broken = run.broken()
    if seen.broken or not cell.plain:
        return seen
    seen.broken = _compared(run, Run(shortened, cell, source, Sparing(counts=False)))
    try:
        seen.broken += run.against_plan(plan(cell.experiment, Found("it", shortened, ""), VOCABULARY))
    except Unplannable as error:
        seen.warnings.append(str(error))
    return seen


def card_warnings(method: Method) -> list[str]:
    """What a reader misses in the method's card."""
    cls = type(method)
    card = (inspect.getdoc(cls) or "").partition("\n")[0] if cls.__doc__ else ""
    warnings = [] if card.endswith(".") else [f"the docstring of {cls.__name__} should begin with a sentence, on one line"]
    if not str(getattr(cls, "paper", "")).startswith(("https://", "http://")):
        warnings.append(f"{cls.__name__}.paper should be a URL")
    return warnings


@dataclass(frozen=True)
class Poisoned(Architecture):
    """An architecture whose models hold NaN until weights are written to them."""

    def write(self, weights: Weights, model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            nn.init.constant_(parameter, float("nan"))
        return super().write(weights, model)


class Shortened(Method):
    """A method whose phases of a fixed number of steps are cut short."""

    paper: ClassVar[str] = ""
    method: Method

    @property
    def uses_source(self) -> bool:  # type: ignore[override]
        return self.method.uses_source

    @property
    def keeps_source(self) -> bool:  # type: ignore[override]
        return self.method.keeps_source

    def phases(self, task: Task) -> Phases:
        trained: Any = None
        with closing(self.method.phases(task)) as phases:
            for _ in range(MANY_PHASES):
                try:
                    phase = phases.send(trained)
                except StopIteration:
                    return
                if isinstance(phase.steps, int):
                    phase = replace(phase, steps=min(phase.steps, FIXED_STEPS))
                trained = yield phase
        raise RuntimeError(f"phases() still goes on after {MANY_PHASES} phases, within a budget of {BUDGET} steps")


class Sparing(Costs):
    """A ledger that counts no evaluation, and nothing at all unless it `counts`: counting takes most of a miniature's time."""

    def __init__(self, counts: bool) -> None:
        super().__init__(CPU)
        self.counts = counts

    def charged(self, account: str, function: Callable[[], T]) -> T:
        if self.counts and account != "evaluation":
            return super().charged(account, function)
        with sdpa_kernel(SDPBackend.MATH):  # as where it is counted
            return function()

    def probe(self, step: Callable[[], None], account: str) -> dict[str, int]:
        if self.counts:
            return super().probe(step, account)
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            step()
        self.teacher_seconds()
        return {account: 0}


class Watched(Trainer):
    """The loop, looking at the model and the source whenever a phase begins and ends."""

    def __init__(self, task: Task, source: nn.Module, data: Data, costs: Costs, curve: Curve) -> None:
        super().__init__(task, data, SEED, costs, curve, Progress("check", 1, None, shown=False))
        self.source, self.source_before, self.hooks_before = source, _values(source), _hooks(source)
        self.broken: dict[str, str] = {}  # what is wrong, and where it was seen first
        self.place = "before the first phase"
        self.growing = True  # between two phases, in the method's own code
        self.scored = False  # whether any phase is
        self.model: nn.Module | None = None  # of the last phase
        self.frozen: dict[str, Tensor] = {}

    def run(self, method: Method) -> Outcome:
        hook = register_optimizer_step_post_hook(self._stepped)
        try:
            return super().run(method)
        finally:
            hook.remove()
            self._check_source()

    def _train(self, phase: Phase, growth_flops: int) -> Trained:
        self._check_source()
        if phase.model is self.model:
            self._check_frozen("moved by hand after it")
        self.growing, self.place = False, f"phase {phase.name!r}"
        self.scored |= phase.scored
        self.model = phase.model
        self.frozen = {name: p.detach().clone() for name, p in phase.model.named_parameters() if not p.requires_grad}
        self._check_finite("begins")
        trained = super()._train(phase, growth_flops)
        self._check_frozen("moved")
        self._check_finite("ends")
        self._check_source()
        self.growing, self.place = True, f"after {self.place}"
        return trained

    def _breaks(self, what: str) -> None:
        self.broken.setdefault(what, self.place)

    def _stepped(self, *_: Any) -> None:
        if self.growing:
            self._breaks("an optimizer stepped outside a phase")

    def _check_frozen(self, how: str) -> None:
        assert self.model is not None
        now = dict(self.model.named_parameters())
        moved = [name for name, value in self.frozen.items() if name in now and not _equal(now[name], value)]
        if moved:
            self._breaks(f"frozen parameters {how}: {_some(moved)}")

    def _check_finite(self, when: str) -> None:
        assert self.model is not None
        bad = [name for name, p in self.model.named_parameters() if not p.isfinite().all()]
        if bad:
            self._breaks(f"parameters that are not finite when it {when}, unwritten perhaps: {_some(bad)}")

    def _check_source(self) -> None:
        now = _values(self.source)
        changed = [name for name, value in self.source_before.items() if name not in now or not _equal(now[name], value)]
        changed += sorted(now.keys() - self.source_before.keys())
        if changed:
            self._breaks(f"the source was changed: {_some(changed)}")
        if self.source.training or any(p.requires_grad for p in self.source.parameters()):
            self._breaks("the source, frozen and in evaluation mode, was unfrozen or put in training mode")
        if self.growing and _hooks(self.source) != self.hooks_before:
            self._breaks("hooks are left on the source, which other methods use after this one")


class Run:
    """One run of a method in a cell, as far as it came."""

    def __init__(self, method: Method, cell: Cell, source: nn.Module, costs: Costs) -> None:
        experiment = cell.experiment
        self.curve: list[dict[str, Any]] = []
        self.error: Exception | None = None
        torch.manual_seed(SEED)
        self.task = Task.of(experiment, "target", VOCABULARY, costs, SEED, source if method.uses_source else None)
        kind = self.task.architecture
        self.task.architecture = Poisoned(**{each.name: getattr(kind, each.name) for each in fields(kind)})
        data = RandomData(experiment.data, kind.objective, experiment.train.batch)
        self.trainer = Watched(self.task, source, data, costs, self.curve)
        try:
            with redirect_stderr(io.StringIO()):
                self.trainer.run(method)
        except Exception as error:
            self.error = error

    def broken(self) -> list[str]:
        """The promises broken by this run alone."""
        trainer, outcome = self.trainer, self.trainer.outcome
        broken = [f"{place}: {what}" for what, place in trainer.broken.items()]
        ended = trainer.growing and isinstance(self.error, TrainingFailed)  # the loop's own look at the last model
        if outcome.target is not None and (ended or not self.error):
            broken += self._last_model(outcome.target)
        if ended and not trainer.scored:
            broken.append("no phase is scored: nothing is trained within the budget")
        if self.error and not (ended and broken):
            text = str(self.error) if ended else f"{type(self.error).__name__}: {self.error}"
            broken.append(f"{trainer.place}: {text}")
        if outcome.scored_steps > BUDGET:
            broken.append(f"the scored phases have more steps than the budget of {BUDGET}")
        return broken

    def _last_model(self, model: nn.Module) -> list[str]:
        """What is wrong with the last scored model, or its part that is the target."""
        sizes, target = getattr(model, "sizes", None), self.task.target_config
        if not isinstance(sizes, ModelConfig):
            return [f"{self.trainer.place}: the last scored model was not made by task.build or task.model_from"]
        wrong = [each.name for each in fields(target) if getattr(sizes, each.name) != getattr(target, each.name)]
        broken = [f"the last scored model has {key} = {getattr(sizes, key)}, the target {getattr(target, key)}" for key in wrong]
        if self.task.architecture.objective != "classes":
            tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]
            if tied != target.tied:
                broken.append(f"the last scored model's embeddings are {'tied' if tied else 'no longer tied'}")
        return [f"{self.trainer.place}: {line}" for line in broken]

    def against_plan(self, planned: list[Any]) -> list[str]:
        """Where the plan, made without values, differs from what the run was charged."""
        keys = ("name", "steps", "scored", "flops_per_step", "growth_flops")
        plans = [{key: getattr(phase, key) for key in keys} for phase in planned]
        runs = [{key: phase[key] for key in keys} for phase in self.trainer.outcome.phases]
        if [phase["name"] for phase in plans] != [phase["name"] for phase in runs]:
            names = [", ".join(phase["name"] for phase in phases) for phases in (plans, runs)]
            return [f"planned phases: {names[0]}; phases of the run: {names[1]}"]
        return [
            f"phase {ran['name']!r}: planned {key} {expected[key]}, in the run {ran[key]}"
            for expected, ran in zip(plans, runs, strict=True)
            for key in keys
            if expected[key] != ran[key]
        ]


def _compared(first: Run, again: Run) -> list[str]:
    """Whether two runs of one seed are the same."""
    if again.error:
        return [f"{again.trainer.place}: fails when run again: {type(again.error).__name__}: {again.error}"]
    for one, other in zip(first.curve, again.curve, strict=False):
        different = [key for key in one if key not in ("seconds", "flops") and one[key] != other[key]]
        if different:
            values = ", ".join(f"{key} {one[key]} and {other[key]}" for key in different[:2])
            return [f"phase {one['phase']!r}: two runs of one seed differ at step {one['step']}: {values}"]
    if len(first.curve) != len(again.curve):
        return ["two runs of one seed have different numbers of evaluations"]
    return again.broken()


@cache
def _source(cell: Cell) -> nn.Module:
    """A small model as if trained: no weight is what it was initialised to."""
    torch.manual_seed(SEED + 1)
    source = architectures.get(cell.architecture).build(cell.experiment.sizes("source", VOCABULARY))
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    return source.requires_grad_(False).eval()


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, copied."""
    return {name: value.detach().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def _equal(now: Tensor, before: Tensor) -> bool:
    """Bit by bit, but NaN counts as NaN."""
    return now.shape == before.shape and torch.equal(now.detach().nan_to_num(), before.nan_to_num())


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
