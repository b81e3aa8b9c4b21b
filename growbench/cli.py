"""The command line. Heavy imports are inside the commands, so that --help and list answer at once."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from growbench import __version__, config, registry, results
from growbench.config import Experiment, UsageError
from growbench.progress import say

if TYPE_CHECKING:
    from growbench.registry import Found

EXAMPLES = """examples:
  growbench run                                          every method on gpt2-tiny, minutes on two cores
  growbench run --methods ligo,bert2bert                 scratch is always added
  growbench run bert-tiny --seeds 0,1,2 --set train.steps=200
  growbench run --methods ./mine.py --set mine.lr=0.01   a method of your own
  growbench tune --methods ligo,bert2bert --trials 20    then: growbench run --tuned FILE
  growbench report results/gpt2-tiny
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 1 a method failed, 2 usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and options.command is not run_experiment:
            raise UsageError("torchrun starts several processes: only growbench run works with them")
        return options.command(options)
    except UsageError as error:
        say(f"growbench: {error}")
        return 2
    except BrokenPipeError:  # whoever reads the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("growbench: interrupted; what was done is kept")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="growbench",
        description="Which way of growing transformers really saves training?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"growbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    def add_experiment(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("experiment", nargs="?", default="gpt2-tiny", help="a name (growbench list experiments) or a TOML file")
        sub.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="as train.steps=100 or ligo.operator_steps=50"
        )

    def add_methods(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--methods", metavar="A,B", help="names or files; default: all; scratch is always added")

    def add_device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    run = command("run", run_experiment, "train every method to the target loss, then make the report")
    add_experiment(run)
    add_methods(run)
    add_device(run)
    run.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="default: 0")
    run.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    run.add_argument(
        "--protocol", choices=("single", "ladder"), default="single",
        help="single: one budget, costs read off each run's curve; ladder: several budgets, each with a schedule of its own",
    )  # fmt: skip
    run.add_argument(
        "--budgets",
        type=_budgets,
        metavar="0.4,0.7,1",
        help="of the ladder, as shares; default: 0.4,0.55,0.7,0.85,1",
    )
    run.add_argument("--target-loss", type=_positive, metavar="X", help="default: scratch's mean final validation loss")
    run.add_argument("--stop-at-target", action="store_true", help="end a run at its first evaluation at or below --target-loss")
    run.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N",
        help="split each model over N processes: torchrun --nproc-per-node M -m growbench run ..., N divides M",
    )  # fmt: skip
    run.add_argument(
        "--shard",
        action="store_true",
        help="divide parameters, gradients and moments among torchrun's processes while they train; "
        "a whole model with its gradients and activations must still fit on each device once",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="print the plan with FLOPs, tokens, memory and estimated hours; train nothing"
    )
    run.add_argument(
        "--throughput", type=_positive, metavar="FLOP/s",
        help="of --dry-run: as 150e12, for its hours; default: measured here. With it, --device need not be there",
    )  # fmt: skip
    run.add_argument(
        "--save", action="store_true", help="keep each trained model: RUN/model, which transformers or timm loads anywhere"
    )
    run.add_argument(
        "--tuned",
        type=Path,
        metavar="FILE",
        help="take each method's learning rate, warm-up and hyperparameters from what growbench tune wrote; "
        "--set METHOD.KEY=VALUE wins over it",
    )

    tuning = command("tune", tune_methods, "the best learning rate, warm-up and hyperparameters: as many trials for every method")
    add_experiment(tuning)
    add_methods(tuning)
    add_device(tuning)
    tuning.add_argument("--trials", type=int, default=10, metavar="N", help="of each method; default: 10")
    tuning.add_argument(
        "--seeds", type=_seeds, default=[1000], metavar="1000,1001", help="none that a run is to report; default: 1000"
    )
    tuning.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")

    report = command("report", make_report, "tables, plots and index.html of stored runs; of several experiments an overview too")
    report.add_argument("folder", nargs="?", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    report.add_argument("--out", type=Path, metavar="DIR", help="default: DIR/report")
    report.add_argument("--target-loss", type=_positive, metavar="X", help="default: scratch's mean final validation loss")

    listing = command("list", list_known, "what there is: methods, experiments, architectures")
    listing.add_argument("what", nargs="?", choices=("methods", "experiments", "architectures"))
    listing.add_argument("--long", action="store_true", help="methods: what each does, in full, and its hyperparameters")

    check = command("check", check_method, "whether a method keeps the interface's promises, on miniatures of every architecture")
    check.add_argument("method", nargs="?", metavar="METHOD", help="a name, ./file.py or ./file.py:Class")
    check.add_argument("--aa", metavar="EXPERIMENT", help="instead: whether scratch against itself saves nothing, in miniature")
    check.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as ligo.operator_steps=50; with --aa as train.steps=200"
    )
    check.add_argument("--repetitions", type=_repetitions, metavar="N", help="of --aa; default: 40")
    check.add_argument("--out", type=Path, metavar="DIR", help="of --aa; default: results/selfproof")

    flops = command("flops", print_flops, "FLOPs per step of every method, by two cost models, checked against fvcore")
    add_experiment(flops)
    add_methods(flops)

    bench = command("bench", run_bench, "throughput: the bare loop, growbench's loop, transformers.Trainer; or costs of phases")
    add_experiment(bench)
    bench.add_argument(
        "--methods", metavar="A,B", help="instead: FLOPs, memory and time of each phase's step against a plain one"
    )
    add_device(bench)
    bench.add_argument("--rounds", type=int, default=7, metavar="N", help="alternations, at least 5; default: 7")
    return parser


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or not 0 <= min(seeds) <= max(seeds) < 2**32 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: must be different whole numbers from 0 to 2^32 - 1, as 0,1,2")
    return seeds


def _budgets(text: str) -> list[float]:
    try:
        budgets = [float(part) for part in text.split(",")]
    except ValueError:
        budgets = []
    shares = all(0 < share <= 1 for share in budgets)  # which no NaN is
    if not shares or 1 not in budgets or len(set(budgets)) < max(len(budgets), 2):
        raise argparse.ArgumentTypeError(f"{text!r}: must be different shares above 0 and up to 1, the full one among them")
    return budgets


def _repetitions(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 2")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return value


def _methods(names: str | None, experiment: Experiment) -> list[Found]:
    """The methods asked for, scratch first."""
    asked = registry.names() if names is None else [name.strip() for name in names.split(",") if name.strip()]
    return registry.get_all(["scratch", *asked], experiment.methods)


def _experiment(options: argparse.Namespace) -> Experiment:
    """The experiment asked for, and all of it: with the sizes of its source, if that is pretrained."""
    experiment = config.load(options.experiment, options.set)
    _prepare()
    if experiment.pretrained is None:
        return experiment
    from growbench import saved

    return saved.resolved(experiment)


def run_experiment(options: argparse.Namespace) -> int:
    experiment = _experiment(options)
    methods = _methods(options.methods, experiment)
    if options.tuned:
        from growbench import tune

        by_hand = [override.partition("=")[0].strip().removeprefix("methods.") for override in options.set]
        methods = tune.apply(options.tuned, experiment, methods, options.seeds, by_hand)
    if options.budgets and options.protocol != "ladder":
        raise UsageError("--budgets: only of --protocol ladder")
    if options.stop_at_target and options.target_loss is None:
        raise UsageError("--stop-at-target: needs --target-loss X; the mean loss of scratch's runs is another with every seed")

    import torch

    from growbench import parallel
    from growbench.benchmark import LADDER, Benchmark, choose_device

    if options.throughput and not options.dry_run:
        raise UsageError("--throughput: only of --dry-run")
    budgets = options.budgets or LADDER if options.protocol == "ladder" else (1.0,)
    if options.dry_run:
        absent = options.throughput and options.device == "cuda"  # to plan for a machine, none is needed
        device = torch.device("cuda") if absent else choose_device(options.device)

        from growbench.forecast import forecast

        print(forecast(experiment, methods, len(options.seeds), budgets, device, options.throughput))
        return 0
    device = choose_device(options.device)
    folder = options.results / experiment.name
    processes = parallel.start(device, options.tensor_parallel, options.shard)
    benchmark = Benchmark(experiment, folder, processes, options.target_loss, options.stop_at_target, budgets, options.save)
    succeeded = benchmark.run(methods, options.seeds)
    if not processes.main:
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

    from growbench import tune
    from growbench.benchmark import choose_device

    folder = options.results / experiment.name / results.TUNING
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
    if options.long:
        if options.what != "methods":
            raise UsageError("--long is for methods: growbench list methods --long")
        print("\n\n".join(card.text(name) for name, card in registry.cards().items()))
        return 0

    def print_group(name: str, lines: dict[str, str]) -> None:
        if options.what in (None, name):
            print(f"{name}:")
            for key, line in lines.items():
                print(f"  {key:<16} {line}")

    print_group("methods", registry.summaries())
    print_group("experiments", {name: config.title(name) for name in config.available()})
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
    settings = config.load("gpt2-tiny", options.set).methods if options.set else {}
    (found,) = registry.get_all([options.method], settings)
    _prepare()

    from growbench import check

    return check.report(found)


def _check_harness(options: argparse.Namespace) -> int:
    """The A/A check."""
    _prepare()

    from growbench import selfproof

    repetitions, folder = options.repetitions or 40, options.out or Path("results/selfproof")
    again = ["growbench", "check", "--aa", options.aa, *(part for each in options.set for part in ("--set", each))]
    command = shlex.join([*again, "--repetitions", str(repetitions)])
    return selfproof.report(options.aa, options.set, repetitions, folder, command)


def print_flops(options: argparse.Namespace) -> int:
    from growbench.plan import fvcore_check, plan, vocabulary_size

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

    from growbench.bench import bench, bench_phases
    from growbench.benchmark import choose_device

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

    from growbench import memory

    memory.keep_freed()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
