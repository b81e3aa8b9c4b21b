"""What each command does. Heavy imports are inside the functions, so that --help and list answer at once."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from growbench import registry
from growbench.config import loading
from growbench.config.schema import Experiment
from growbench.console import say
from growbench.errors import UsageError

if TYPE_CHECKING:
    from growbench.registry import Found


def _methods(names: str | None, experiment: Experiment) -> list[Found]:
    """The methods asked for, scratch first."""
    asked = registry.names() if names is None else [name.strip() for name in names.split(",") if name.strip()]
    return registry.get_all(["scratch", *asked], experiment.methods)


def _experiment(options: argparse.Namespace) -> Experiment:
    """The experiment asked for, and all of it: with the sizes of its source, if that is pretrained."""
    experiment = loading.load(options.experiment, options.set)
    _prepare()
    if experiment.pretrained is None:
        return experiment
    from growbench.runs import saved_models

    return saved_models.resolved(experiment)


def run_experiment(options: argparse.Namespace) -> int:
    experiment = _experiment(options)
    methods = _methods(options.methods, experiment)
    if options.tuned:
        from growbench.tools import tuned_values

        by_hand = [override.partition("=")[0].strip().removeprefix("methods.") for override in options.set]
        methods = tuned_values.apply(options.tuned, experiment, methods, options.seeds, by_hand)
    if options.budgets and options.protocol != "ladder":
        raise UsageError("--budgets: only of --protocol ladder")
    if options.stop_at_target and options.target_loss is None:
        raise UsageError("--stop-at-target: needs --target-loss X; the mean loss of scratch's runs is another with every seed")

    import torch

    from growbench.costs.hardware import choose_device
    from growbench.runs.benchmark import LADDER, Benchmark
    from growbench.training import parallel

    if options.throughput and not options.dry_run:
        raise UsageError("--throughput: only of --dry-run")
    budgets = options.budgets or LADDER if options.protocol == "ladder" else (1.0,)
    if options.dry_run:
        absent = options.throughput and options.device == "cuda"  # to plan for a machine, none is needed
        device = torch.device("cuda") if absent else choose_device(options.device)

        from growbench.tools.dry_run import forecast

        print(forecast(experiment, methods, len(options.seeds), budgets, device, options.throughput))
        return 0
    device = choose_device(options.device)
    folder = options.results / experiment.name
    processes = parallel.start(device, options.tensor_parallel, options.shard)
    benchmark = Benchmark(experiment, folder, processes, options.target_loss, options.stop_at_target, budgets, options.save)
    succeeded = benchmark.run(methods, options.seeds)
    if not processes.is_main_process:
        return 0 if succeeded else 1

    from filelock import FileLock

    from growbench import report

    try:
        with FileLock(folder / ".locks" / "report.lock"):  # two processes that shared the work end together
            page = report.make(folder, target_loss=options.target_loss)
    except UsageError as error:
        if succeeded:
            raise
        say(f"no report: {error}")
        return 1
    print((page.parent / "savings.md").read_text(encoding="utf-8"))
    print(f"report: {page}")
    return 0 if succeeded else 1


def tune_methods(options: argparse.Namespace) -> int:
    if options.trials < 1:
        raise UsageError(f"--trials {options.trials}: must be at least 1")
    experiment = _experiment(options)
    methods = _methods(options.methods, experiment)

    from growbench.costs.hardware import choose_device
    from growbench.runs import store
    from growbench.tools import tune

    folder = options.results / experiment.name / store.TUNING
    asked = [options.experiment, *(part for override in options.set for part in ("--set", override))]
    done = tune.tune(experiment, shlex.join(asked), methods, options.trials, options.seeds, folder, choose_device(options.device))
    print(tune.summary(done))
    print(f"trials: {folder / 'trials.csv'}")
    same = [*asked, *(["--methods", options.methods] if options.methods else []), "--results", str(options.results)]
    print(f"next: growbench run {shlex.join([*same, '--tuned', str(folder / 'tuned.toml')])}")
    return 0 if all(map(tune.best, done.values())) else 1


def make_report(options: argparse.Namespace) -> int:
    from growbench import report

    for page in report.make_all(options.folder, options.out, options.target_loss):
        print(f"report: {page}")
    return 0


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


def check_method(options: argparse.Namespace) -> int:
    if (options.method is None) == (options.aa is None):
        raise UsageError("check: needs either a METHOD or --aa EXPERIMENT")
    if options.aa is not None:
        return _check_harness(options)
    if options.repetitions or options.out:
        raise UsageError("--repetitions and --out: only of --aa")
    name = Path(options.method.partition(":")[0]).stem
    for override in options.set:
        if not override.startswith(f"{name}."):
            raise UsageError(f"--set {override!r}: check takes hyperparameters of its method, as {name}.KEY=VALUE")
    settings = loading.load("gpt2-tiny", options.set).methods if options.set else {}
    (found,) = registry.get_all([options.method], settings)
    _prepare()

    from growbench.tools import check

    return check.report(found)


def _check_harness(options: argparse.Namespace) -> int:
    """The A/A check."""
    _prepare()

    from growbench.tools import aa_test

    repetitions, folder = options.repetitions or 40, options.out or Path("results/selfproof")
    again = ["growbench", "check", "--aa", options.aa, *(part for each in options.set for part in ("--set", each))]
    command = shlex.join([*again, "--repetitions", str(repetitions)])
    return aa_test.report(options.aa, options.set, repetitions, folder, command)


def print_flops(options: argparse.Namespace) -> int:
    from growbench.data.shapes import vocabulary_size
    from growbench.planning.plan import plan
    from growbench.tools.flops import fvcore_check

    experiment = _experiment(options)
    methods = _methods(options.methods, experiment)
    vocabulary = vocabulary_size(experiment.data)
    print(f"{experiment.name}: FLOPs per step; batch {experiment.train.batch} x {experiment.data.positions}")
    print(f"{'method':<18} {'phase':<18} {'steps':>8} {'standard':>22} {'ligo_paper':>22}   by account (standard)")
    for found in methods:
        for phase in plan(experiment, found, vocabulary):
            accounts = ", ".join(f"{account} {flops:.0f}" for account, flops in phase.flops_per_step.items())
            paper = "-" if phase.paper_flops_per_step is None else phase.paper_flops_per_step
            print(
                f"{found.name:<18} {phase.name:<18} {phase.steps:>8} {sum(phase.flops_per_step.values()):>22.0f}"
                f" {paper:>22}   {accounts}; growth {phase.growth_flops}"
            )
    equal = True
    for which in ("source", "target"):
        ours, theirs = fvcore_check(experiment, which, vocabulary)
        equal &= ours == theirs
        verdict = "equal" if ours == theirs else "NOT EQUAL"
        print(f"forward of the {which}, one sequence: growbench {ours}, fvcore {theirs}: {verdict}")
    return 0 if equal else 1


def run_bench(options: argparse.Namespace) -> int:
    if options.rounds < 5:
        raise UsageError(f"--rounds {options.rounds}: must be at least 5")
    experiment = _experiment(options)

    from growbench.costs.hardware import choose_device
    from growbench.tools.phase_costs import bench_phases
    from growbench.tools.throughput import bench

    device = choose_device(options.device)
    if options.methods is None:
        print(bench(experiment, device, options.rounds))
    else:
        _methods(options.methods, experiment)  # refuses what is unknown
        print(bench_phases(experiment, options.methods.split(","), device, options.rounds))
    return 0


def _prepare() -> None:
    """Keep freed memory, and the libraries' advice and retries out of the progress display; their errors become ours."""
    import huggingface_hub
    import transformers

    from growbench.costs import memory

    memory.keep_freed()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
