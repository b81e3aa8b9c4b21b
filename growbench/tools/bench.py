"""`growbench bench --methods`: costs of a step in every phase, as a table, and their times stored as reference seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from growbench.config.schema import Experiment
from growbench.console import say
from growbench.costs.hardware import device_name
from growbench.errors import UsageError
from growbench.files import check_folder
from growbench.formatting import data_size, percent, quantity
from growbench.method.options import settings
from growbench.registry import SCRATCH, SOURCE, Found, is_foreign, named, options_of
from growbench.runs import step_seconds
from growbench.runs.apart import Died, apart
from growbench.runs.jobs import Setting, settled
from growbench.runs.records import versions
from growbench.runs.step_seconds import LARGEST_ERROR, MethodSeconds, PhaseSeconds, StepSeconds
from growbench.tools import stages
from growbench.tools.phase_costs import Median, PhaseBench, PhaseCosts, found
from growbench.training.parallel import Parallel


@dataclass(frozen=True)
class Measured:
    """The phases of one method, or of the small model's own training."""

    label: str  # as it was asked for
    name: str  # as its runs are stored
    origin: str  # of the method that was walked through
    config: str  # the digest of its hyperparameters
    uses_source: bool
    phases: Sequence[PhaseCosts]

    @classmethod
    def of(cls, label: str, name: str, method: Found, phases: Sequence[PhaseCosts]) -> Measured:
        config = step_seconds.digest_of_method(settings(method.method))
        return cls(label, name, method.origin, config, method.method.uses_source, phases)


def bench(experiment: Experiment, specs: Sequence[str], device: torch.device, rounds: int, folder: Path) -> str:
    """A table as text: FLOPs, peak memory and time of a training step of every phase, and their ratios to the plain step.

    Times are stored in `folder`, the experiment's results, once all are measured: of scratch, of the methods, and of the small
    model's training if one of them grows it. Raises UsageError, before anything is measured, if that cannot be written.
    """
    methods_of = experiment.methods
    foreign = [spec for name, spec in named(specs, {}).items() if is_foreign(spec, options_of(name, spec, methods_of))]
    for spec in specs:
        if spec not in foreign:
            found(experiment, spec)  # raises UsageError for an unknown one
    check_folder(folder)
    experiment = settled(experiment, Parallel(device), folder)  # reference times are of the runs' precision
    phases = PhaseBench(experiment, device, rounds)
    methods = []
    for spec in specs:
        try:
            alone = spec in foreign
            methods.append(apart(measure_alone, experiment, spec, device, rounds) if alone else measure(phases, spec))
        except Died as error:
            raise UsageError(f"{spec}: its process {error}") from None
    from_scratch = found(experiment, SCRATCH)
    if experiment.pretrained is None and any(each.uses_source for each in methods):
        methods.append(Measured.of(SOURCE, SOURCE, from_scratch, phases.source()))
    scratch = phases.scratch()
    plain = Median.of(phases.plain_seconds or phases.alone())
    # of scratch that is asked for too, the plain step counts
    timed = [*methods, Measured.of(SCRATCH, SCRATCH, from_scratch, [scratch])]
    record = StepSeconds(
        hardware=Setting(experiment, folder, Parallel(device)).hardware("target"),
        versions={key: value for key, value in versions().items() if key != "commit"},
        experiment=step_seconds.digest_of_experiment(experiment.identity()),
        methods={each.name: _seconds(each, plain) for each in timed},
    )
    try:
        file = step_seconds.store(folder, record)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another folder with --results") from error
    largest = max(phase.error for method in record.methods.values() for phase in method.phases)
    if largest > LARGEST_ERROR:
        say(
            f"step times are uncertain by up to {percent(largest)}; a report uses none above {percent(LARGEST_ERROR, 0)}: "
            "measure again on an idle machine, or with more --rounds"
        )
    head = (
        f"{experiment.name}: a training step of batch {experiment.train.batch} x {experiment.data.positions}, "
        f"{device_name(device)}, {torch.get_num_threads()} threads, {record.hardware.precision}; "
        f"medians of {rounds} alternations; in brackets against the plain step"
    )
    return "\n".join([head, *_table(scratch, methods, plain.value), f"stored as reference: {file}"])


def measure(phases: PhaseBench, spec: str) -> Measured:
    """The phases of a method, each in alternation with the plain step."""
    method = found(phases.experiment, spec)
    return Measured.of(spec, method.name, method, phases.method(spec))


def measure_alone(experiment: Experiment, spec: str, device: torch.device, rounds: int) -> Measured:
    """The same in a process that measures no other method. The method is not imported before the plain step has been made."""
    stages.prepare()
    return measure(PhaseBench(experiment, device, rounds), spec)


def _seconds(measured: Measured, plain: Median) -> MethodSeconds:
    return MethodSeconds(
        origin=measured.origin,
        config=measured.config,
        commit=versions()["commit"],
        date=datetime.now(UTC).date().isoformat(),
        phases=[
            PhaseSeconds(
                name=phase.planned.name,
                steps=phase.planned.steps,
                step_seconds=phase.ratio.value * plain.value,
                spread=phase.ratio.spread or plain.spread,
                error=math.hypot(phase.ratio.error, plain.error),
                growth_seconds=phase.growth_seconds,
            )
            for phase in measured.phases
        ],
    )


def _table(scratch: PhaseCosts, methods: Sequence[Measured], plain_seconds: float) -> list[str]:
    plain = quantity(scratch.flops, "FLOP"), data_size(scratch.peak_memory), f"{1000 * plain_seconds:.0f}"
    rows = [("", "FLOPs", "peak memory", "ms per step"), ("plain", *plain)]
    for measured in methods:
        for phase in measured.phases:
            flops = f"{quantity(phase.flops, 'FLOP')} ({phase.flops / scratch.flops:.3f} x)"
            peak = f"{data_size(phase.peak_memory)} ({phase.peak_memory / scratch.peak_memory:.2f} x)"
            seconds = f"{1000 * phase.ratio.value * plain_seconds:.0f} ({phase.ratio.value:.2f} x)"
            rows.append((f"{measured.label}: {phase.planned.name}", flops, peak, seconds))
    return [f"{name:<34} {flops:>22} {peak:>20} {seconds:>20}" for name, flops, peak, seconds in rows]
