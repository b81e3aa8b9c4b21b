"""The A/A test: the harness must find no saving where there is none, and must measure a planted saving correctly.

It trains a miniature of an experiment by the real loop and evaluates it by the analysis that reports use.
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
from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison, compare
from growbench.analysis.estimator import Verdict
from growbench.config import loading
from growbench.config.schema import Experiment, ImageConfig
from growbench.console import say
from growbench.costs.accounts import Ledger, Unit
from growbench.data import Data, Which
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

# A run takes one or two seconds. It ends while the loss still falls: on a plateau, the cost to reach a loss is only noise.
SIZES = ("layers=2", "width=32", "heads=2", "ffn=0", "kv_heads=0")
TRAINING = ("batch=8", "steps=120", "warmup=12", "lr=5e-4")
TEXT = ("sequence_length=32", "vocabulary=258", 'tokenizer=""', "evaluation_batches=2")
IMAGES = ("evaluation_batches=2",)

TWIN_SEEDS = 3  # of scratch, and as many others of its twin
COVERAGE = 0.9  # promised share of intervals that contain 0
BIAS = 0.02  # promised bound of the mean saving

SHARES = (0.2, 0.4)  # planted savings, as shares of the budget
PLANTED_SEEDS = 6
NEAR = 0.03  # promised bound of the error of a planted saving


class Planted(Method):
    """Start from scratch's own weights after a number of steps, and follow the rest of its schedule."""

    paper: ClassVar[str] = ""
    steps: int  # that scratch was trained for

    def phases(self, task: Task) -> Phases:
        def later(step: int, steps: int) -> float:
            return task.schedule(self.steps + step, self.steps + steps)

        yield Phase(model=task.model_from(task.read(task.source)), steps=task.budget - self.steps, schedule=later)


class SharedOrder(Setting):
    """The source reads scratch's batches in scratch's order, so that a planted one is scratch itself after some steps."""

    def load_data(self, which: Which) -> Data:
        return super().load_data("target")


class Promise(NamedTuple):
    """What the harness promises, what was measured, and whether the promise is kept."""

    text: str
    measured: str
    kept: bool


def report(name: str, overrides: Sequence[str], repetitions: int, folder: Path, command: str) -> int:
    """Test the experiment `name`, and write tables and a summary to its own folder below `folder`. 0 if every promise is kept.

    Stored runs are not trained again. Raises UsageError if a run fails.
    """
    torch.set_num_threads(1)  # more are slower at this size
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
    """The experiment with the settings above and a source as large as its target. `overrides` are applied last."""
    data = IMAGES if isinstance(loading.load(name).data, ImageConfig) else TEXT
    trained = [] if loading.load(name).pretrained else ["source"]
    small = [f"{which}.{key}" for which in (*trained, "target") for key in SIZES]
    small += [f"{which}.{key}" for which in (*trained, "train") for key in TRAINING] + [f"data.{key}" for key in data]
    experiment = loading.load(name, [*small, *overrides])
    return replace(experiment, source=experiment.target, source_train=experiment.train, pretrained=None)


def twin_table(experiment: Experiment, folder: Path, repetitions: int) -> pd.DataFrame:
    """What scratch saves against itself, as a `twin` with other seeds: two rows for each repetition.

    In the row `forth` one half of the seeds is scratch and the other half its twin; in `back` they are exchanged. Chance
    differences between the halves, which are larger than any bias of the harness, cancel in the mean of the two. A saving may be
    a bound, and an end of its interval infinite.
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
        say(
            f"A/A {repetition}: saved "
            + ", ".join(saving(row["saving"], row["low"], row["high"], row["relation"]) for row in rows[-2:])
        )
    return pd.DataFrame(rows)


def _twin_row(scratch: Sequence[Run], others: Sequence[Run]) -> dict[str, Any]:
    twins = [
        replace(run, record=replace(run.record, method="twin", seed=partner.record.seed))
        for run, partner in zip(others, scratch, strict=True)
    ]
    found = _row(compare([*scratch, *twins]), "twin")
    saved = columns.saving_in(found, Unit.FLOPS, Ledger.REUSE)
    return {
        "target_loss": found["target_loss"],
        "saving": saved.mean,
        "relation": str(saved.relation),
        "low": saved.low,
        "high": saved.high,
        "inside": saved.low <= 0 <= saved.high,
        "verdict": found[columns.verdict(Ledger.REUSE)],
    }


def planted_table(experiment: Experiment, folder: Path) -> pd.DataFrame:
    """What a method saves that starts from scratch's own weights after a share of its steps: a row for each share.

    The weights are all that scratch can hand over: the learning rate is constant until the decay at the end, and the optimizer
    is Adam with both betas 0, which has no memory. A new Adam with memory would have an effect of its own.
    """
    training = replace(experiment.train, schedule="wsd", decay=0.2, betas=(0.0, 0.0))
    rows = []
    for share in SHARES:
        steps, seeds = round(share * training.steps), range(PLANTED_SEEDS)
        source_training = replace(training.in_steps(), steps=steps, decay=1 / steps)  # so short that no step has a lower rate
        planted = Found("planted", Planted(steps), f"growbench {__version__}")
        place = folder / f"planted-{share:g}"
        _train(replace(experiment, train=training, source_train=source_training), place, [get(SCRATCH), planted], seeds)
        runs = [*_stored(place, SCRATCH, seeds), *_stored(place, "planted", seeds)]
        found = _row(compare(runs), "planted")
        row = {"share": steps / training.steps, "seeds": len(seeds), "target_loss": found["target_loss"]}
        for ledger in Ledger:
            saved = columns.saving_in(found, Unit.FLOPS, ledger)
            row |= {ledger: saved.mean, f"{ledger}_low": saved.low, f"{ledger}_high": saved.high}
        rows.append(row)
        say(f"planted {percent(share, 0)}: saved {percent(row['reuse'])} (reuse), {percent(row['build'])} (build)")
    return pd.DataFrame(rows)


def promises(twins: pd.DataFrame, planted: pd.DataFrame) -> list[Promise]:
    """Every promise with what was measured."""
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
    """The outcome as Markdown. `record`: of any run; it gives hardware and versions."""
    training, hardware, forth = experiment.train, record.hardware, twins.loc[twins["way"] == "forth", "saving"]
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    lines = [
        f"# {experiment.name}: scratch against itself, and planted savings",
        "",
        f"Made by `{command}`. A miniature of the experiment: {experiment.architecture}, {experiment.target.layers} layers of "
        f"width {experiment.target.width}, {training.steps} steps of batch {training.batch} x {experiment.data.positions} from "
        f"{experiment.data.corpus}, learning rate {training.lr:g} ({training.schedule}, warm-up {training.warmup_steps}). Each "
        f"of {len(forth)} repetitions compares {TWIN_SEEDS} seeds of scratch with {TWIN_SEEDS} other seeds of scratch, named its "
        "twin, and then exchanges the two.",
        "",
        "| promise | measured | kept |",
        "|---|---|---|",
        *(f"| {promise.text} | {promise.measured} | {'yes' if promise.kept else '**no**'} |" for promise in kept),
        "",
        f"Without the exchange, the mean saving is {percent(float(forth.mean()), 2)}, standard error "
        f"{percent(float(stats.sem(forth)), 2)}: chance differences between the seeds do not cancel.",
        f"The twin is claimed to save in {(twins['verdict'] == Verdict.SAVES).sum()} of {len(twins)} comparisons.",
        "",
        f"{hardware.name} ({hardware.device}, threads: {hardware.threads}, {hardware.precision}); {versions}",
    ]
    return "\n".join(lines) + "\n"


def _train(experiment: Experiment, folder: Path, methods: Sequence[Found], seeds: Iterable[int]) -> None:
    """Train the runs that are not stored yet, without output. Raises UsageError if one fails."""
    said = io.StringIO()
    with redirect_stderr(said):
        succeeded = Benchmark(SharedOrder(experiment, folder, Parallel(torch.device("cpu")))).run(methods, seeds)
    if not succeeded:
        raise UsageError(f"a run of the check failed: {next(line for line in said.getvalue().splitlines() if 'failed' in line)}")


def _stored(folder: Path, method: str, seeds: Iterable[int]) -> list[Run]:
    runs = [store.load(folder / store.name(method, seed)) for seed in seeds]
    return [run for run in runs if run is not None]


def _row(comparison: Comparison, method: str) -> dict[str, Any]:
    return next(row for row in tables.records(comparison.savings) if row["method"] == method)
