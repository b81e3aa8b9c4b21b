"""Forecast of what `growbench run` would need: FLOPs by account, tokens, memory and time. Nothing is trained."""

from __future__ import annotations

import statistics
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from growbench import architectures
from growbench.architectures.library import META
from growbench.config.schema import Experiment, TextConfig
from growbench.costs.accounts import CHARGED, Account
from growbench.costs.flops import count
from growbench.costs.hardware import device_name
from growbench.data.shapes import shape_batch, vocabulary_size
from growbench.formatting import counted, data_size, duration, quantity
from growbench.method import task_loss
from growbench.planning.branches import branching_steps, shared
from growbench.planning.budgets import Budgets
from growbench.planning.plan import PlannedPhase, Unplannable, check_sizes, plan, plan_source
from growbench.registry import SCRATCH, Found
from growbench.runs import saved_models
from growbench.training.precision import autocast, precision_of

SHORT, FEW = 128, 4096  # tokens of a sequence, and of a vocabulary, where those of the experiment would take a minute a step


def throughput(experiment: Experiment, vocabulary: int, device: torch.device) -> float:
    """FLOP/s of this device on one layer of the target: the median of three steps of forward and backward."""
    data, fitting = experiment.data, 2e13 if device.type == "cuda" else 2e10  # FLOPs of a batch: well below a second
    if isinstance(data, TextConfig) and _flops_of_one(experiment, vocabulary) > fitting:
        data, vocabulary = replace(data, sequence_length=min(data.sequence_length, SHORT)), min(vocabulary, FEW)
        experiment = replace(experiment, data=data)
    flops_of_one, architecture = _flops_of_one(experiment, vocabulary), architectures.of(experiment)
    with device:
        model = architecture.build(replace(experiment.sizes("target", vocabulary), layers=1))
    rows = max(1, min(experiment.machine.micro_batch_size(experiment.train.batch), int(fitting / flops_of_one)))
    batch = shape_batch(data, architecture.objective, rows, vocabulary, device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        with autocast(experiment.train, experiment.machine, device):
            loss = task_loss(model, batch)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return rows * flops_of_one / statistics.median(seconds[1:])


def _flops_of_one(experiment: Experiment, vocabulary: int) -> int:
    """FLOPs of forward and backward of one layer of the target, on one sequence or image."""
    architecture = architectures.of(experiment)
    with META:
        model = architecture.build(replace(experiment.sizes("target", vocabulary), layers=1))
    one = shape_batch(experiment.data, architecture.objective, 1, vocabulary, META)
    return count(lambda: task_loss(model, one).backward())[0]


MEMORY = "memory: the estimated peak of a step: weights, gradients, moments, and what backward needs"
STATED = "source: what the experiment's file states; growbench has not measured it"


@dataclass(frozen=True)
class Row:
    """A method at one budget."""

    name: str
    phases: list[PlannedPhase] | Unplannable
    source: float | None  # FLOPs that the build ledger charges for the source; None: not known
    inherited: float = 0.0  # FLOPs that are charged, but computed by the trunk that this run branches off
    equals: tuple[str, ...] = ()  # of scratch: the methods, and ledgers, whose cost it has

    @property
    def flops(self) -> float:
        return 0.0 if isinstance(self.phases, Unplannable) else sum(phase.flops for phase in self.phases)


def forecast(
    experiment: Experiment,
    methods: Sequence[Found],
    seeds: int,
    budgets: Budgets,
    device: torch.device,
    speed: float | None,
) -> str:
    """Forecast every method at each of its budgets. `speed` is in FLOP/s; None: it is measured, on a device that exists."""
    vocabulary = vocabulary_size(experiment.data)
    check_sizes(experiment, vocabulary)
    sources, source_flops = source_rows(experiment, methods, vocabulary, device)
    rows = [
        replace(
            row_of(experiment, found, share, vocabulary, device, source_flops),
            equals=budgets.scratch_alone.get(share, ()) if found.name == SCRATCH else (),
        )
        for found in methods
        for share in budgets.of(found.name)
    ]
    named = f"given with --throughput, on {device.type}"
    if speed is None:
        speed, named = throughput(experiment, vocabulary, device), f"measured just now on {device_name(device)}"
    total, inherited = (sum(each) for each in zip(*((row.flops, row.inherited) for row in [*sources, *rows]), strict=True))
    spent = seeds * (total - inherited)
    in_all = f"{quantity(seeds * total, 'FLOP')} charged, " * bool(inherited) + f"{quantity(spent, 'FLOP')} spent"
    return "\n".join(
        [
            *_head(experiment, seeds, device),
            *(line for row in [*sources, *rows] for line in _lines(row, experiment, speed)),
            f"\nin all {in_all}, about {duration(spent / speed)} of training at {quantity(speed, 'FLOP/s')}",
            f"{named}; without evaluations",
            MEMORY,
            *([STATED] if experiment.pretrained and experiment.pretrained.flops else []),
        ]
    )


def source_rows(
    experiment: Experiment, methods: Sequence[Found], vocabulary: int, device: torch.device
) -> tuple[list[Row], float | None]:
    """The row of the source, if one is trained, and the FLOPs that the build ledger charges for it."""
    if experiment.pretrained:
        return [], saved_models.flops(experiment.pretrained)
    if not any(found.method.uses_source for found in methods):
        return [], 0.0
    row = Row("(source)", plan_source(experiment, vocabulary, device), 0.0)
    return [row], row.flops


def row_of(
    experiment: Experiment, found: Found, share: float, vocabulary: int, device: torch.device, source_flops: float | None = None
) -> Row:
    """The row of a method at a share of the budget. `source_flops`: what the build ledger charges for its source, if known."""
    own, name = experiment.at(share, found.training), found.name + f" x {share:g}" * (share != 1)
    source = source_flops if found.method.uses_source else 0.0
    try:
        phases = plan(own, found, vocabulary, device)
    except Unplannable as error:
        return Row(name, error, source)
    full = experiment.at(1.0, found.training)
    (branch,) = branching_steps(full, [own], found.method, vocabulary) if share < 1 else (None,)
    return Row(name, phases, source, 0.0 if branch is None else shared(phases, branch))


def _head(experiment: Experiment, seeds: int, device: torch.device) -> list[str]:
    training, length = experiment.train, experiment.data.positions
    pretrained = f"; the source is pretrained: {experiment.pretrained.checkpoint}" if experiment.pretrained else ""
    return [
        f"{experiment.name}: {experiment.title}{pretrained}",
        f"{counted(seeds, 'seed')}, {training.batch} x {length} tokens per step, "
        f"{experiment.machine.micro_batch_size(training.batch)} x {length} at a time, "
        f"{precision_of(training, experiment.machine, device)} on {device.type}, optimizer {training.optimizer}",
        "",
        f"{'':<22} {'':>8} {'':>8}   FLOPs charged to",
        f"{'method':<22} {'steps':>8} {'tokens':>8}   {'train':>7} {'growth':>7} {'operator':>8} {'teacher':>7} {'in all':>7}"
        f" {'source':>7} {'memory':>9} {'time':>9}",
    ]


def _lines(row: Row, experiment: Experiment, speed: float) -> list[str]:
    """The line of a method, and below it its phases if it has several."""
    phases = row.phases
    if isinstance(phases, Unplannable):
        return [f"{row.name:<22} {phases}"]
    accounts = {account: sum(phase.spent(account) for phase in phases) for account in CHARGED}
    steps, memory = sum(phase.steps for phase in phases), max(phase.memory for phase in phases)
    tokens = steps * experiment.train.batch * experiment.data.positions
    flops = [accounts[account] for account in (Account.TRAIN, Account.GROWTH, Account.OPERATOR, Account.TEACHER)] + [row.flops]
    train, growth, operator, teacher, whole = (quantity(each) if each else "-" for each in flops)
    source = "unknown" if row.source is None else quantity(row.source) if row.source else "-"
    lines = [
        f"{row.name:<22} {steps:>8} {quantity(tokens):>8}   {train:>7} {growth:>7} {operator:>8} {teacher:>7} {whole:>7}"
        f" {source:>7} {data_size(memory):>9} {quantity(row.flops / speed, 's'):>9}"
    ]
    if row.equals:
        lines.append(_indented(f"costs as much as {'; '.join(row.equals)}"))
    if products := sum(phase.spent(Account.OPTIMIZER) for phase in phases):
        lines.append(_indented(f"beside these, not charged: {quantity(products, 'FLOP')} of the optimizer's own products"))
    if len(phases) > 1:
        parts = [f"{p.name}: {p.steps} x {quantity(p.charged_per_step, 'FLOP')}, {data_size(p.memory)}" for p in phases]
        whole = "; ".join(part.replace(" ", "\0") for part in parts)  # no line break within a phase
        lines.append(_indented(whole).replace("\0", " "))
    return lines


def _indented(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent=" " * 4, subsequent_indent=" " * 4)
