"""`growbench run --workers N`: several runs of a request at once on one machine, each in a process of its own.

As with one process, growbench's own methods and the sources come first, and the process of a plugin imports no other method.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from growbench.config.schema import Experiment
from growbench.console import say
from growbench.data import feed, processes
from growbench.display import Overall, Told
from growbench.formatting import counted
from growbench.planning.budgets import Budgets
from growbench.registry import SOURCE, Found
from growbench.runs import store
from growbench.runs.jobs import Job
from growbench.runs.workers import Crew, Do, Pool, Task, Tell
from growbench.tools import shares, stages
from growbench.tools.shares import Unit


def train(options: argparse.Namespace, own: Sequence[str], foreign: Sequence[str]) -> bool:
    """Train methods. False if one failed. Raises UsageError before any training."""
    checked = stages.check_apart(options, foreign)
    experiment, methods = stages.asked(options, own)
    costs = {each.name: each.cost for each in checked.values() if each.cost}
    request = _Request(options, experiment, stages.budgets_of(options, experiment, methods, costs=costs))
    grown = {seed for each in checked.values() for seed in each.sources}
    rounds = [_Round(own, request.own_tasks(methods, grown))]
    rounds += [_Round([spec], request.tasks(each.name), follows=True) for spec, each in checked.items()]
    overall = Overall({run: request.steps(task.what, run) for each in rounds for task in each.tasks for run in task.runs})
    try:
        return all([request.do(each, overall) for each in rounds])  # a failure ends nothing
    finally:
        overall.close()


@dataclass(frozen=True)
class _Round:
    """Tasks that the same workers do. `follows`: they train no source."""

    specs: Sequence[str]  # of the methods that a worker imports
    tasks: Sequence[Task]
    follows: bool = False


@dataclass(frozen=True)
class _Request:
    """What is to be trained."""

    options: argparse.Namespace
    experiment: Experiment
    budgets: Budgets

    def tasks(self, method: str, source_seeds: Collection[int] = ()) -> list[Task]:
        """A method's. On these seeds they need the source, which another task trains."""
        units = [
            unit.within(self.options.only) for unit in shares.units(self.experiment, [method], self.options.seeds, self.budgets)
        ]
        return [
            Task(store.name(method, unit.seed), unit, unit.runs, store.name(SOURCE, unit.seed) * (unit.seed in source_seeds))
            for unit in units
            if unit.shares
        ]

    def own_tasks(self, methods: Sequence[Found], grown: Collection[int]) -> list[Task]:
        """Those of growbench's own methods that are not done yet, and of the sources. The sources come first, short runs last.

        `grown`: seeds whose source is needed later.
        """
        setting = stages.setting_of(self.options, self.experiment)
        benchmark = stages.benchmark_of(self.options, setting)
        benchmark.budgets = self.budgets
        data = benchmark.prepare(methods)
        seeds = {*benchmark.sources_left(methods, self.options.seeds, data), *(() if self.experiment.pretrained else grown)}
        left = []
        for found in methods:
            for task in self.tasks(found.name, seeds if found.method.uses_source else ()):
                ladder = [Job(found, task.what.seed, share) for share in task.what.shares]
                if all(setting.is_done(job, data) for job in ladder):
                    benchmark.round(data).finish([ladder])  # says so
                else:
                    left.append(task)
        sources = [Task(name := store.name(SOURCE, seed), Unit(SOURCE, seed, (1.0,)), [name]) for seed in sorted(seeds)]
        return [*sources, *sorted(left, key=lambda task: -task.what.shares[0])]

    def steps(self, unit: Unit, run: str) -> int:
        """How many steps a run has, as far as can be said before it begins."""
        if unit.method == SOURCE:
            return self.experiment.source_train.steps
        share = unit.shares[unit.runs.index(run)]
        return self.experiment.at(share, {}).train.steps

    def do(self, work: _Round, overall: Overall) -> bool:
        count = min(self.options.workers, len(work.tasks))
        if not count:
            return True
        threads = max(1, torch.get_num_threads() // count)
        say(division(len(work.tasks), count, threads, processes.cores()))
        arguments = (self.options, work.specs, self.budgets, count, work.follows)
        return Pool(Crew(count, threads, begin, arguments), work.tasks, overall).run()


def division(tasks: int, workers: int, threads: int, cores: int) -> str:
    """How the work is shared out; `threads`: of each worker. The cores are named if they are too few for all to go on at once."""
    shared = f"{counted(tasks, 'task')} for {counted(workers, 'worker')} of {counted(threads, 'thread')} each"
    return shared if workers * threads <= cores else f"{shared}, on {counted(cores, 'core')} only"


def begin(tell: Tell, options: argparse.Namespace, specs: Sequence[str], budgets: Budgets, at_once: int, follows: bool) -> Do:
    """In a worker: what does its tasks."""
    experiment, methods = stages.asked(options, specs)
    setting = stages.setting_of(options, experiment)
    experiment, machine = setting.experiment, setting.experiment.machine
    if machine.workers < 0:
        machine = replace(machine, workers=max(1, feed.spare(setting.parallel.device) // at_once))
    experiment = replace(experiment, machine=machine)
    setting = replace(setting, experiment=experiment, at_once=at_once, progress=partial(Told, tell))
    benchmark = stages.benchmark_of(options, setting, follows)
    benchmark.budgets = budgets
    data = setting.load_data("target")
    by_name = {found.name: found for found in methods}

    def do(unit: Unit) -> bool:
        if unit.method == SOURCE:
            return benchmark.sources.of(unit.seed) is not None
        ladder = [Job(by_name[unit.method], unit.seed, share) for share in unit.shares]
        return benchmark.round(data, benchmark.shown_target(options.seeds)).finish([ladder])

    return do
