"""What a run would cost, without training it: every phase probed on the meta device, where tensors have shapes but no values."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from growbench import architectures
from growbench.config import DataConfig, Experiment, ImageConfig, UsageError
from growbench.cost import Costs, count, fvcore_forward, paper_step
from growbench.data import Batch, scored_per_row
from growbench.data.tokenizer import named
from growbench.method import Method, Phase, Task, Trained, one_kind, task_loss
from growbench.registry import Found, get
from growbench.results import CHARGED
from growbench.schedule import stable_steps

META = torch.device("meta")


class Unplannable(UsageError):
    """A method that can be run, perhaps, but not planned."""


@dataclass(frozen=True)
class PlannedPhase:
    """One phase of a plan. FLOPs as in growbench.cost; `paper_flops_per_step` by the counter of LiGO's paper."""

    name: str
    steps: int
    scored: bool
    flops_per_step: dict[str, float]  # by account; the mean where steps differ in kind
    growth_flops: int  # of the growth before the phase
    paper_flops_per_step: int | None  # None: the paper's counter does not know this kind of phase

    @property
    def flops(self) -> float:
        """What is charged for the phase and the growth before it."""
        return self.steps * self.charged_per_step + self.growth_flops

    @property
    def charged_per_step(self) -> float:
        return sum(each for account, each in self.flops_per_step.items() if account in CHARGED)


def vocabulary_size(data: DataConfig) -> int:
    """The model's vocabulary: what the experiment asks for, or the named tokenizer's; of images the number of classes.

    Raises UsageError if the tokenizer is not there.
    """
    if isinstance(data, ImageConfig):
        return data.classes
    return data.vocabulary or named(data.tokenizer, masked=False)[1].size


def shape_batch(data: DataConfig, objective: str, batch: int, vocabulary: int, device: torch.device) -> Batch:
    """A batch of random tokens or images with the shapes of the experiment's batches."""
    if isinstance(data, ImageConfig):
        images = torch.randn(batch, 3, data.image_size, data.image_size, device=device)
        return Batch(images, None, torch.randint(vocabulary, (batch,), device=device))
    length = data.sequence_length
    inputs = torch.randint(vocabulary, (batch, length), device=device)
    if objective == "causal":
        return Batch(inputs, None, torch.randint(vocabulary, (batch * length,), device=device))
    scored = scored_per_row(length, data.mask_share)
    positions = (torch.arange(batch, device=device)[:, None] * length + torch.arange(1, 1 + scored, device=device)).flatten()
    return Batch(inputs, positions, torch.randint(vocabulary, (batch * scored,), device=device))


def plan(experiment: Experiment, found: Found, vocabulary: int) -> list[PlannedPhase]:
    """Every phase of a method with its steps and FLOPs. Uses no memory for weights.

    Raises UsageError if the method refuses the experiment, and Unplannable if it fails without values to look at.
    """
    with META:  # sizes that no method can build are refused in the architecture's own words
        architectures.of(experiment).build(experiment.sizes("source", vocabulary))
        architectures.of(experiment).build(experiment.sizes("target", vocabulary))
    try:
        return _plan(experiment, found.method, vocabulary)
    except UsageError as error:
        raise UsageError(f"{found.name}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise Unplannable(f"{found.name} cannot be planned without values of weights: {reason}") from error


class Walked(NamedTuple):
    """One phase of a method as it would be trained."""

    phase: Phase
    model: nn.Module  # on the device, in training mode
    optimizer: Optimizer
    steps: int
    growth_flops: int  # of the growth before the phase


def walk(experiment: Experiment, method: Method, vocabulary: int, costs: Costs) -> Iterator[Walked]:
    """Every phase of a method in order, as if each had been trained when the next one is asked for; the source is random."""
    with costs.device:
        source = architectures.of(experiment).build(experiment.sizes("source", vocabulary)).requires_grad_(False).eval()
    task = Task.of(experiment, "target", vocabulary, costs, source=source if method.uses_source else None)
    phases, done = method.phases(task), 0
    trained: Any = None
    while True:
        before = costs.flops["growth"]
        try:
            phase = costs.charged("growth", partial(phases.send, trained))
        except StopIteration:
            return
        if phase.scored and done >= task.budget:
            return
        model = phase.model.to(costs.device).train()
        optimizer = phase.optimizer or task.optimizer(model)
        steps = phase.length(task.budget, done)
        yield Walked(phase, model, optimizer, steps, costs.flops["growth"] - before)
        done += steps if phase.scored else 0
        trained = Trained(model, optimizer, steps, float("nan"))


def _plan(experiment: Experiment, method: Method, vocabulary: int) -> list[PlannedPhase]:
    architecture = architectures.of(experiment)
    batch = shape_batch(experiment.data, architecture.objective, experiment.train.batch, vocabulary, META)
    costs = Costs(META)
    planned: list[PlannedPhase] = []
    for phase, model, _, steps, growth_flops in walk(experiment, method, vocabulary, costs):
        flops: Counter[str] = Counter()
        times = Counter(map(phase.kind, range(steps)))
        for kind, first in phase.first_steps(steps).items():
            spent = costs.probe(
                lambda: phase.loss(model, batch, first).backward(),  # noqa: B023
                "train" if phase.scored else "operator",
            )
            flops.update({account: times[kind] * one for account, one in spent.items()})
        per_step = {account: spent / steps for account, spent in flops.items()}
        teacher = experiment.sizes("source", vocabulary) if "teacher" in flops else None
        one = phase.kind is one_kind
        paper = paper_step(architecture, model, experiment.train.batch, experiment.data.positions, teacher) if one else None
        planned.append(PlannedPhase(phase.name, steps, phase.scored, per_step, growth_flops, paper))
    return planned


def branching_step(longer: Experiment, shorter: Experiment, method: Method, vocabulary: int) -> int | None:
    """After how many scored steps a method's run at the shorter budget leaves the longer one: where its own decay begins (wsd).

    None if they have no such trunk: they have it where their phases, losses and schedules are the same, and only the last
    phase's length follows from the budget.
    """
    if longer.train.schedule != "wsd":
        return None
    try:
        walks = [list(walk(experiment, method, vocabulary, Costs(META))) for experiment in (longer, shorter)]
    except Exception:  # a method that cannot be planned: nothing is known of it
        return None
    same = len(walks[0]) == len(walks[1]) and all(
        (a.phase.name, a.phase.scored, a.phase.loss, a.phase.schedule, a.phase.kind)
        == (b.phase.name, b.phase.scored, b.phase.loss, b.phase.schedule, b.phase.kind)
        and (a.steps == b.steps or a.phase.steps is b.phase.steps is None)
        and not any("schedule" in group for group in a.optimizer.param_groups)
        for a, b in zip(*walks, strict=True)
    )
    return stable_steps(shorter.train, shorter.train.steps) if same else None


def shared(phases: Sequence[PlannedPhase], scored_steps: int) -> float:
    """FLOPs of a plan until so many scored steps are done."""
    total = 0.0
    for phase in phases:
        steps = min(phase.steps, scored_steps) if phase.scored else phase.steps
        total += phase.flops - (phase.steps - steps) * phase.charged_per_step
        scored_steps -= steps if phase.scored else 0
        if not scored_steps:
            return total
    return total


def plan_source(experiment: Experiment, vocabulary: int) -> list[PlannedPhase]:
    """The phases of the source model's own training."""
    alone = replace(experiment, target=experiment.source, train=experiment.source_train)
    return plan(alone, get("scratch"), vocabulary)


def fvcore_check(experiment: Experiment, which: Literal["source", "target"], vocabulary: int) -> tuple[int, int]:
    """FLOPs of a forward pass of the "source" or "target" on one sequence: by our counter and by fvcore's, to be equal."""
    architecture = architectures.of(experiment)
    model = architecture.build(experiment.sizes(which, vocabulary)).eval()
    batch = shape_batch(experiment.data, architecture.objective, 1, vocabulary, torch.device("cpu"))
    with torch.no_grad():
        ours, _ = count(lambda: model(batch.inputs, batch.positions))
        return ours, fvcore_forward(model, batch)


def throughput(experiment: Experiment, vocabulary: int, device: torch.device) -> float:
    """FLOPs per second of this device on one layer of the target: median of a few training steps of a fitting batch."""
    architecture = architectures.of(experiment)
    with device:
        model = architecture.build(replace(experiment.sizes("target", vocabulary), layers=1))
    one = shape_batch(experiment.data, architecture.objective, 1, vocabulary, device)
    flops_of_one, _ = count(lambda: task_loss(model, one).backward())
    rows = max(1, min(experiment.train.batch, int(2e10 / flops_of_one)))  # about a second on a laptop
    batch = shape_batch(experiment.data, architecture.objective, rows, vocabulary, device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        task_loss(model, batch).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return rows * flops_of_one / sorted(seconds[1:])[1]
