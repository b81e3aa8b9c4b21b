"""The commands and their options, as the command line takes them. growbench.commands carries them out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from growbench import DEFAULT_EXPERIMENT, __version__, values

EXAMPLES = """examples:
  growbench run                                          all methods on gpt2-tiny: minutes on two CPU cores
  growbench run --methods ligo,bert2bert                 scratch is always added
  growbench run bert-tiny --seeds 0,1,2 --set train.steps=200
  growbench run --methods ./mine.py --set mine.lr=0.01   a method of your own
  growbench tune --methods ligo,bert2bert --trials 20    then: growbench run --tuned FILE
  growbench report results/gpt2-tiny
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = Parser(
        prog="growbench",
        description="Which way of growing transformers really saves training?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"growbench {__version__}")
    group = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, help: str, function: str = "") -> argparse.ArgumentParser:
        """`function`: its name in growbench.commands, which --help need not import; default: the command's own."""
        sub = group.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function or name, prog=sub.prog)
        return sub

    _run(command("run", "train every method, then make the report"))
    _jobs(command("jobs", "print a command for each run, for many machines; or submit them to Slurm"))
    _tune(command("tune", "search learning rate, warm-up and hyperparameters of every method, with as many trials each"))
    _report(command("report", "tables, figures and a page of stored runs; for several experiments also a board"))
    _freeze(command("freeze", "make a track of an experiment's finished runs, which later entries compare with"))
    _submit(command("submit", "check a method's runs against a track, and lay them out for a pull request"))
    _grow(command("grow", "grow a checkpoint of your own, without training it, into a new folder"))
    _export(command("export", "give the curves of stored runs to a tracker, or write them as one CSV table"))
    _verify(command("verify", "whether a grown checkpoint is whole, and what growth has kept of its source"))
    _reproduce(command("reproduce", "retrain the beginning of stored runs, and compare with their curves"))
    _list(command("list", "the known methods, experiments and architectures, or an architecture's weights", "list_known"))
    _show(command("show", "the card of a method, an experiment or an architecture"))
    _check(command("check", "check on small models that a method keeps the promises of the plugin interface"))
    _flops(command("flops", "FLOPs per step of every method by two cost models, checked against fvcore"))
    _bench(command("bench", "tokens per second of growbench, a bare loop and transformers.Trainer; or costs per phase"))
    return top


def _run(run: argparse.ArgumentParser) -> None:
    _add_request(run)
    run.add_argument(
        "--workers",
        type=values.count,
        default=1,
        metavar="N",
        help="train so many runs at once, each in a process with its share of the threads, or all on one GPU; their seconds are "
        "marked as shared, and no report compares them; default: 1",
    )
    run.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="split each model over N processes: torchrun --nproc-per-node M -m growbench run ...; M must be divisible by N",
    )
    run.add_argument(
        "--shard",
        action="store_true",
        help="divide parameters, gradients and optimizer state among torchrun's processes (FSDP2); growth still needs a whole "
        "model on each device",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="print FLOPs, tokens, memory and estimated time of every run; train nothing"
    )
    run.add_argument(
        "--throughput",
        type=values.positive,
        metavar="FLOP/s",
        help="with --dry-run: the speed that times are estimated from, such as 150e12; default: measured here. With it, the "
        "device of --device need not exist",
    )
    run.add_argument(
        "--only",
        metavar="I/N",
        help="train only this part of the runs, such as 2/8, or only named ones, such as ligo-seed0; make no report: for several "
        "machines that share --results",
    )


def _jobs(jobs: argparse.ArgumentParser) -> None:
    _add_request(jobs)
    jobs.add_argument(
        "--throughput",
        type=values.positive,
        metavar="FLOP/s",
        help="the speed that times are estimated from, such as 150e12; default: measured here",
    )
    jobs.add_argument(
        "--slurm",
        action="append",
        type=values.assignment,
        default=[],
        metavar="KEY=VALUE",
        help="submit the commands as job arrays with these parameters of sbatch or of submitit, such as partition=gpu or "
        "timeout_min=600; interrupted jobs are queued again. cluster=local runs them here",
    )


def _add_request(run: argparse.ArgumentParser) -> None:
    """What is to be trained."""
    _add_experiment(run)
    _add_methods(run)
    _add_device(run)
    run.add_argument("--seeds", type=values.seeds, default=[0], metavar="0,1,2", help="default: 0")
    _add_results(run)
    run.add_argument(
        "--protocol",
        choices=("single", "ladder", "equal-cost"),
        default="single",
        help="single: one budget, costs are read off each run's curve (default); ladder: several budgets, each with a complete "
        "learning-rate schedule; equal-cost: one budget, and scratch also at the cost of each method, with a complete schedule",
    )
    run.add_argument(
        "--budgets",
        type=values.budgets,
        metavar="0.4,0.7,1",
        help="with ladder: shares of the budget, those above 1 for scratch alone; default: 0.4,0.55,0.7,0.85,1",
    )
    _add_target_loss(run)
    run.add_argument(
        "--stop-at-target", action="store_true", help="end each run at its first evaluation at or below --target-loss"
    )
    run.add_argument("--save", action="store_true", help="keep each trained model in RUN/model, for transformers or timm")
    run.add_argument(
        "--track",
        choices=("trackio", "wandb", "tensorboard"),
        help="also show each run there while it goes on; default: nowhere",
    )
    run.add_argument(
        "--tuned",
        type=Path,
        metavar="FILE",
        help="take learning rates, warm-ups and hyperparameters from a file that growbench tune wrote; "
        "--set METHOD.KEY=VALUE overrides the file",
    )


def _tune(tune: argparse.ArgumentParser) -> None:
    _add_experiment(tune)
    _add_methods(tune)
    _add_device(tune)
    tune.add_argument("--trials", type=int, default=10, metavar="N", help="per method; default: 10")
    tune.add_argument(
        "--seeds", type=values.seeds, default=[1000], metavar="1000,1001", help="seeds that no report will use; default: 1000"
    )
    _add_results(tune)


def _report(report: argparse.ArgumentParser) -> None:
    report.add_argument("folder", nargs="?", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    report.add_argument("--out", type=Path, metavar="DIR", help="default: DIR/report")
    _add_target_loss(report)
    report.add_argument("--open", action="store_true", help="open the page in a browser: that of the board, if there is one")
    report.add_argument(
        "--price",
        type=values.positive,
        metavar="PER_HOUR",
        help="of the machine, in any currency: adds what each method's time costs",
    )


def _freeze(freeze: argparse.ArgumentParser) -> None:
    _add_experiment(freeze)
    _add_results(freeze)
    freeze.add_argument("--as", dest="series", metavar="NAME", help="of the track; default: the experiment's")
    _add_track_folder(freeze)


def _submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="as results/gpt2-tiny/mine-seed0; all of one method")
    submit.add_argument("--to", required=True, metavar="TRACK", help="such as gpt2-tiny@1")
    submit.add_argument("--code", metavar="FILE", help="of a method of your own: ./mine.py or ./mine.py:Class")
    _add_track_folder(submit)
    submit.add_argument("--out", type=Path, metavar="DIR", help="write the entry there; default: into the track")


def _add_track_folder(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--by", required=True, type=values.person, metavar="NAME", help="who made the runs, as the board shows it")
    sub.add_argument("--tracks", type=Path, default=Path("results/tracks"), metavar="DIR", help="default: results/tracks")


def _grow(grow: argparse.ArgumentParser) -> None:
    grow.add_argument("source", metavar="SOURCE", help="a folder with config.json and safetensors, or an id on the hub")
    grow.add_argument(
        "--to",
        required=True,
        metavar="SIZES",
        help="layers=32,width=2048: any of layers, width, heads, kv_heads, head_dim, ffn; the others follow in the source's "
        "proportions",
    )
    grow.add_argument(
        "--method",
        default="hypercloning",
        metavar="METHOD",
        help="a name, ./file.py or ./file.py:Class, of a method that needs no data; default: hypercloning",
    )
    grow.add_argument("--set", action="append", default=[], metavar="METHOD.KEY=VALUE", help="such as hypercloning.noisy=false")
    grow.add_argument("--seed", type=values.seed, default=0, metavar="N", help="of what the method draws at random; default: 0")
    grow.add_argument("--out", type=Path, metavar="DIR", help="a folder that does not exist yet; not needed with --dry-run")
    grow.add_argument(
        "--dry-run",
        action="store_true",
        help="print each tensor's old and new shape, parameters, bytes, and where layers come from; write nothing",
    )


def _export(export: argparse.ArgumentParser) -> None:
    export.add_argument("folder", type=Path, metavar="DIR", help="one experiment's results, as results/gpt2-tiny")
    export.add_argument("--to", choices=("trackio", "wandb", "tensorboard", "csv"), required=True)
    export.add_argument("--out", type=Path, metavar="FILE", help="with csv; default: DIR/curves.csv")


def _verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("grown", metavar="GROWN", help="a folder, or an id on the hub")
    verify.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="what it was grown from; default: what growbench.json in GROWN names, if it is there",
    )
    verify.add_argument(
        "--text", type=Path, metavar="FILE", help="to measure logits and loss on; default: a sample of English text"
    )
    _add_device(verify)


def _reproduce(again: argparse.ArgumentParser) -> None:
    again.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder, as results/gpt2-tiny/ligo-seed0")
    again.add_argument(
        "--steps", type=values.steps, metavar="N|all", help="how many steps; default: all growth, and two evaluations after it"
    )


def _list(known: argparse.ArgumentParser) -> None:
    known.add_argument("what", nargs="?", choices=("methods", "experiments", "architectures", "weights"))
    known.add_argument("architecture", nargs="?", metavar="ARCHITECTURE", help="with weights: an architecture, such as gpt2")
    known.add_argument("--long", action="store_true", help="with methods: the whole card of each, with its hyperparameters")


def _show(show: argparse.ArgumentParser) -> None:
    show.add_argument("name", metavar="NAME", help="as growbench list shows it, or a file of one's own: ./mine.py, ./mine.toml")


def _check(check: argparse.ArgumentParser) -> None:
    check.add_argument(
        "method", nargs="?", type=values.names, metavar="METHODS", help="names, or files as ./file.py:Class, with commas; or all"
    )
    check.add_argument(
        "--aa",
        nargs="?",
        const="gpt2-tiny",
        metavar="EXPERIMENT",
        help="instead of a method: check what reports claim of methods whose saving is known; default: gpt2-tiny",
    )
    check.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="such as ligo.operator_steps=50, or target.width=32 of the small models; with --aa: such as train.steps=200",
    )
    check.add_argument("--only", metavar="A,B", help="architectures, such as gpt2,vit; default: all")
    check.add_argument(
        "--repetitions", type=values.repetitions, metavar="N", help="with --aa: simulated comparisons; default: 2000"
    )
    check.add_argument(
        "--noise", type=Path, metavar="DIR", help="with --aa: results whose noise is simulated; default: results/mini"
    )
    check.add_argument("--out", type=Path, metavar="DIR", help="with --aa; default: results/aa_test")


def _flops(flops: argparse.ArgumentParser) -> None:
    _add_experiment(flops)
    _add_methods(flops)


def _bench(bench: argparse.ArgumentParser) -> None:
    _add_experiment(bench)
    bench.add_argument(
        "--methods",
        type=values.names,
        metavar="A,B",
        help="instead of throughput: FLOPs, memory and time of a step in each phase, compared with a step of scratch; the times "
        "are stored beside the experiment's runs, as reference for a report",
    )
    bench.add_argument(
        "--all", action="store_true", help="throughput on every shipped experiment for two CPU cores, with one table of all"
    )
    _add_device(bench)
    bench.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements of each, at least 5; default: 7")
    _add_results(bench)


def _add_experiment(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="a name (growbench list experiments) or a TOML file"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.steps=100 or ligo.operator_steps=50"
    )


def _add_methods(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--methods",
        type=values.names,
        metavar="A,B",
        help="names or files, or NAME=A for a variant of A whose hyperparameters --set NAME.KEY=VALUE gives, or all; default: "
        "all; scratch is always added",
    )


def _add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_target_loss(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--target-loss", type=values.positive, metavar="X", help="default: the loss that scratch ends at, seed by seed"
    )


def _add_results(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
