"""What a step of each phase of a method costs in FLOPs, memory and time, against a plain step."""

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
from growbench.tools.throughput import _seconds
from growbench.training.replicas import Replica
from growbench.training.step import Step

# --- what a step of each phase of a method costs, against a plain step


def bench_phases(experiment: Experiment, specs: list[str], device: torch.device, rounds: int) -> str:
    """A table as text: FLOPs, peak memory and time of a training step of every phase, and the ratios to scratch's.

    On random data with a random source. Memory is measured in a process of its own for each phase: what the second and third
    step reach, less what the process held before. Times are medians over `rounds` alternations with the plain step.
    """
    vocabulary = vocabulary_size(experiment.data)
    plain = PhaseStep.of(experiment, "scratch", 0, vocabulary, device)
    ((_, plain_flops),) = _flops_of_phases(experiment, "scratch", vocabulary)
    plain(1)
    plain_memory = _alone(experiment, "scratch", 0, vocabulary, device)
    plain_seconds = _seconds(plain, 1, device)
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
            peak = _alone(experiment, spec, number, vocabulary, device)
            seconds = [(_seconds(step, 1, device), _seconds(plain, 1, device)) for _ in range(rounds + 1)][1:]
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
        """The step of phase `number`; the phases before it are walked through untrained."""
        found, costs = _found(experiment, spec), Costs(device)
        walked = next(itertools.islice(walk(experiment, found.method, vocabulary, costs), number, None))
        objective = architectures.of(experiment).objective
        batch = shape_batch(experiment.data, objective, experiment.train.batch, vocabulary, device)
        live = Replica(walked.model, walked.model, walked.optimizer)
        return cls(Step.of(walked.phase, live, experiment.train, experiment.machine, device), batch)

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            self.step.backward(self.batch, 0)
            self.step.update()


def _flops_of_phases(experiment: Experiment, spec: str, vocabulary: int) -> list[tuple[str, float]]:
    """Each phase's name and the FLOPs of its step."""
    planned = plan(experiment, _found(experiment, spec), vocabulary)
    return [(phase.name, sum(phase.flops_per_step.values())) for phase in planned]


def _found(experiment: Experiment, spec: str) -> Found:
    """A method by its name or file, with the experiment's hyperparameters: a process of its own finds it again."""
    return get_all([spec], experiment.methods)[0]


def _alone(*arguments: Any) -> int:
    """Peak memory of a phase's steps in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_step_memory, torch.get_num_threads(), *arguments).result()


def _step_memory(threads: int, experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> int:
    torch.set_num_threads(threads)
    memory.keep_freed()
    PhaseStep.of(experiment, "scratch", 0, vocabulary, META)  # imports everything
    memory.reset_peak(device)
    before = memory.peak(device)
    step = PhaseStep.of(experiment, spec, number, vocabulary, device)
    step(1)
    memory.reset_peak(device)
    step(2)
    return memory.peak(device) - before
