"""Tuning: the same number of trials in the same space for every method, on seeds that no report uses.

The runs of the trials lie in `results/<experiment>/tuning/`, beside trials.csv, and tuned.toml for `growbench run --tuned`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import torch
from filelock import FileLock, Timeout
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from growbench.config.schema import Experiment
from growbench.console import say
from growbench.costs.accounts import Ledger, Unit
from growbench.data.shapes import vocabulary_size
from growbench.errors import UsageError
from growbench.formatting import quantity, setting
from growbench.planning.plan import CPU, refuse
from growbench.registry import Found
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.tools.search_space import Trials, Values, best, defaults, digest, fingerprint, space, with_values
from growbench.tools.tuned_values import Tuned, Tuning, _others, _replace, _variant
from growbench.training.parallel import Parallel


def tune(
    experiment: Experiment,
    asked: str,
    methods: Iterable[Found],
    trials: int,
    seeds: Sequence[int],
    folder: Path,
    device: torch.device,
) -> Trials:
    """Give every method as many trials, go on where they were broken off, and write trials.csv and tuned.toml to `folder`.

    Of what another process is at, its trials are waited for. Methods that were tuned alike before stay in these files.
    `asked`: the experiment as the command line named it. Raises UsageError before any training where a method refuses it, and
    where trials cannot be stored or have no small model to start from: the same command goes on with these.
    """
    methods = list(methods)
    vocabulary = vocabulary_size(experiment.data)
    for found in methods:
        _check(experiment, found, vocabulary)
    tuning = Tuning(asked, fingerprint(experiment), tuple(seeds), trials)
    storage = _storage(folder)
    benchmark = Benchmark(experiment, folder, Parallel(device))
    done: dict[str, Sequence[FrozenTrial]] = {}
    for waiting in (False, True):  # first what no other process is at, then what one was at
        for found in [found for found in methods if found.name not in done]:
            if waiting:
                say(f"{found.name:<18} is another process's work: waiting for it")
            with contextlib.suppress(Timeout), _lock(folder, found.name).acquire(blocking=waiting):
                done[found.name] = _search(_study(storage, experiment, found, tuning), tuning, benchmark, found, vocabulary)
    done = {found.name: done[found.name] for found in methods}
    _store(folder, tuning, {found.name: _variant(found) for found in methods}, done)
    return done


def _check(experiment: Experiment, found: Found, vocabulary: int) -> None:
    """Raises UsageError if the method refuses the experiment, or its own values."""
    refuse(experiment.at(1.0, found.training), found, vocabulary, CPU)


def _lock(folder: Path, name: str) -> FileLock:
    return FileLock(folder / ".locks" / f"{name}.lock")


def _storage(folder: Path) -> JournalStorage:
    """Where the searches are kept, trial by trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder.absolute() / "studies.jsonl"  # its lock is a link to it, from beside it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise UsageError(f"cannot write results to {folder}: {error.strerror}; choose another folder with --results") from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}; remove it to tune anew") from error


def _study(storage: JournalStorage, experiment: Experiment, found: Found, tuning: Tuning) -> Study:
    """The search for one method's values: the one that was begun, if nothing has changed that decides its outcome."""
    ranges = {key: (each.low, each.high) for key, each in space(experiment, found).items()}
    settings = dataclasses.asdict(found.method)  # type: ignore[call-overload]
    decisive = digest([tuning.fingerprint, tuning.seeds, found.origin, settings, ranges])
    study = optuna.create_study(storage=storage, study_name=f"{found.name} {decisive}", load_if_exists=True)
    if not study.trials:
        study.enqueue_trial(defaults(experiment, found))
    return study


def _ended(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials if trial.state.is_finished()]


def _search(study: Study, tuning: Tuning, benchmark: Benchmark, found: Found, vocabulary: int) -> list[FrozenTrial]:
    """A method's trials, those that are missing tried now. No other process may be at the same."""
    while (number := len(_ended(study))) < tuning.trials:
        _try_next(study, number, tuning, benchmark, found, vocabulary)
    return _ended(study)[: tuning.trials]


def _try_next(study: Study, number: int, tuning: Tuning, benchmark: Benchmark, found: Found, vocabulary: int) -> None:
    """Train the next trial's values, or those of the trial that was broken off, on every seed; keep its mean final loss.

    Values that the method refuses, or fails with, are a failed trial. Raises UsageError for what is not their fault.
    """
    study.sampler = TPESampler(seed=number)  # the same at every method's n-th trial, and after an interruption
    broken_off = study.get_trials(states=[TrialState.RUNNING])
    trial = Trial(study, broken_off[0]._trial_id) if broken_off else study.ask()
    values = {key: each.suggest(trial, key) for key, each in space(benchmark.experiment, found).items()}
    name = f"{found.name}-trial{number}"
    say(f"{name:<18} (from 0 to {tuning.trials - 1}): {_text(values)}")
    try:
        tried = with_values(found, values)
        _check(benchmark.experiment, tried, vocabulary)
    except UsageError as refusal:
        say(f"{name:<18} refused: {refusal}")
        _fail(study, trial, str(refusal), flops=0)
        return
    succeeded = benchmark.run([replace(tried, name=name)], tuning.seeds)
    runs = [run for seed in tuning.seeds if (run := store.load(benchmark.folder / store.name(name, seed)))]
    errors = [run.record.error.message for run in runs if run.record.error]
    flops = sum(run.cost(Unit.FLOPS, Ledger.REUSE) for run in runs)
    if succeeded:
        trial.set_user_attr("flops", flops)
        study.tell(trial, statistics.fmean(run.final_loss for run in runs))
    elif errors:
        _fail(study, trial, errors[0], flops)
    else:
        raise UsageError(f"{name} needs the small model, whose training failed: the same command tries again")


def _fail(study: Study, trial: Trial, error: str, flops: float) -> None:
    trial.set_user_attr("flops", flops)
    trial.set_user_attr("error", error)
    study.tell(trial, state=TrialState.FAIL)


def table(done: Trials, seeds: Sequence[int]) -> pd.DataFrame:
    """One row a trial, its values under the names that --set knows; FLOPs over all seeds, without the small model's."""
    rows = [
        {
            "method": method,
            "trial": number,
            "seeds": " ".join(map(str, seeds)),
            "status": "failed" if trial.value is None else "finished",
            "loss": trial.value,
            "flops": trial.user_attrs["flops"],
            **{key if key.startswith("train.") else f"{method}.{key}": value for key, value in trial.params.items()},
            "error": trial.user_attrs.get("error"),
        }
        for method, trials in done.items()
        for number, trial in enumerate(trials)
    ]
    return pd.DataFrame(rows, dtype=object)  # so that whole numbers stay so beside blanks


def summary(done: Trials) -> str:
    """What tuning brought each method, as text."""
    lines = [f"{'method':<18} {'default loss':>12} {'best loss':>10} {'failed':>7}   chosen"]
    for method, trials in done.items():
        chosen, failed = best(trials), sum(trial.value is None for trial in trials)
        losses = ["failed" if trial is None or trial.value is None else f"{trial.value:.4f}" for trial in (trials[0], chosen)]
        values = "its defaults" if chosen is trials[0] else _text(chosen.params) if chosen else "nothing"
        lines.append(f"{method:<18} {losses[0]:>12} {losses[1]:>10} {failed:>7}   {values}")
    spent = sum(trial.user_attrs["flops"] for trials in done.values() for trial in trials)
    return "\n".join([*lines, f"{quantity(spent, 'FLOP')} in all, without the small model's training"])


def _text(values: Values) -> str:
    return ", ".join(f"{key} {setting(value)}" for key, value in values.items())


def _store(folder: Path, tuning: Tuning, variants: Mapping[str, Sequence[str]], done: Trials) -> None:
    """Write trials.csv and tuned.toml, each in full or not at all: these methods, and those that were tuned alike before."""
    trials, tuned = folder / "trials.csv", folder / "tuned.toml"
    rows = {name: chosen.params for name, each in done.items() if (chosen := best(each))}
    with _lock(folder, tuned.name):  # what another process adds meanwhile is kept
        others = _others(tuned, tuning, done)
        frame = table(done, tuning.seeds)
        if others.variants and trials.is_file():
            before = pd.read_csv(trials, dtype=str, keep_default_na=False)
            frame = pd.concat([frame, before[before["method"].isin(others.variants)]])
        frame = frame[[column for column in frame if column != "error"] + ["error"]]
        _replace(trials, frame.to_csv(index=False))
        _replace(tuned, Tuned(tuning, {**variants, **others.variants}, {**rows, **others.rows}).toml())
