"""FLOPs, peak memory and time of a training step in each phase of a method, compared with a plain step, that of scratch."""

from __future__ import annotations

import itertools
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from growbench import architectures
from growbench.config.schema import Experiment
from growbench.costs import memory
from growbench.costs.hardware import device_name
from growbench.costs.ledger import Costs
from growbench.data import Batch
from growbench.data.shapes import shape_batch, vocabulary_size
from growbench.formatting import data_size, quantity
from growbench.planning.plan import META, plan, walk
from growbench.registry import Found, get_all
from growbench.tools.throughput import wall_seconds
from growbench.training.replicas import Replica
from growbench.training.step import Step


def bench_phases(experiment: Experiment, specs: list[str], device: torch.device, rounds: int) -> str:
    """A table as text: FLOPs, peak memory and time of a training step of every phase, and their ratios to the plain step.

    Data and source are random. Memory is measured in a process of its own for each phase: the peak of the second and third
    step, minus what the process held before the first. Times are medians over `rounds` alternations with the plain step.
    """
    vocabulary = vocabulary_size(experiment.data)
    plain = PhaseStep.of(experiment, "scratch", 0, vocabulary, device)
    ((_, plain_flops),) = _flops_of_phases(experiment, "scratch", vocabulary)
    plain(1)
    plain_memory = memory_alone(experiment, "scratch", 0, vocabulary, device)
    plain_seconds = wall_seconds(plain, 1, device)
    lines = [
        f"{experiment.name}: a training step of batch {experiment.train.batch} x {experiment.data.positions}, "
        f"{device_name(device)}, {torch.get_num_threads()} threads, {experiment.train.precision_on(device.type)}; "
        f"medians of {rounds} alternations; in brackets against the plain step",
        f"{'':<34} {'FLOPs':>22} {'peak memory':>20} {'ms per step':>20}",
        f"{'plain':<34} {quantity(plain_flops, 'FLOP'):>22} {data_size(plain_memory):>20} {1000 * plain_seconds:>20.0f}",
    ]
    for spec in specs:
        for number, (phase, flops) in enumerate(_flops_of_phases(experiment, spec, vocabulary)):
            step = PhaseStep.of(experiment, spec, number, vocabulary, device)
            peak = memory_alone(experiment, spec, number, vocabulary, device)
            seconds = [(wall_seconds(step, 1, device), wall_seconds(plain, 1, device)) for _ in range(rounds + 1)][1:]
            times = statistics.median(own for own, _ in seconds), statistics.median(own / other for own, other in seconds)
            lines.append(
                f"{spec + ': ' + phase:<34} {quantity(flops, 'FLOP'):>12} ({flops / plain_flops:.3f} x)"
                f" {data_size(peak):>11} ({peak / plain_memory:.2f} x) {1000 * times[0]:>10.0f} ({times[1]:.2f} x)"
            )
    return "\n".join(lines)


@dataclass(frozen=True)
class PhaseStep:
    """One training step of a method's phase, on random data."""

    step: Step
    batch: Batch

    @classmethod
    def of(cls, experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> PhaseStep:
        """The step of phase `number`, from 0. The phases before it are passed through without training."""
        found, costs = _found(experiment, spec), Costs(device)
        walked = next(itertools.islice(walk(experiment, found.method, vocabulary, costs), number, None))
        objective = architectures.of(experiment).objective
        batch = shape_batch(experiment.data, objective, experiment.train.batch, vocabulary, device)
        live = Replica(walked.model, walked.optimizer)
        return cls(Step.of(walked.phase, live, experiment.train, experiment.machine, device), batch)

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            self.step.backward(self.batch, 0)
            self.step.update()


def _flops_of_phases(experiment: Experiment, spec: str, vocabulary: int) -> list[tuple[str, float]]:
    """Name and FLOPs of a step of each phase."""
    planned = plan(experiment, _found(experiment, spec), vocabulary)
    return [(phase.name, sum(phase.flops_per_step.values())) for phase in planned]


def _found(experiment: Experiment, spec: str) -> Found:
    """A method by its name or file, with the experiment's hyperparameters. A new process can find it by the same name."""
    return get_all([spec], experiment.methods)[0]


def memory_alone(*arguments: Any) -> int:
    """What step_memory measures in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(step_memory, torch.get_num_threads(), *arguments).result()


def step_memory(threads: int, experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> int:
    """Bytes that steps of a phase add to the peak memory of this process."""
    torch.set_num_threads(threads)
    memory.keep_freed()
    PhaseStep.of(experiment, "scratch", 0, vocabulary, META)  # so that all is imported before memory is measured
    memory.reset_peak(device)
    before = memory.peak(device)
    step = PhaseStep.of(experiment, spec, number, vocabulary, device)
    step(1)
    memory.reset_peak(device)
    step(2)
    return memory.peak(device) - before
