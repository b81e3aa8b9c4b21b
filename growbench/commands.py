"""What each command does. Each function returns its exit code.

Torch is imported inside the functions, so that --help and list need not wait for it.
"""

from __future__ import annotations

import argparse
import gc
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from growbench import DEFAULT_EXPERIMENT, registry
from growbench.config import loading
from growbench.config.schema import Experiment
from growbench.console import say
from growbench.elapsed import Part, elapsed, table
from growbench.errors import UsageError, closest
from growbench.tools import listing, stages

if TYPE_CHECKING:
    from growbench.registry import Found


def _methods(names: str | None, experiment: Experiment) -> list[Found]:
    """The methods that were asked for, scratch first."""
    return registry.get_all(stages.specs_of(names, experiment), experiment.methods)


def _check_request(options: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if options.budgets and options.protocol != "ladder":
        raise UsageError("--budgets: only with --protocol ladder")
    if options.stop_at_target and options.protocol == "equal-cost":
        raise UsageError("--stop-at-target: not with --protocol equal-cost, which compares runs that complete their schedules")
    if options.stop_at_target and options.target_loss is None:
        raise UsageError(
            "--stop-at-target: needs --target-loss X: the default target, the loss that scratch ends at, differs in every seed"
        )


def run(options: argparse.Namespace) -> int:
    _check_request(options)
    if options.only is not None and options.dry_run:
        raise UsageError("--only: not with --dry-run")
    if options.workers > 1 and (options.dry_run or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise UsageError("--workers: not with --dry-run, and not with torchrun, whose processes train one run together")
    if options.throughput and not options.dry_run:
        raise UsageError("--throughput: only with --dry-run")
    experiment = loading.load(options.experiment, options.set)
    specs = stages.specs_of(options.methods, experiment)
    if options.dry_run:
        return _forecast(options, specs)
    if options.track:
        from growbench.tools import export as exporting

        exporting.check(options.track)
    succeeded = stages.train(options, specs, experiment)
    if options.only is None:
        with elapsed.part(Part.REPORT):
            code = _report_of(options, options.results / experiment.name, succeeded)
    else:
        print(f"next, once all parts are done: growbench report {shlex.quote(str(options.results / experiment.name))}")
        code = 0 if succeeded else 1
    say(table(elapsed.parts()))
    elapsed.begin()  # a further command in this process begins now
    return code


def _forecast(options: argparse.Namespace, specs: Sequence[str]) -> int:
    """The dry run."""
    gc.disable()  # imports and plans leave little garbage, and to look for it takes a tenth of the time
    try:
        import torch

        from growbench.costs.hardware import choose_device
        from growbench.tools.dry_run import forecast

        experiment, methods = stages.asked(options, specs)
        budgets = stages.budgets_of(options, experiment, methods)
        absent = options.throughput and options.device == "cuda"  # a plan for CUDA needs no CUDA device
        device = torch.device("cuda") if absent else choose_device(options.device)
        experiment = stages.settled_for(options, experiment, device)
        print(forecast(experiment, methods, len(options.seeds), budgets, device, options.throughput))
    finally:
        gc.freeze()  # nor is it looked for at the end of the process
        gc.enable()
    return 0


def _report_of(options: argparse.Namespace, folder: Path, succeeded: bool) -> int:
    """Make and print the report of a run. Returns the exit code."""
    if int(os.environ.get("RANK", 0)):
        return 0 if succeeded else 1

    from filelock import FileLock

    from growbench import report as reports

    try:
        with FileLock(folder / ".locks" / "report.lock"):  # processes that share the runs may end at the same time
            page = reports.make(folder, target_loss=options.target_loss)
    except UsageError as error:
        if succeeded:
            raise
        say(f"no report: {error}")
        return 1
    print((page.parent / reports.VERDICT).read_text(encoding="utf-8"))
    print(f"report: {page}")
    return 0 if succeeded else 1


def jobs(options: argparse.Namespace) -> int:
    _check_request(options)
    experiment = loading.load(options.experiment, options.set)
    specs = stages.specs_of(options.methods, experiment)

    from growbench.tools.job_list import job_list

    made = job_list(options, specs)
    print(made.text)
    if options.slurm:
        from growbench.tools import slurm

        for line in slurm.submit(made, dict(options.slurm), options.results / experiment.name / slurm.FOLDER):
            say(line)
    return 0


def tune(options: argparse.Namespace) -> int:
    if options.trials < 1:
        raise UsageError(f"--trials {options.trials}: must be at least 1")
    experiment = stages.experiment_of(options)
    methods = stages.specs_of(options.methods, experiment)

    from growbench.costs.hardware import choose_device
    from growbench.runs import store
    from growbench.tools import tune as tuning

    folder = options.results / experiment.name / store.TUNING
    asked = [options.experiment, *(part for override in options.set for part in ("--set", override))]
    request = tuning.Request(shlex.join(asked), tuple(options.seeds), options.trials)
    done = tuning.tune(experiment, methods, request, folder, choose_device(options.device))
    print(tuning.summary(done))
    print(f"trials: {folder / 'trials.csv'}")
    same = [*asked, *(["--methods", options.methods] if options.methods else []), "--results", str(options.results)]
    print(f"next: growbench run {shlex.join([*same, '--tuned', str(folder / 'tuned.toml')])}")
    return 0 if all(map(tuning.best, done.values())) else 1


def report(options: argparse.Namespace) -> int:
    from growbench import report as reports

    pages = reports.make_all(options.folder, options.out, options.target_loss, options.price)
    for page in pages:
        print(f"report: {page}")
    if options.open:
        import webbrowser

        webbrowser.open(pages[-1].resolve().as_uri())  # the board is the last
    return 0


def freeze(options: argparse.Namespace) -> int:
    from growbench.tools import freeze as freezing

    request = freezing.Request(options.experiment, options.set, options.results, options.series, options.by)
    print(freezing.freeze(request, options.tracks).text())
    return 0


def submit(options: argparse.Namespace) -> int:
    stages.prepare()

    from growbench.tools import submit as submission

    request = submission.Request(options.runs, options.to, options.tracks, options.code, options.by, options.out)
    print(submission.submit(request))
    return 0


def export(options: argparse.Namespace) -> int:
    if options.out and options.to != "csv":
        raise UsageError("--out: only with --to csv; a tracker's own settings say where it stores runs")

    from growbench.tools import export as exporting

    print(exporting.export(options.folder, options.to, options.out))
    return 0


def reproduce(options: argparse.Namespace) -> int:
    stages.prepare()

    from growbench.tools import reproduce as reproduction

    return reproduction.report(options.runs, options.steps)


def list_known(options: argparse.Namespace) -> int:
    if (options.what == "weights") != (options.architecture is not None):
        known = ", ".join(registry.architecture_summaries())
        raise UsageError(f"growbench list weights ARCHITECTURE: give one of {known}; the other lists take none")
    if options.architecture:
        from growbench.tools import cards

        print(cards.weights(options.architecture))
        return 0
    if options.long:
        if options.what != "methods":
            raise UsageError("--long is for methods: growbench list methods --long")
        from growbench.tools.cards import card, common_card

        print("\n\n".join([*(card(registry.get(name)) for name in registry.built_in()), common_card()]))
        return 0

    lists = {"methods": listing.methods, "experiments": listing.experiments, "architectures": listing.architectures}
    print("\n\n".join(made() for name, made in lists.items() if options.what in (None, name)))
    if options.what is None:
        print("\ngrowbench show NAME tells more of one of them.")
    return 0


def show(options: argparse.Namespace) -> int:
    """The card of a method, an experiment or an architecture."""
    name = options.name
    if name in registry.architecture_summaries():
        from growbench.tools import cards

        print(cards.weights(name))
    elif name in loading.available() or name.endswith(".toml"):
        from growbench.tools import experiment_card

        print(experiment_card.card(name))
    else:
        known = [*registry.names(), *loading.available(), *registry.architecture_summaries()]
        if name not in known and not registry.is_foreign(name):
            raise UsageError(f"unknown name {name!r}: {closest(name, known)}growbench list shows all names")
        from growbench.tools import cards

        print(cards.card(registry.get(name)))
    return 0


def check(options: argparse.Namespace) -> int:
    if bool(stages.expanded(options.method or "")) == (options.aa is not None):
        raise UsageError("check: needs either a METHOD or --aa")
    if options.aa is not None:
        if options.only:
            raise UsageError("--only: not with --aa")
        return _check_harness(options)
    if options.repetitions or options.noise or options.out:
        raise UsageError("--repetitions, --noise and --out: only with --aa")
    specs = stages.expanded(options.method)
    names = [*registry.named(specs, {})]
    own = [override for override in options.set if override.partition(".")[0] in names]
    settings = dict(loading.assignment(override) for override in options.set if override not in own)
    for key in settings:
        if not key.startswith(("source.", "target.", "train.")):
            allowed = f"hyperparameters of its method, as {names[0]}.KEY, and settings of its miniatures, as target.width"
            raise UsageError(f"--set {key}: check takes {allowed}")
    methods = registry.get_all(specs, loading.load("gpt2-tiny", own).methods if own else {})
    stages.prepare()

    from growbench.tools import check as promises

    return max([promises.report(found, promises.cells_of(options.only, settings)) for found in methods])


def _check_harness(options: argparse.Namespace) -> int:
    """The A/A test: methods whose saving is known."""
    stages.prepare()

    from growbench.tools import aa_test

    repetitions, noise = options.repetitions or 2000, options.noise or Path("results/mini")
    again = ["growbench", "check", "--aa", options.aa, *(part for each in options.set for part in ("--set", each))]
    command = shlex.join([*again, "--repetitions", str(repetitions), "--noise", str(noise)])
    folder = options.out or Path("results/aa_test")
    return aa_test.report(aa_test.Request(options.aa, options.set, repetitions, noise, folder, command))


def flops(options: argparse.Namespace) -> int:
    from growbench.tools.flops import compare_with_fvcore, table

    experiment = stages.experiment_of(options)
    methods = _methods(options.methods, experiment)
    print(table(experiment, methods))
    text, equal = compare_with_fvcore(experiment)
    print(text)
    return 0 if equal else 1


def bench(options: argparse.Namespace) -> int:
    if options.rounds < 5:
        raise UsageError(f"--rounds {options.rounds}: must be at least 5")
    if options.all and (options.methods or options.experiment != DEFAULT_EXPERIMENT):
        raise UsageError("--all: takes no experiment, as it measures all for two CPU cores, and not with --methods")
    experiment = stages.experiment_of(options)

    from growbench.costs.hardware import choose_device
    from growbench.tools import bench as step_times
    from growbench.tools.throughput import compare_all, compare_loops

    device = choose_device(options.device)
    if options.all:
        return 0 if compare_all([loading.load(name, options.set) for name in listing.small()], device, options.rounds) else 1
    if options.methods is None:
        print(compare_loops(experiment, device, options.rounds).text)
    else:
        stages.specs_of(options.methods, experiment)  # refuses two of one name
        specs, folder = stages.expanded(options.methods), options.results / experiment.name
        print(step_times.bench(experiment, specs, device, options.rounds, folder))
    return 0


def grow(options: argparse.Namespace) -> int:
    if options.out is None and not options.dry_run:
        raise UsageError("--out DIR: where to write the grown checkpoint; only --dry-run does without")
    stages.prepare()

    from growbench.tools import grow as growing
    from growbench.tools.grow_table import table

    request = growing.Request(options.source, options.to, options.method, options.set, options.seed)
    if options.dry_run:
        print(table(growing.planned(request)))
        return 0
    again = ["growbench", "grow", options.source, "--to", options.to, "--method", options.method]
    again += [part for each in options.set for part in ("--set", each)]
    command = shlex.join([*again, "--seed", str(options.seed), "--out", str(options.out)])
    destination = growing.Destination(options.out, command)
    print(growing.grow(growing.planned(request, destination), destination))
    return 0


def verify(options: argparse.Namespace) -> int:
    stages.prepare()

    from growbench.costs.hardware import choose_device
    from growbench.tools import verify as verification

    request = verification.Request(options.grown, options.source, options.text, choose_device(options.device))
    if wrong := verification.verify(request):
        say(f"growbench: {options.grown}: {wrong}")
        return 1
    return 0
