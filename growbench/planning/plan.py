"""The costs of a run, found without training: every phase is probed on the meta device, whose tensors have no values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Muon, Optimizer

from growbench import architectures
from growbench.architectures import sizes_of
from growbench.config.schema import Experiment
from growbench.costs.accounts import CHARGED, Account
from growbench.costs.ledger import Costs
from growbench.costs.published import paper_step
from growbench.costs.teaching import heard_by
from growbench.data.shapes import shape_batch
from growbench.errors import UsageError
from growbench.method import Method, Phase, Task, Trained, task_loss
from growbench.method.optimizer import members_of, step_flops
from growbench.planning.memory_estimate import DeviceEmulation, TensorTracker
from growbench.registry import Found, get
from growbench.training.phases import Limits, PhaseDriver, PhaseStart, contained, one_line
from growbench.training.precision import precision_of

T = TypeVar("T")
CPU, META = torch.device("cpu"), torch.device("meta")


class Unplannable(UsageError):
    """The method cannot be planned. It may still run."""


@dataclass(frozen=True)
class PlannedPhase:
    """One phase of a plan. FLOPs are counted as in growbench.costs.flops."""

    name: str
    steps: int
    scored: bool
    flops_per_step: dict[Account, float]  # by account; the mean over the phase's steps
    growth_flops: int  # of the growth before this phase
    paper_flops_per_step: int | None  # as LiGO's paper counts; None: its counter does not cover the phase
    memory: int  # bytes at a step's peak: all models, gradients, the optimizer's moments, activations kept for backward

    @property
    def flops(self) -> float:
        """FLOPs charged for the phase and the growth before it."""
        return self.steps * self.charged_per_step + self.growth_flops

    def spent(self, account: Account) -> float:
        """FLOPs in an account for the phase and the growth before it."""
        return self.growth_flops if account == Account.GROWTH else self.steps * self.flops_per_step.get(account, 0.0)

    @property
    def charged_per_step(self) -> float:
        return sum(each for account, each in self.flops_per_step.items() if account in CHARGED)


def plan(
    experiment: Experiment, found: Found, vocabulary: int, device: torch.device = CPU, limits: Limits | None = None
) -> list[PlannedPhase]:
    """Every phase of a method with its steps, FLOPs, and memory on this type of device. Allocates no memory for weights.

    Raises UsageError if the method refuses the experiment or breaks the interface, and Unplannable if it fails because tensors
    have no values.
    """
    check_sizes(experiment, vocabulary)
    try:
        with contained():
            return _plan(experiment, found.method, vocabulary, device, limits)
    except UsageError as error:
        raise UsageError(f"{found.name}: {one_line(error, found.method)}") from None
    except Exception as error:
        reason = one_line(error, found.method)
        raise Unplannable(f"{found.name} cannot be planned without values of weights: {reason}") from error


def refuse(experiment: Experiment, found: Found, vocabulary: int, device: torch.device) -> None:
    """Raise UsageError if the method cannot run. Nothing is trained.

    A method that cannot be planned is walked through on the device, with real tensors and untrained phases.
    """
    try:
        plan(experiment, found, vocabulary, device)
    except Unplannable:
        try:
            with contained():
                for _ in walk(experiment, found.method, vocabulary, Costs(device)):
                    pass
        except Exception as error:
            raise UsageError(f"{found.name}: {one_line(error, found.method)}") from error


def check_sizes(experiment: Experiment, vocabulary: int) -> None:
    """Raise UsageError if the architecture cannot build the source's or the target's sizes."""
    sizes: tuple[Literal["source", "target"], ...] = ("source", "target")
    for which in sizes:
        architectures.of(experiment, which).shapes(experiment.sizes(which, vocabulary))


def walk(
    experiment: Experiment, method: Method, vocabulary: int, costs: Costs, limits: Limits | None = None
) -> Iterator[PhaseStart]:
    """Every phase of a method in order, without training. The source is randomly initialised."""
    source = None
    if method.uses_source:
        with costs.device:
            small = architectures.of(experiment, "source").build(experiment.sizes("source", vocabulary))
        source = small.requires_grad_(False).eval()
    task, own = (Task.of(experiment, which, vocabulary, costs.device) for which in ("target", "source"))
    if source:
        task = task.with_source(source, None if experiment.pretrained else partial(_resumed, own))
    driver = PhaseDriver(method, task, costs, limits=limits)
    try:
        for start in driver:
            yield start
            driver.trained(math.nan)
    finally:
        driver.guard.restore()


def _resumed(task: Task, model: nn.Module) -> Trained:
    """A copy of the source with the state that its optimizer has after training, but all zero. `task`: the source's own."""
    optimizer = task.optimizer(model)
    remember_moments(optimizer)
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
    return Trained(model, optimizer, task.budget, math.nan)


def _plan(
    experiment: Experiment, method: Method, vocabulary: int, device: torch.device, limits: Limits | None
) -> list[PlannedPhase]:
    planned: list[PlannedPhase] = []
    with TensorTracker() as tracker, heard_by((costs := PlannedCosts(tracker)).teaches):
        step = StepOnMeta(experiment, vocabulary, device, costs, tracker)
        for start in walk(experiment, method, vocabulary, costs, limits):
            remember_moments(start.optimizer)
            phase, times = start.phase, start.phase.workloads(range(start.steps))
            flops: Counter[Account] = Counter()
            memory = 0
            for workload, first in phase.first_steps(start.steps).items():
                spent, taken = step(start, first)
                flops.update({account: times[workload] * one for account, one in spent.items()})
                memory = max(memory, taken)
            planned.append(
                PlannedPhase(
                    name=phase.name,
                    steps=start.steps,
                    scored=phase.scored,
                    flops_per_step={account: spent / start.steps for account, spent in flops.items()},
                    growth_flops=start.growth_flops,
                    paper_flops_per_step=_paper_flops(experiment, vocabulary, start, Account.TEACHER in flops),
                    memory=memory,
                )
            )
    return planned


def _paper_flops(experiment: Experiment, vocabulary: int, start: PhaseStart, taught: bool) -> int | None:
    """FLOPs of a step as LiGO's paper counts them; None if its counter does not cover the phase."""
    if start.phase.workload is not None:
        return None
    teacher = experiment.sizes("source", vocabulary) if taught else None
    batch, sequence_length = experiment.train.batch, experiment.data.positions
    own = start.phase.paper_step_flops
    return paper_step(architectures.of(experiment), start.model, batch, sequence_length, teacher, own)


def remember_moments(optimizer: Optimizer) -> None:
    """Give the optimizer the state that it has after the first step: Muon's momentum; of all others, what Adam has."""
    for member in members_of(optimizer):
        for parameter in (each for group in member.param_groups for each in group["params"]):
            if parameter in optimizer.state:
                continue
            keys = ("momentum_buffer",) if isinstance(member, Muon) else ("exp_avg", "exp_avg_sq")
            count = {} if isinstance(member, Muon) else {"step": torch.zeros(())}
            optimizer.state[parameter] = count | {key: torch.empty_like(parameter) for key in keys}


class PlainStep(NamedTuple):
    """What a plain step takes, of one micro-batch."""

    flops: int
    memory: int  # bytes at its peak, above what was there before
    stepped: frozenset[str]  # the parameters that get a gradient


_plain_steps: dict[Any, PlainStep] = {}  # by all that they depend on: most methods end with the same plain step


class PlannedCosts(Costs):
    """A ledger whose FLOPs are counted by the TensorTracker, which is faster than running torch's counter too."""

    def __init__(self, tracker: TensorTracker) -> None:
        super().__init__(META)
        self.tracker = tracker

    def charged(self, account: Account, function: Callable[[], T]) -> T:
        before = self.counted()
        with sdpa_kernel(SDPBackend.MATH):
            result = function()
        self.flops[account] += self.counted() - before
        return result

    def counted(self) -> int:
        return self.tracker.flops

    def probe(self, step: Callable[[], None], account: Account, trained: Iterable[Tensor] = ()) -> dict[Account, int]:
        self.taught.clear()
        before = self.counted()
        with sdpa_kernel(SDPBackend.MATH):
            step()
        return self.by_account(account, self.counted() - before)


@dataclass
class StepOnMeta:
    """Runs training steps of one experiment on the meta device. Finds FLOPs by account, and peak memory in bytes."""

    experiment: Experiment
    vocabulary: int
    device: torch.device  # whose memory is estimated
    costs: Costs
    tracker: TensorTracker

    def __post_init__(self) -> None:
        architecture, batch = architectures.of(self.experiment), self.experiment.train.batch
        rows = self.experiment.machine.micro_batch_size(batch)
        self.times = batch // rows
        self.bf16 = precision_of(self.experiment.train, self.experiment.machine, self.device) == "bf16"
        self.batch = shape_batch(self.experiment.data, architecture.objective, rows, self.vocabulary, META)

    def __call__(self, start: PhaseStart, step: int) -> tuple[dict[Account, int], int]:
        """FLOPs by account, and peak memory, of one step of the phase.

        Gradients are allocated from the start of the step: micro-batches accumulate them, and allocators rarely reuse freed
        memory well.
        """
        phase, model = start.phase, start.model
        account, before = Account(phase.account), self.tracker.live
        key = self._plain(phase, model)
        if key in _plain_steps:
            plain = _plain_steps[key]
            return self._of_batch({account: plain.flops}, start, plain.stepped), before + plain.memory
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        self.tracker.reset()
        with DeviceEmulation(self.device, self.bf16, self.tracker), _stepped(model) as stepped:
            spent = self.costs.probe(lambda: phase.loss(model, self.batch, step).backward(), account)
        for parameter in model.parameters():
            parameter.grad = None
        if key is not None:
            _plain_steps[key] = PlainStep(spent[account], self.tracker.peak - before, frozenset(stepped))
        return self._of_batch(spent, start, stepped), self.tracker.peak

    def _of_batch(self, spent: dict[Account, int], start: PhaseStart, stepped: Collection[str]) -> dict[Account, int]:
        """FLOPs of a whole step, from those of one micro-batch and the names of the parameters that get a gradient."""
        names = {parameter: name for name, parameter in start.model.named_parameters()}
        products = step_flops(start.optimizer, lambda parameter: names[parameter] in stepped)
        flops = {account: self.times * each for account, each in spent.items()}
        return flops | {Account.OPTIMIZER: products} if products else flops

    def _plain(self, phase: Phase, model: nn.Module) -> Any:
        """All that a plain step depends on. None if model, loss or workload are not the architecture's own."""
        architecture = architectures.of(self.experiment)
        own = type(model).__module__ == architecture.make.__module__ and phase.loss is task_loss and phase.workload is None
        if not own or any(each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in model.modules()):
            return None
        parameters = tuple((name, parameter.shape, parameter.requires_grad) for name, parameter in model.named_parameters())
        shapes = tuple(None if each is None else each.shape for each in self.batch)
        return parameters, shapes, sizes_of(model), architecture.name, self.device.type, self.bf16


@contextmanager
def _stepped(model: nn.Module) -> Iterator[set[str]]:
    """Collects the names of the parameters that get a gradient inside the `with` block."""
    found: set[str] = set()
    with ExitStack() as stack:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                stack.callback(parameter.register_post_accumulate_grad_hook(lambda _, name=name: found.add(name)).remove)
        yield found


def plan_source(experiment: Experiment, vocabulary: int, device: torch.device = CPU) -> list[PlannedPhase]:
    """The phases of the source model's own training."""
    alone = replace(experiment, target=experiment.source, train=experiment.source_train)
    return plan(alone, get("scratch"), vocabulary, device)
