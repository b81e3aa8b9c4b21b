"""The A/A test: what the harness claims of methods whose saving is known, by the analysis that reports use.

Scratch against scratch of other seeds saves nothing, a planted saving is as large as planted: both are trained, a miniature of an
experiment by the real loop. Simulated runs have the noise of stored ones, and any saving.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from growbench import __version__
from growbench.analysis import columns, tables
from growbench.analysis.comparison import compare
from growbench.analysis.estimator import Estimate, Verdict
from growbench.analysis.savings import Judged
from growbench.config import loading
from growbench.config.schema import Experiment, ImageConfig
from growbench.console import say
from growbench.costs.accounts import Ledger, Unit
from growbench.data import Data, Which
from growbench.errors import UsageError
from growbench.formatting import NONE, percent
from growbench.method import Method, Phase, Phases, Task, constant
from growbench.registry import SCRATCH, Found, get
from growbench.report import sheets
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.runs.jobs import Setting
from growbench.runs.records import RunRecord
from growbench.runs.store import Run
from growbench.tools import simulation
from growbench.tools.claims import ERRORS, Promise, failures, outcome_row, promises, written
from growbench.tools.simulation import NULLS, SEEDS, Noise
from growbench.training.parallel import Parallel

# A run takes one or two seconds. It ends while the loss still falls: on a plateau, the cost to reach a loss is only noise.
SIZES = ("layers=2", "width=32", "heads=2", "ffn=0", "kv_heads=0", "head_dim=0")
TRAINING = ("batch=8", "steps=120", "warmup=12", "lr=5e-4")
TEXT = ("sequence_length=32", "vocabulary=258", 'tokenizer=""', "evaluation_batches=2")
IMAGES = ("evaluation_batches=2",)

POOL = 105  # scratch runs, of which sets are drawn
DRAWS = 500  # of a set of scratch runs and six of nulls, for each number of seeds

SHARES = (0.2, 0.4)  # planted savings, as shares of the budget
PLANTED_SEEDS = 6


class Planted(Method):
    """Start from scratch's own weights after some steps, and train on for as many steps as scratch in all."""

    paper: ClassVar[str] = ""

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.model_from(task.read(task.source)), schedule=constant)


class SharedOrder(Setting):
    """The source reads scratch's batches in scratch's order, so that a planted one is scratch itself after some steps."""

    def load_data(self, which: Which) -> Data:
        return super().load_data("target")


@dataclass(frozen=True)
class Request:
    """What is asked of the test."""

    experiment: str  # the one whose miniature is trained
    overrides: Sequence[str]  # of its settings
    repetitions: int  # of each setting that is simulated
    noise: Path  # a folder of experiments: the noise of their scratch runs is simulated
    folder: Path  # for tables and a summary, in a folder of the experiment's own
    command: str  # that makes them


def report(request: Request) -> int:
    """Test the analysis; 0 if every promise is kept. Stored runs are not trained again. Raises UsageError if a run fails."""
    torch.set_num_threads(1)  # more are slower at this size
    experiment, noises = miniature(request.experiment, request.overrides), simulation.noises(request.noise)
    folder = request.folder / experiment.name
    retrained, planted = null_table(experiment, folder / "runs"), planted_table(experiment, folder / "runs")
    outcomes = pd.concat([retrained, simulation.simulate(noises, request.repetitions)], ignore_index=True)
    sheets.write(outcomes, folder / "outcomes.csv", float_format="%.5f")
    sheets.write(planted, folder / "planted.csv", float_format="%.5f")
    kept = promises(outcomes, planted)
    record = _stored(folder / "runs" / "aa", SCRATCH, [0])[0].record
    lines = [*_trained(experiment, record), *_simulated(noises, request), *_promised(kept, failures(outcomes))]
    made = f"Made by `{request.command}`; all figures are in `outcomes.csv` and `planted.csv`."
    text = "\n".join([f"# {experiment.name}: methods whose saving is known", "", made, "", *lines]) + "\n"
    (folder / "summary.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if all(promise.kept for promise in kept) else 1


def miniature(name: str, overrides: Iterable[str]) -> Experiment:
    """The experiment with the settings above and a source as large as its target. `overrides` are applied last."""
    data = IMAGES if isinstance(loading.load(name).data, ImageConfig) else TEXT
    trained = [] if loading.load(name).pretrained else ["source"]
    small = [f"{which}.{key}" for which in ("source", "target") for key in SIZES]
    small += [f"{which}.{key}" for which in (*trained, "train") for key in TRAINING] + [f"data.{key}" for key in data]
    small.append("machine.precision=float32")
    experiment = loading.load(name, [*small, *overrides])
    return replace(experiment, source=experiment.target, source_train=experiment.train, pretrained=None)


def null_table(experiment: Experiment, folder: Path) -> pd.DataFrame:
    """Scratch under other names, of other seeds, against scratch: a row for each number of seeds.

    Each comparison draws, from one pool of runs, a set of scratch runs and six sets of nulls without a run in common. Sets of
    different comparisons overlap.
    """
    pool = range(POOL)
    _train(experiment, folder / "aa", [get(SCRATCH)], pool)
    runs, rng = _stored(folder / "aa", SCRATCH, pool), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for seeds in SEEDS:
        each = (NULLS + 1) * seeds
        draws = [rng.permutation(POOL)[:each].reshape(NULLS + 1, seeds) for _ in range(DRAWS)]
        found = [_nulls([[runs[place] for place in drawn] for drawn in draw]) for draw in draws]
        head = {"kind": "retrained", "experiment": experiment.name, "protocol": "single", "case": "retrained", "seeds": seeds}
        rows.append(head | outcome_row(0.0, found))
        say(f"A/A with {seeds} seeds: {percent(rows[-1]['family'])} of families of nulls have a claim")
    return pd.DataFrame(rows)


def _nulls(sets: Sequence[Sequence[Run]]) -> list[Judged]:
    """What is found of runs under the names of methods, against the first set as scratch."""
    named = [
        replace(run, record=replace(run.record, method=SCRATCH if not place else f"null-{place}", seed=seed))
        for place, runs in enumerate(sets)
        for seed, run in enumerate(runs)
    ]
    return [_judged(row) for row in tables.records(compare(named).verdicts) if row["method"] != SCRATCH]


def _judged(row: dict[str, Any], ledger: Ledger = Ledger.REUSE) -> Judged:
    """What a report's table says of a method's FLOPs."""
    found = Estimate(
        saving=columns.saving_in(row, Unit.FLOPS, ledger),
        p=row[columns.p_value(ledger)],
        tested_at=row[columns.tested_at(ledger)],
        difference=row[columns.difference(ledger)],
    )
    return Judged(found, row[columns.adjusted_p_value(ledger)], Verdict(row[columns.verdict(ledger)]))


def planted_table(experiment: Experiment, folder: Path) -> pd.DataFrame:
    """What a method saves that starts from scratch's own weights after a share of its steps: a row for each ledger.

    The weights are all that scratch can hand over: after the warm-up the learning rate is constant, and the optimizer is Adam
    with both betas 0, which has no memory. A new Adam with memory, or a rate that decays, would have an effect of its own.
    """
    training = replace(experiment.train, schedule="wsd", decay=1 / experiment.train.steps, betas=(0.0, 0.0))  # decays for no step
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        steps, seeds = round(share * training.steps), range(PLANTED_SEEDS)
        source_training = replace(training.in_steps(), steps=steps, decay=1 / steps)
        planted = Found("planted", Planted(), f"growbench {__version__}")
        place = folder / f"planted-{share:g}"
        _train(replace(experiment, train=training, source_train=source_training), place, [get(SCRATCH), planted], seeds)
        runs = [*_stored(place, SCRATCH, seeds), *_stored(place, "planted", seeds)]
        (row,) = (row for row in tables.records(compare(runs).verdicts) if row["method"] == "planted")
        for ledger, truth in ((Ledger.REUSE, steps / training.steps), (Ledger.BUILD, 0.0)):
            saved = columns.saving_in(row, Unit.FLOPS, ledger)
            rows.append({"share": steps / training.steps, "seeds": len(seeds), "ledger": str(ledger), "planted": truth})
            rows[-1] |= {"relation": saved.relation, "saving": saved.mean, "low": saved.low, "high": saved.high}
            say(f"planted {percent(truth, 0)} ({ledger}): saved {written(saved)}")
    return pd.DataFrame(rows)


def _trained(experiment: Experiment, record: RunRecord) -> list[str]:
    """`record`: of any run; it gives hardware and versions."""
    training, hardware = experiment.train, record.hardware
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items() if package != "commit")
    return [
        f"**Retrained**: a miniature of the experiment, {experiment.architecture} with {experiment.target.layers} layers of "
        f"width {experiment.target.width}, {training.steps} steps of batch {training.batch} x {experiment.data.positions} from "
        f"{experiment.data.corpus}, learning rate {training.lr:g} ({training.schedule}, warm-up {training.warmup_steps}). From "
        f"{POOL} scratch runs, {DRAWS} draws for each number of seeds n: a set of n runs as scratch, and six sets of n as nulls, "
        "methods that save nothing. The sets of different draws overlap, which adds little to their errors: with normal losses, "
        "less than a tenth.",
        "",
        f"{hardware.name} ({hardware.device}, threads: {hardware.threads}, {hardware.precision}); {versions}",
        "",
    ]


def _simulated(noises: Sequence[Noise], request: Request) -> list[str]:
    heads = (
        "experiment",
        "protocol",
        "scratch runs",
        "deviation of final losses",
        "shared by rungs",
        "of evaluations",
        "correlation",
    )
    rows = []
    for noise in noises:
        shared = percent(noise.shared, 0) if noise.protocol == "ladder" else NONE
        numbers = (f"{noise.deviations[-1]:.3f}", shared, f"{noise.evaluation:.3f}", f"{noise.persistence:.2f}")
        rows.append((noise.experiment, noise.protocol, str(noise.runs), *numbers))
    return [
        f"**Simulated**: {request.repetitions:,} comparisons for each setting, half as many of hard cases, with the noise of "
        f"scratch in `{request.noise}`. Standard deviations are in nats.",
        "",
        *_table(heads, rows),
        "",
    ]


def _promised(kept: Sequence[Promise], failed: Sequence[str]) -> list[str]:
    rows = [(promise.text, promise.measured, "yes" if promise.kept else "**no**") for promise in kept]
    not_kept = ["", "Not kept:", "", *(f"- {line}" for line in failed)] if failed else []
    return [
        f"Behind ± stands a standard error. A promise counts as kept where it is missed by no more than {ERRORS} of them.",
        "",
        *_table(("promise", "measured", "kept"), rows),
        *not_kept,
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


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
