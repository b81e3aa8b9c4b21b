"""FLOPs, peak memory and time of a training step in each phase of a method, compared with a plain step, that of scratch."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from growbench import architectures
from growbench.config.schema import Experiment
from growbench.costs import memory
from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.data import Batch
from growbench.data.shapes import shape_batch, vocabulary_size
from growbench.planning.plan import META, PlannedPhase, plan, walk
from growbench.registry import SCRATCH, Found, get_all
from growbench.tools.throughput import wall_seconds
from growbench.training.graphs import CapturedStep, capture
from growbench.training.parallel import Parallel
from growbench.training.phases import PhaseStart
from growbench.training.replicas import place
from growbench.training.step import Step

SECONDS = 0.1  # least length of one measurement
WALKS = 3  # through a method's phases, to time their growth


@dataclass(frozen=True)
class Median:
    """The median of measurements, and how far to trust it."""

    value: float
    spread: float = 0.0  # interquartile range over the median
    error: float = 0.0  # standard error over the median

    @classmethod
    def of(cls, values: Sequence[float]) -> Median:
        """The error is that of measurements that scatter normally: 1.253 standard deviations of 1 / 1.349 of that range."""
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        spread = float((high - low) / middle)
        return cls(float(middle), spread, 1.253 / 1.349 * spread / math.sqrt(len(values)))


@dataclass(frozen=True)
class PhaseCosts:
    """What one phase costs."""

    planned: PlannedPhase
    peak_memory: int  # bytes
    ratio: Median  # time of a step over that of the plain step, in alternations of both
    growth_seconds: float  # of the growth before it

    @property
    def flops(self) -> float:
        return sum(self.planned.flops_per_step.values())


class PhaseBench:
    """Measures phases of one experiment, each in alternation with the plain step. Data and source are random.

    Memory is the peak of a phase's second and third step, minus what was held before the first. On the CPU each phase is measured
    in a process of its own.
    """

    def __init__(self, experiment: Experiment, device: torch.device, rounds: int) -> None:
        self.experiment, self.device, self.rounds = experiment, device, rounds
        self.vocabulary = vocabulary_size(experiment.data)
        self.plain = PhaseStep.of(experiment, SCRATCH, 0, self.vocabulary, device)
        self.plain(1)  # compiled now, if at all
        self.steps = max(1, math.ceil(SECONDS / wall_seconds(self.plain, 1, device)))  # in one measurement
        self.plain_seconds: list[float] = []  # of a step, in every alternation

    def method(self, spec: str) -> list[PhaseCosts]:
        """The phases of a method of the experiment."""
        return list(self._phases(self.experiment, spec))

    def source(self) -> list[PhaseCosts]:
        """The phases of the small model's own training."""
        return list(
            self._phases(replace(self.experiment, target=self.experiment.source, train=self.experiment.source_train), SCRATCH)
        )

    def scratch(self) -> PhaseCosts:
        """The plain step itself, from all alternations."""
        (planned,) = plan(self.experiment, found(self.experiment, SCRATCH), self.vocabulary)
        peak = memory_of(self.experiment, SCRATCH, 0, self.vocabulary, self.device)
        (growth,) = growth_seconds(self.experiment, SCRATCH, self.vocabulary, self.device)
        return PhaseCosts(planned, peak, Median(1.0), growth)

    def alone(self) -> list[float]:
        """Seconds of the plain step where nothing else was timed beside it."""
        return [wall_seconds(self.plain, self.steps, self.device) / self.steps for _ in range(self.rounds)]

    def _phases(self, experiment: Experiment, spec: str) -> Iterator[PhaseCosts]:
        growth = growth_seconds(experiment, spec, self.vocabulary, self.device)
        for number, planned in enumerate(plan(experiment, found(experiment, spec), self.vocabulary)):
            peak = memory_of(experiment, spec, number, self.vocabulary, self.device)
            ratios = self._ratios(PhaseStep.of(experiment, spec, number, self.vocabulary, self.device))
            yield PhaseCosts(planned, peak, Median.of(ratios), growth[number])

    def _ratios(self, step: PhaseStep) -> list[float]:
        """In each alternation, the time of the phase's step over that of the plain one. The first alternation warms up."""
        ratios = []
        for number in range(self.rounds + 1):
            own = sum(
                share * wall_seconds(step.of_workload(first), self.steps, self.device) for first, share in step.workloads.items()
            )
            plain = wall_seconds(self.plain, self.steps, self.device)
            if number:
                self.plain_seconds.append(plain / self.steps)
                ratios.append(own / plain)
        return ratios


@dataclass(frozen=True)
class PhaseStep:
    """Training steps of a method's phase, on random data."""

    step: Step | CapturedStep
    batch: Batch
    workloads: dict[int, float]  # by the first step of each, its share of the phase's steps

    @classmethod
    def of(cls, experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> PhaseStep:
        """Phase `number`, from 0. The phases before it are passed through without training. Compiled where a run would be."""
        start = _start(experiment, spec, number, vocabulary, device)
        objective = architectures.of(experiment).objective
        batch = shape_batch(experiment.data, objective, experiment.train.batch, vocabulary, device)
        live = place(start.phase, start.optimizer, architectures.of(experiment), Parallel(device), skips_parameters=False)
        live.entries.factors = [each.schedule(0, start.steps) for each in start.phase.entry_schedules]
        step = Step.of(start.phase, live, experiment.train, experiment.machine, device, start.steps)
        times = start.phase.workloads(range(start.steps))
        firsts = start.phase.first_steps(start.steps)
        done = _captured(step, batch) if experiment.machine.graphs and device.type == "cuda" else step
        return cls(done, batch, {first: times[workload] / start.steps for workload, first in firsts.items()})

    def __call__(self, steps: int) -> None:
        """So many steps of each workload."""
        for first in self.workloads:
            self.train(first, steps)

    def of_workload(self, first: int) -> Callable[[int], None]:
        return partial(self.train, first)

    def train(self, first: int, steps: int) -> None:
        """So many steps like the phase's step `first`."""
        for _ in range(steps):
            self.step.backward(self.batch, first)
            self.step.update()


def _captured(step: Step, batch: Batch) -> Step | CapturedStep:
    step.backward(batch, 0)
    step.update()  # makes the optimizer's state
    return capture(step, batch)


def _start(experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> PhaseStart:
    walked = walk(experiment, found(experiment, spec).method, vocabulary, Costs(device))
    return next(itertools.islice(walked, number, None))


def growth_seconds(experiment: Experiment, spec: str, vocabulary: int, device: torch.device) -> list[float]:
    """Seconds of the growth before each phase: the medians of several walks through the method."""
    method, walks = found(experiment, spec).method, []
    for _ in range(WALKS):
        costs = Costs(device)
        ends = [costs.seconds[Account.GROWTH] for _ in walk(experiment, method, vocabulary, costs)]
        walks.append([end - begin for begin, end in itertools.pairwise([0.0, *ends])])
    return [statistics.median(each) for each in zip(*walks, strict=True)]


def found(experiment: Experiment, spec: str) -> Found:
    """A method by its name or file, with the experiment's hyperparameters. A new process can find it by the same name."""
    return get_all([spec], experiment.methods)[0]


def memory_of(experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> int:
    """Bytes that steps of a phase add to the peak memory."""
    if device.type == "cuda":  # whose allocator knows what is in use
        return step_memory(experiment, spec, number, vocabulary, device)
    return memory_alone(experiment, spec, number, vocabulary, device)


def memory_alone(*arguments: Any) -> int:
    """What step_memory measures in a process of its own: what a process holds does not shrink."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(torch.set_num_threads, torch.get_num_threads()).result()
        pool.submit(memory.keep_freed).result()
        return pool.submit(step_memory, *arguments).result()


def step_memory(experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> int:
    """Bytes that steps of a phase add to the peak memory of this process."""
    PhaseStep.of(experiment, "scratch", 0, vocabulary, META)  # so that all is imported before memory is measured
    memory.reset_peak(device)
    before = memory.peak(device)
    step = PhaseStep.of(experiment, spec, number, vocabulary, device)
    step(1)
    memory.reset_peak(device)
    step(2)
    return memory.peak(device) - before
