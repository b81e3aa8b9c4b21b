"""The command line. Heavy imports are inside the commands, so that --help and list answer at once."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from growbench import __version__
from growbench.console import say
from growbench.errors import UsageError

if TYPE_CHECKING:
    pass
from growbench.commands import check_method, list_known, make_report, print_flops, run_bench, run_experiment, tune_methods

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

    report = command("report", make_report, "tables, plots and index.html of stored runs; of several experiments a board too")
    report.add_argument("folder", nargs="?", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    report.add_argument("--out", type=Path, metavar="DIR", help="default: DIR/report")
    report.add_argument("--target-loss", type=_positive, metavar="X", help="default: scratch's mean final validation loss")

    listing = command("list", list_known, "what there is: methods, experiments, architectures and their weights")
    listing.add_argument("what", nargs="?", choices=("methods", "experiments", "architectures", "weights"))
    listing.add_argument("architecture", nargs="?", metavar="ARCHITECTURE", help="of weights: growbench list weights gpt2")
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
