"""What `growbench jobs` prints: a command for each unit of work, which may be given again, and how long it takes."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growbench import registry
from growbench.config.loading import File
from growbench.costs.hardware import choose_device
from growbench.data.shapes import vocabulary_size
from growbench.formatting import counted, quantity
from growbench.planning.plan import Unplannable
from growbench.runs import store
from growbench.tools import dry_run, shares, stages
from growbench.tools.shares import Unit

# the options of `growbench run` that each command has as the request has them, with their defaults
SAME: dict[str, Any] = {
    "set": [], "results": Path("results"), "device": "auto", "protocol": "single", "budgets": None, "target_loss": None,
    "stop_at_target": False, "save": False, "track": None, "tuned": None,
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """`growbench run` for some runs. `seconds`: of training, without evaluations; None: not known."""

    arguments: tuple[str, ...]
    seconds: float | None

    @property
    def text(self) -> str:
        return shlex.join(["growbench", *self.arguments])


@dataclass(frozen=True)
class JobList:
    """The commands that train all that was asked for. `sources`: those of the small models, for which others would wait."""

    sources: list[Command]
    runs: list[Command]
    speed: float  # FLOP/s
    report: str  # the command that comes last

    @property
    def text(self) -> str:
        commands = [*self.sources, *self.runs]
        total = quantity(sum(command.seconds or 0.0 for command in commands), "s")
        width = max(len(command.text) for command in commands)
        lines = [
            f"# {counted(len(commands), 'command')}, about {total} of training at {quantity(self.speed, 'FLOP/s')}",
            "# Each may be given again: what is done is skipped, what was interrupted goes on.",
        ]
        for said, group in (("# first:", self.sources), ("# then, in any order, on any number of machines:", self.runs)):
            lines += [said] * bool(group)
            lines += [f"{c.text:<{width}}  # {'unknown' if c.seconds is None else quantity(c.seconds, 's')}" for c in group]
        return "\n".join([*lines, "# last:", self.report])


def job_list(options: argparse.Namespace, specs: Sequence[str]) -> JobList:
    """The commands of a request, whose options are those of `growbench run`. Raises UsageError as a dry run does."""
    experiment, methods = stages.asked(options, specs)
    budgets = stages.budgets_of(options, experiment, methods)
    device, vocabulary = choose_device(options.device), vocabulary_size(experiment.data)
    experiment = stages.settled_for(options, experiment, device)
    sources, _ = dry_run.source_rows(experiment, methods, vocabulary, device)
    speed = options.throughput or dry_run.throughput(experiment, vocabulary, device)
    spec_of = dict(zip((found.name for found in methods), specs, strict=True))
    spent = {
        (found.name, share): _spent(dry_run.row_of(experiment, found, share, vocabulary, device))
        for found in methods
        for share in budgets.of(found.name)
    }

    def seconds(flops: Sequence[float | None]) -> float | None:
        return None if None in flops else sum(filter(None, flops)) / speed

    def command(unit: Unit) -> Command:
        # scratch's budgets follow from all methods under the protocol equal-cost
        asked = ",".join(specs) if options.protocol == "equal-cost" else spec_of[unit.method]
        time = seconds([spent[unit.method, share] for share in unit.shares])
        return Command(_arguments(options, asked, unit.seed, ",".join(unit.runs)), time)

    grown = [found.name for found in methods if found.method.uses_source]
    first = [
        Command(_arguments(options, spec_of[grown[0]], seed, store.name(registry.SOURCE, seed)), seconds([_spent(row)]))
        for row in sources
        for seed in options.seeds
    ]
    work = shares.units(experiment, spec_of, options.seeds, budgets)
    report = shlex.join(["growbench", "report", str(options.results / experiment.name)])
    return JobList(first, list(map(command, work)), speed, report)


def _spent(row: dry_run.Row) -> float | None:
    """FLOPs that a run computes; None: not known."""
    return None if isinstance(row.phases, Unplannable) else row.flops - row.inherited


def _arguments(options: argparse.Namespace, methods: str, seed: int, only: str) -> tuple[str, ...]:
    """Of `growbench run`, for these runs of the request."""
    given = ["run", options.experiment, "--methods", methods, "--seeds", str(seed), "--only", only]
    for name, default in SAME.items():
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if value == default:
            continue
        if name == "set":
            given += [part for override in value if _concerns(override, methods) for part in (flag, override)]
        elif name == "budgets":
            given += [flag, ",".join(f"{share:g}" for share in value)]
        else:
            given += [flag] if value is True else [flag, str(value)]
    return tuple(given)


def _concerns(override: str, methods: str) -> bool:
    """Whether an override is one of the experiment, of a method with a name, or of one of `methods`: others would be refused."""
    table = override.removeprefix("methods.").partition(".")[0]
    return table in {*registry.names(), *File.__dataclass_fields__, *registry.named(methods.split(","), {})}
