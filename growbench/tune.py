"""Tuning: the same number of trials in the same space for every method, on seeds that no report uses.

The runs of the trials lie in `results/<experiment>/tuning/`, beside trials.csv, and tuned.toml for `growbench run --tuned`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import statistics
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from filelock import FileLock, Timeout
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from growbench import architectures, data, results
from growbench.benchmark import Benchmark
from growbench.config import Experiment, UsageError, did_you_mean, parse
from growbench.parallel import Parallel
from growbench.plan import Unplannable, plan, vocabulary_size
from growbench.progress import human, say
from growbench.registry import Found

LR = (0.3, 3.0)  # times the experiment's
WARMUP = 0.2  # of the budget, at most

Values = Mapping[str, Any]  # of a trial: train.lr, train.warmup in steps, and the method's own hyperparameters
Trials = Mapping[str, Sequence[FrozenTrial]]  # by method


@dataclass(frozen=True)
class Range:
    """Where a value is looked for, ends included: by ratio if it spans a factor of ten; whole numbers if both ends are."""

    low: float
    high: float

    @property
    def log(self) -> bool:
        return self.low > 0 and round(self.high / self.low, 6) >= 10

    def holding(self, value: float) -> Range:
        """The range, wide enough for a value, and of its type."""
        kind = type(value)
        return Range(kind(min(self.low, value)), kind(max(self.high, value)))

    def suggest(self, trial: Trial, name: str) -> float:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


def defaults(experiment: Experiment, found: Found) -> dict[str, Any]:
    """The first trial of a method: what it runs with untuned."""
    own = {name: getattr(found.method, name) for name in _tunable(found)}
    return {"train.lr": experiment.train.lr, "train.warmup": experiment.train.warmup, **own}


def space(experiment: Experiment, found: Found) -> dict[str, Range]:
    """What is searched: the same learning rates and warm-ups for every method, and what it declares `tunable` of its own."""
    train = experiment.train
    shared = {"train.lr": Range(LR[0] * train.lr, LR[1] * train.lr), "train.warmup": Range(0, round(WARMUP * train.steps))}
    ranges = shared | _tunable(found)
    return {key: ranges[key].holding(default) for key, default in defaults(experiment, found).items()}


def _tunable(found: Found) -> dict[str, Range]:
    fields = dataclasses.fields(found.method)  # type: ignore[arg-type]
    return {each.name: Range(*each.metadata["range"]) for each in fields if "range" in each.metadata}


def with_values(found: Found, values: Values) -> Found:
    """The method with other values of its hyperparameters, and of training."""
    training = {key.removeprefix("train."): value for key, value in values.items() if key.startswith("train.")}
    own = {key: value for key, value in values.items() if not key.startswith("train.")}
    try:
        return replace(found, method=replace(found.method, **own), training=training)
    except UsageError as error:
        raise UsageError(f"{found.name}: {error}") from None


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
    with contextlib.suppress(Unplannable):
        plan(experiment.at(1.0, found.training), found, vocabulary)


def _lock(folder: Path, name: str) -> FileLock:
    return FileLock(folder / ".locks" / f"{name}.lock")


def best(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The trial of the lowest loss; None if all failed."""
    return min(
        (trial for trial in trials if trial.value is not None), key=lambda trial: (trial.value, trial.number), default=None
    )


def fingerprint(experiment: Experiment) -> str:
    """Of all that the runs of an experiment share, its data included."""
    architecture = architectures.of(experiment)
    corpus = data.load(experiment.data, architecture.objective, architecture.tokenizer, experiment.train.batch)
    return _digest(experiment.identity() | {"fingerprint": corpus.fingerprint})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


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
    decisive = _digest([tuning.fingerprint, tuning.seeds, found.origin, settings, ranges])
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
    runs = [run for seed in tuning.seeds if (run := results.load(benchmark.folder / results.name(name, seed)))]
    errors = [run.record["error"]["message"] for run in runs if run.record["error"]]
    flops = sum(run.cost("flops", "reuse") for run in runs)
    if succeeded:
        trial.set_user_attr("flops", flops)
        study.tell(trial, statistics.fmean(run.record["final_val_loss"] for run in runs))
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
    return "\n".join([*lines, f"{human(spent, 'FLOP')} in all, without the small model's training"])


def _text(values: Values) -> str:
    return ", ".join(f"{key} {f'{value:.3g}' if isinstance(value, float) else value}" for key, value in values.items())


# The file of tuned values


@dataclass(frozen=True)
class Tuning:
    """What values were tuned on."""

    experiment: str  # as the command line named it
    fingerprint: str
    seeds: tuple[int, ...]
    trials: int  # of each method


@dataclass(frozen=True)
class Tuned:
    """What tuned.toml holds."""

    tuning: Tuning
    variants: Mapping[str, Sequence[str]]  # by method: what decided its tuning beside the experiment
    rows: Mapping[str, Values]  # by method: the values of its best trial, if one finished

    def toml(self) -> str:
        """As text: a table on the tuning, one on the variants, and one a method."""
        keys = {name: name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _json(name) for name in self.variants}
        sections: dict[str, Mapping[str, Any]] = {
            "tuned": dataclasses.asdict(self.tuning),
            "variants": {key: self.variants[name] for name, key in keys.items()},
            **{f"methods.{key}": self.rows[name] for name, key in keys.items() if name in self.rows},
        }
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {_json(value)}\n" for key, value in section.items())
            for name, section in sections.items()
        )


def _json(value: Any) -> str:
    """A value as TOML writes it too."""
    return json.dumps(value, ensure_ascii=False)


def _variant(found: Found) -> list[str]:
    """What decides a method's tuning beside the experiment: its code, what is not tuned of it, and the ranges of the rest."""
    ranges = _tunable(found)  # as declared: a default set by hand may widen them, and is no variant
    settings = dataclasses.asdict(found.method)  # type: ignore[call-overload]
    fixed = [f"{key} = {_json(value)}" for key, value in settings.items() if key not in ranges]
    return [found.origin, *fixed, *(f"{key} from {each.low} to {each.high}" for key, each in ranges.items())]


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


def _others(path: Path, tuning: Tuning, done: Trials) -> Tuned:
    """What tuned.toml holds of other methods, if these were tuned alike."""
    none = Tuned(tuning, {}, {})
    try:
        before = _read(path)
    except UsageError:  # not there, or not to be read by this version
        return none
    others = [name for name in before.variants if name not in done]
    if replace(before.tuning, experiment=tuning.experiment) != tuning:
        if others:
            say(f"{', '.join(others)}: tuned on other trials or seeds, or another experiment, so no longer in {path}")
        return none
    return Tuned(
        tuning,
        {name: before.variants[name] for name in others},
        {name: before.rows[name] for name in others if name in before.rows},
    )


def _replace(path: Path, text: str) -> None:
    """Write a file in full or not at all."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _read(path: Path) -> Tuned:
    """Raises UsageError if it is no file of tuned values."""
    try:
        file = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot be read: {error}") from error
    tuning, variants, rows = (file.pop(key, {}) for key in ("tuned", "variants", "methods"))
    tables = _all_are(dict, tuning, variants, rows) and _all_are(dict, *rows.values())
    if file or not (tables and _all_are(list, *variants.values()) and rows.keys() <= variants.keys()):
        raise UsageError("must hold tables [tuned], [variants] and [methods.NAME], as growbench tune writes them: tune again")
    return Tuned(parse(Tuning, tuning, "tuned"), variants, {name: _flat(row) for name, row in rows.items()})


def _all_are(kind: type, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Values by key, as train.lr."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        values |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return values


def apply(
    path: Path, experiment: Experiment, methods: Iterable[Found], seeds: Iterable[int], by_hand: Collection[str]
) -> list[Found]:
    """The methods with the values in a file of tuned ones, but for the keys `by_hand`, as ligo.operator_lr.

    Raises UsageError if it was tuned on one of these seeds or another experiment, or lacks a method as it is set now.
    """
    try:
        return _apply(_read(path), experiment, methods, seeds, by_hand)
    except UsageError as error:
        raise UsageError(f"--tuned {path}: {error}") from None


def _apply(
    tuned: Tuned, experiment: Experiment, methods: Iterable[Found], seeds: Iterable[int], by_hand: Collection[str]
) -> list[Found]:
    if tuned.tuning.fingerprint != fingerprint(experiment):
        raise UsageError(f"tuned on another experiment ({tuned.tuning.experiment}): name it, and give its --set")
    if both := sorted({*tuned.tuning.seeds} & {*seeds}):
        raise UsageError(f"tuned on seed {both[0]}: --seeds must name others than {', '.join(map(str, tuned.tuning.seeds))}")
    applied = []
    for found in methods:
        if found.name not in tuned.rows:
            raise UsageError(f"{found.name} was not tuned: --methods may name {', '.join(tuned.rows) or 'none'}")
        _refuse_other_variant(found, tuned.variants[found.name])
        values = _checked(tuned.rows[found.name], experiment, found)
        applied.append(with_values(found, {key: value for key, value in values.items() if f"{found.name}.{key}" not in by_hand}))
    return applied


def _refuse_other_variant(found: Found, tuned: Sequence[str]) -> None:
    asked = _variant(found)
    then, now = (
        ", ".join(str(each) for each in these if each not in those) or "nothing of that"
        for these, those in ((tuned, asked), (asked, tuned))
    )
    if then != now:
        raise UsageError(f"{found.name} was tuned with {then}, and now has {now}: give what it was tuned with, or tune it again")


def _checked(values: Values, experiment: Experiment, found: Found) -> Values:
    """A method's tuned values, no more and no less than its space has."""
    known = defaults(experiment, found)
    for key in values:
        if key not in known:
            raise UsageError(f"unknown key {found.name}.{key}: {did_you_mean(key, known)}")
    for key, default in known.items():
        if key not in values:
            raise UsageError(f"{found.name}.{key} is missing")
        if type(values[key]) not in (int, type(default)):
            raise UsageError(f"{found.name}.{key} = {values[key]!r}: must be a {'whole ' * isinstance(default, int)}number")
    try:
        replace(experiment.train, lr=values["train.lr"], warmup=values["train.warmup"])
    except UsageError as error:
        raise UsageError(f"{found.name}.train.{error}") from None
    return values
