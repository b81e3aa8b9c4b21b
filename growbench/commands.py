"""What each command does. Each function returns its exit code.

Torch is imported inside the functions, so that --help and list need not wait for it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from growbench import registry
from growbench.config import loading
from growbench.config.schema import Experiment
from growbench.console import say
from growbench.errors import UsageError

if TYPE_CHECKING:
    from growbench.planning.budgets import Budgets
    from growbench.registry import Found


def _methods(names: str | None, experiment: Experiment) -> list[Found]:
    """The methods that were asked for, scratch first."""
    asked = registry.names() if names is None else [name.strip() for name in names.split(",") if name.strip()]
    return registry.get_all(["scratch", *asked], experiment.methods)


def _experiment(options: argparse.Namespace) -> Experiment:
    """The experiment that was asked for; the sizes of a pretrained source are read from its checkpoint."""
    experiment = loading.load(options.experiment, options.set)
    _prepare()
    if experiment.pretrained is None:
        return experiment
    from growbench.runs import saved_models

    return saved_models.resolved(experiment)


def run(options: argparse.Namespace) -> int:
    experiment = _experiment(options)
    methods = _methods(options.methods, experiment)
    if options.tuned:
        from growbench.tools import tuned_values

        by_hand = [override.partition("=")[0].strip().removeprefix("methods.") for override in options.set]
        methods = tuned_values.apply(options.tuned, experiment, methods, options.seeds, by_hand)
    if options.budgets and options.protocol != "ladder":
        raise UsageError("--budgets: only with --protocol ladder")
    if options.stop_at_target and options.protocol == "equal-cost":
        raise UsageError("--stop-at-target: not with --protocol equal-cost, which compares runs that complete their schedules")
    if options.stop_at_target and options.target_loss is None:
        raise UsageError(
            "--stop-at-target: needs --target-loss X: the default target, the loss that scratch ends at, differs in every seed"
        )

    import torch

    from growbench.costs.hardware import choose_device
    from growbench.runs.benchmark import Benchmark
    from growbench.runs.jobs import Setting
    from growbench.training import parallel

    if options.throughput and not options.dry_run:
        raise UsageError("--throughput: only with --dry-run")
    if options.dry_run:
        budgets = _budgets(options, experiment, methods)
        absent = options.throughput and options.device == "cuda"  # a plan for CUDA needs no CUDA device
        device = torch.device("cuda") if absent else choose_device(options.device)

        from growbench.tools.dry_run import forecast

        print(forecast(experiment, methods, len(options.seeds), budgets, device, options.throughput))
        return 0
    device = choose_device(options.device)
    folder = options.results / experiment.name
    processes = parallel.start(device, options.tensor_parallel, options.shard)
    budgets = _budgets(options, experiment, methods, processes.dp_degree)
    stop_at_loss = options.target_loss if options.stop_at_target else None
    setting = Setting(experiment, folder, processes, stop_at_loss, options.save)
    succeeded = Benchmark(setting, budgets, options.target_loss).run(methods, options.seeds)
    if not processes.is_main_process:
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
    print((page.parent / "savings.md").read_text(encoding="utf-8"))
    print(f"report: {page}")
    return 0 if succeeded else 1


def _budgets(options: argparse.Namespace, experiment: Experiment, methods: Sequence[Found], dp_degree: int = 1) -> Budgets:
    from growbench.data.shapes import vocabulary_size
    from growbench.planning.budgets import LADDER, Budgets, equal_cost
    from growbench.runs import saved_models

    if options.protocol == "single":
        return Budgets()
    if options.protocol == "ladder":
        return Budgets.ladder(options.budgets or LADDER)
    pretrained_flops = saved_models.cost(experiment.pretrained).flops if experiment.pretrained else None
    return equal_cost(experiment, methods, vocabulary_size(experiment.data), pretrained_flops, dp_degree)


def tune(options: argparse.Namespace) -> int:
    if options.trials < 1:
        raise UsageError(f"--trials {options.trials}: must be at least 1")
    experiment = _experiment(options)
    methods = _methods(options.methods, experiment)

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

    for page in reports.make_all(options.folder, options.out, options.target_loss, options.price):
        print(f"report: {page}")
    return 0


def reproduce(options: argparse.Namespace) -> int:
    _prepare()

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
        from growbench.tools.cards import card

        print("\n\n".join(card(registry.get(name)) for name in registry.built_in()))
        return 0

    def print_group(name: str, lines: dict[str, str]) -> None:
        if options.what in (None, name):
            print(f"{name}:")
            for key, line in lines.items():
                print(f"  {key:<16} {line}")

    print_group("methods", registry.summaries())
    print_group("experiments", {name: loading.title(name) for name in loading.available()})
    print_group("architectures", registry.architecture_summaries())
    return 0


def check(options: argparse.Namespace) -> int:
    if (options.method is None) == (options.aa is None):
        raise UsageError("check: needs either a METHOD or --aa")
    if options.aa is not None:
        return _check_harness(options)
    if options.repetitions or options.noise or options.out:
        raise UsageError("--repetitions, --noise and --out: only with --aa")
    name = Path(options.method.partition(":")[0]).stem
    for override in options.set:
        if not override.startswith(f"{name}."):
            raise UsageError(f"--set {override!r}: check takes hyperparameters of its method, as {name}.KEY=VALUE")
    settings = loading.load("gpt2-tiny", options.set).methods if options.set else {}
    (found,) = registry.get_all([options.method], settings)
    _prepare()

    from growbench.tools import check as promises

    return promises.report(found)


def _check_harness(options: argparse.Namespace) -> int:
    """The A/A test: methods whose saving is known."""
    _prepare()

    from growbench.tools import aa_test

    repetitions, noise = options.repetitions or 2000, options.noise or Path("results/mini")
    again = ["growbench", "check", "--aa", options.aa, *(part for each in options.set for part in ("--set", each))]
    command = shlex.join([*again, "--repetitions", str(repetitions), "--noise", str(noise)])
    folder = options.out or Path("results/aa_test")
    return aa_test.report(aa_test.Request(options.aa, options.set, repetitions, noise, folder, command))


def flops(options: argparse.Namespace) -> int:
    from growbench.tools.flops import compare_with_fvcore, table

    experiment = _experiment(options)
    methods = _methods(options.methods, experiment)
    print(table(experiment, methods))
    text, equal = compare_with_fvcore(experiment)
    print(text)
    return 0 if equal else 1


def bench(options: argparse.Namespace) -> int:
    if options.rounds < 5:
        raise UsageError(f"--rounds {options.rounds}: must be at least 5")
    experiment = _experiment(options)

    from growbench.costs.hardware import choose_device
    from growbench.tools import bench as step_times
    from growbench.tools.throughput import compare_loops

    device = choose_device(options.device)
    if options.methods is None:
        print(compare_loops(experiment, device, options.rounds))
    else:
        _methods(options.methods, experiment)  # refuses an unknown method
        folder = options.results / experiment.name
        print(step_times.bench(experiment, options.methods.split(","), device, options.rounds, folder))
    return 0


def _prepare() -> None:
    """Let the process keep freed memory, and keep messages and questions of libraries out of the progress display."""
    import huggingface_hub
    import transformers
    from transformers import dynamic_module_utils

    from growbench.costs import memory

    memory.keep_freed()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # refuse code beside a model instead of asking on stdin whether to run it
