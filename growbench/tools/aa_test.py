"""The harness proves itself: it finds no saving where there is none, and a planted one in its true size.

Runs of a miniature of an experiment, by the real loop and the real analysis. Every target is the worst final loss of the runs
compared, so that all of them meet it and none is dropped.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
from scipy import stats

from growbench import __version__
from growbench.analysis import tables
from growbench.analysis.comparison import Comparison, compare
from growbench.analysis.statistics import percentile_interval
from growbench.config import loading
from growbench.config.schema import Experiment, ImageConfig
from growbench.console import say
from growbench.costs.accounts import LEDGERS
from growbench.errors import UsageError
from growbench.formatting import percent, saving
from growbench.method import Method, Phase, Phases, Task
from growbench.registry import SCRATCH, Found, get
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.runs.jobs import Setting
from growbench.runs.records import RunRecord
from growbench.runs.store import Run
from growbench.training.parallel import Parallel

# A second or two a run, ending while the loss still falls: costs to a loss are all noise on the plateau of token frequencies.
SIZES = ("layers=2", "width=32", "heads=2", "ffn=0", "kv_heads=0")


TRAINING = ("batch=8", "steps=120", "warmup=12", "lr=5e-4")


TEXT = ("sequence_length=32", "vocabulary=258", 'tokenizer=""', "evaluation_batches=2")


IMAGES = ("evaluation_batches=2",)


TWIN_SEEDS = 3  # of scratch, and as many others of its twin


COVERAGE = 0.9  # promised share of intervals that contain 0


BIAS = 0.02  # promised bound of the mean saving


SHARES = (0.2, 0.4)  # of the budget, planted


PLANTED_SEEDS = 6


NEAR = 0.03  # promised distance of a planted saving from its share


class Planted(Method):
    """Start from scratch's own weights after so many steps, and go through the rest of its schedule."""

    paper: ClassVar[str] = ""
    steps: int

    def phases(self, task: Task) -> Phases:
        def later(step: int, steps: int) -> float:
            return task.schedule(self.steps + step, self.steps + steps)

        yield Phase(model=task.model_from(task.read(task.source)), steps=task.budget - self.steps, schedule=later)


class Promise(NamedTuple):
    """What the harness says of itself, and what came of it."""

    text: str
    measured: str
    kept: bool


def report(name: str, overrides: Sequence[str], repetitions: int, folder: Path, command: str) -> int:
    """Check the experiment `name`; tables and a summary go to a folder of its own in `folder`. 0 if every promise is kept.

    What was trained before is not trained again. Raises UsageError if a run fails.
    """
    torch.set_num_threads(1)  # at this size more are slower
    experiment = miniature(name, overrides)
    folder = folder / experiment.name
    twins, planted = twin_table(experiment, folder / "runs", repetitions), planted_table(experiment, folder / "runs")
    twins.to_csv(folder / "aa.csv", index=False, float_format="%.5f")
    planted.to_csv(folder / "planted.csv", index=False, float_format="%.5f")
    kept = promises(twins, planted)
    record = _stored(folder / "runs" / "aa", SCRATCH, [0])[0].record
    text = summary(experiment, record, twins, kept, command)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if all(promise.kept for promise in kept) else 1


def miniature(name: str, overrides: Iterable[str]) -> Experiment:
    """The experiment with the sizes above and a source as large as its target; `overrides` come last."""
    data = IMAGES if isinstance(loading.load(name).data, ImageConfig) else TEXT
    trained = [] if loading.load(name).pretrained else ["source"]
    small = [f"{which}.{key}" for which in (*trained, "target") for key in SIZES]
    small += [f"{which}.{key}" for which in (*trained, "train") for key in TRAINING] + [f"data.{key}" for key in data]
    experiment = loading.load(name, [*small, *overrides])
    return replace(experiment, source=experiment.target, source_train=experiment.train, pretrained=None)


def twin_table(experiment: Experiment, folder: Path, repetitions: int) -> pd.DataFrame:
    """Scratch against itself under another name, with other seeds, many times: what the twin saves, two rows a repetition.

    The seeds of either side are once scratch's and once the twin's, `forth` and `back`: so the luck of the seeds, which is
    larger than what is looked for, cancels in the mean, and what remains is a bias of the harness.
    `percentile_`: the interval by the bare bootstrap. `default_`: with the default target, scratch's mean final loss, which a
    twin misses as often as not; where it meets it, its saving cannot be negative.
    """
    rows = []
    for repetition in range(repetitions):
        first = 2 * TWIN_SEEDS * repetition
        seeds = range(first, first + 2 * TWIN_SEEDS)
        _train(experiment, folder / "aa", [get(SCRATCH)], seeds)
        runs = _stored(folder / "aa", SCRATCH, seeds)
        one, other = runs[:TWIN_SEEDS], runs[TWIN_SEEDS:]
        for way, scratch, others in (("forth", one, other), ("back", other, one)):
            rows.append({"repetition": repetition, "way": way, **_twin_row(scratch, others)})
        say(f"A/A {repetition}: saved " + ", ".join(saving(row["saving"], row["low"], row["high"]) for row in rows[-2:]))
    return pd.DataFrame(rows)


def _twin_row(scratch: Sequence[Run], others: Sequence[Run]) -> dict[str, Any]:
    twins = [
        replace(run, record=replace(run.record, method="twin", seed=partner.record.seed))
        for run, partner in zip(others, scratch, strict=True)
    ]
    runs = [*scratch, *twins]
    comparison, default = compare(runs, _worst(runs)), _row(compare(runs), "twin")
    found, outcomes = _row(comparison, "twin"), comparison.outcomes
    low, high = found["flops_saving_reuse_low"], found["flops_saving_reuse_high"]
    by_seed = outcomes.loc[outcomes["method"] == "twin", "flops_saving_reuse"].to_numpy()
    percentile_low, percentile_high = percentile_interval(by_seed)
    return {
        "target_loss": comparison.target,
        "saving": found["flops_saving_reuse"],
        "low": low,
        "high": high,
        "inside": low <= 0 <= high,
        "percentile_low": percentile_low,
        "percentile_high": percentile_high,
        "percentile_inside": percentile_low <= 0 <= percentile_high,
        "default_reached": default["reached"],
        "default_saving": default["flops_saving_reuse"],
        "default_low": default["flops_saving_reuse_low"],
    }


def planted_table(experiment: Experiment, folder: Path) -> pd.DataFrame:
    """Methods that start from scratch's own weights after a share of its steps: a row a share, with what each saves.

    Scratch's weights are all there is to take over: the learning rate is constant until the decay at the end, and the
    optimizer, Adam with both betas 0, remembers nothing. A fresh Adam with a memory would be an effect of its own.
    """
    training = replace(experiment.train, schedule="wsd", decay=0.2, betas=(0.0, 0.0))
    rows = []
    for share in SHARES:
        steps, seeds = round(share * training.steps), range(PLANTED_SEEDS)
        source_training = replace(training.in_steps(), steps=steps, decay=1 / steps)  # decays in no step
        planted = Found("planted", Planted(steps), f"growbench {__version__}")
        place = folder / f"planted-{share:g}"
        _train(replace(experiment, train=training, source_train=source_training), place, [get(SCRATCH), planted], seeds)
        runs = [*_stored(place, SCRATCH, seeds), *_stored(place, "planted", seeds)]
        found = _row(compare(runs, _worst(runs)), "planted")
        row = {"share": steps / training.steps, "seeds": len(seeds), "target_loss": found["target_loss"]}
        for ledger in LEDGERS:
            column = f"flops_saving_{ledger}"
            row |= {f"{ledger}{end}": found[f"{column}{end}"] for end in ("", "_low", "_high")}
        rows.append(row)
        say(f"planted {percent(share, 0)}: saved {percent(row['reuse'])} (reuse), {percent(row['build'])} (build)")
    return pd.DataFrame(rows)


def promises(twins: pd.DataFrame, planted: pd.DataFrame) -> list[Promise]:
    """What must hold, beside what was measured."""
    number, inside, mean = len(twins), int(twins["inside"].sum()), float(twins["saving"].mean())
    error = float(stats.sem(twins.groupby("repetition")["saving"].mean()))
    found = [
        Promise(
            f"the 95 % interval of the twin's saving contains 0 in at least {percent(COVERAGE, 0)} of comparisons",
            f"{inside} of {number} ({percent(inside / number)})",
            inside >= COVERAGE * number,
        ),
        Promise(
            f"the twin's mean saving is within {percent(BIAS, 0)} of 0",
            f"{percent(mean, 2)}, standard error {percent(error, 2)}",
            abs(mean) <= BIAS,
        ),
    ]
    for row in tables.records(planted):
        for ledger, truth in (("reuse", row["share"]), ("build", 0.0)):
            text = f"{percent(row['share'], 0)} planted: {ledger} saves {percent(truth, 0)}, within {100 * NEAR:.0f} points"
            measured = saving(row[ledger], row[f"{ledger}_low"], row[f"{ledger}_high"])
            found.append(Promise(text, f"{measured}, {row['seeds']} seeds", abs(row[ledger] - truth) <= NEAR))
    return found


def summary(experiment: Experiment, record: RunRecord, twins: pd.DataFrame, kept: list[Promise], command: str) -> str:
    """The outcome as Markdown. `record`: of any of the runs."""
    training, hardware, percentile = experiment.train, record.hardware, twins["percentile_inside"]
    met, forth = twins[twins["default_reached"] == TWIN_SEEDS], twins.loc[twins["way"] == "forth", "saving"]
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    lines = [
        f"# {experiment.name} against itself, and planted savings",
        "",
        f"Made by `{command}`. A miniature: {experiment.architecture}, {experiment.target.layers} layers of width "
        f"{experiment.target.width}, {training.steps} steps of batch {training.batch} x {experiment.data.positions} "
        f"from {experiment.data.corpus}, learning rate {training.lr:g} ({training.schedule}, warm-up {training.warmup_steps}). "
        f"In each of {len(forth)} repetitions {TWIN_SEEDS} seeds of scratch against {TWIN_SEEDS} others of its twin, then the "
        "two the other way round; the target is the worst final loss of the runs compared.",
        "",
        "| promise | measured | kept |",
        "|---|---|---|",
        *(f"| {promise.text} | {promise.measured} | {'yes' if promise.kept else '**no**'} |" for promise in kept),
        "",
        f"Not the other way round, the mean saving is {percent(float(forth.mean()), 2)}, standard error "
        f"{percent(float(stats.sem(forth)), 2)}, with the luck of the seeds in it.",
        f"The bare percentile bootstrap contains 0 in {percentile.sum()} of {len(twins)} ({percent(percentile.mean())}).",
        f"With the default target, the mean of scratch's final losses, the twin met it in every seed in {len(met)} of "
        f"{len(twins)}; its interval then lay above 0 in {(met['default_low'] > 0).sum()}.",
        "",
        f"{hardware.name} ({hardware.device}, threads: {hardware.threads}, {hardware.precision}); {versions}",
    ]
    return "\n".join(lines) + "\n"


def _train(experiment: Experiment, folder: Path, methods: Sequence[Found], seeds: Iterable[int]) -> None:
    """Train what is not done yet, without a word. Raises UsageError if a run fails."""
    said = io.StringIO()
    with redirect_stderr(said):
        succeeded = Benchmark(Setting(experiment, folder, Parallel(torch.device("cpu")))).run(methods, seeds)
    if not succeeded:
        raise UsageError(f"a run of the check failed: {next(line for line in said.getvalue().splitlines() if 'failed' in line)}")


def _stored(folder: Path, method: str, seeds: Iterable[int]) -> list[Run]:
    runs = [store.load(folder / store.name(method, seed)) for seed in seeds]
    return [run for run in runs if run is not None]


def _worst(runs: Iterable[Run]) -> float:
    return max(run.final_loss for run in runs)


def _row(comparison: Comparison, method: str) -> dict[str, Any]:
    return next(row for row in tables.records(comparison.savings) if row["method"] == method)
