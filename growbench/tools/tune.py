"""Tuning: every method gets the same number of trials in the same search space, on seeds that no report uses.

The runs of the trials are stored in `results/<experiment>/tuning/`, beside trials.csv and tuned.toml.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

from growbench import registry
from growbench.config.schema import Experiment
from growbench.console import say
from growbench.costs.accounts import Ledger, Unit
from growbench.data.shapes import vocabulary_size
from growbench.errors import UsageError
from growbench.files import write_text
from growbench.formatting import quantity, setting
from growbench.method.options import settings
from growbench.planning import plan
from growbench.registry import Found
from growbench.report import sheets
from growbench.runs import store
from growbench.runs.apart import Died, apart
from growbench.runs.benchmark import Benchmark
from growbench.runs.jobs import Setting, settled
from growbench.tools import stages
from growbench.tools.search_space import Trials, Values, best, defaults, digest, fingerprint, space, with_values
from growbench.tools.tuned_values import Tuned, Tuning, read_others, variant
from growbench.training.parallel import Parallel

STUDIES = "studies.jsonl"


@dataclass(frozen=True)
class Request:
    """A request to tune, the same for every method."""

    command: str  # the experiment and its --set options, as on the command line
    seeds: tuple[int, ...]
    trials: int


def tune(experiment: Experiment, specs: Sequence[str], request: Request, folder: Path, device: torch.device) -> Trials:
    """Give every method the same number of trials, and write trials.csv and tuned.toml to `folder`.

    Trials that are stored are not repeated. Methods that another process is tuning are waited for. Methods that were tuned
    earlier, on the same trials, seeds and experiment, stay in the two files. Raises UsageError, before any training, for a
    method that refuses the experiment; and where trials cannot be stored or the small model cannot be trained: then the same
    command resumes.
    """
    experiment = settled(experiment, Parallel(device), folder, folder.parent)
    tuning = Tuning(request.command, fingerprint(experiment), request.seeds, request.trials)
    tuner, named = Tuner(experiment, tuning, folder, device), registry.named(specs, experiment.methods)
    options = {name: registry.options_of(name, spec, experiment.methods) for name, spec in named.items()}
    foreign = {name for name, spec in named.items() if registry.is_foreign(spec, options[name])}
    try:
        checked = {name: apart(tuner.check, spec) if name in foreign else tuner.check(spec) for name, spec in named.items()}
        open_storage(folder)
        benchmark = Benchmark(tuner.setting)
        done: dict[str, Sequence[FrozenTrial]] = {}
        for waiting in (False, True):  # first the methods that no other process is tuning
            for name in [name for name in named if name not in done]:
                if waiting:
                    say(f"{name:<18} is being tuned by another process: waiting for it")
                with contextlib.suppress(Timeout), _lock(folder, name).acquire(blocking=waiting):
                    if name not in foreign:
                        done[name] = tuner.search(named[name], benchmark)
                        continue
                    for seed in request.seeds if checked[name].grows else ():
                        benchmark.sources.of(seed)  # trained here, where no plugin has run
                    done[name] = apart(tuner.search, named[name])
    except Died as error:
        raise UsageError(f"the process of a method that is not growbench's own {error}: the same command resumes") from None
    done = {name: done[name] for name in named}
    _store(folder, tuning, {name: each.variant for name, each in checked.items()}, done)
    return done


@dataclass(frozen=True)
class Checked:
    """What is known of a method before it is tuned."""

    variant: list[str]
    grows: bool  # whether a trial is left to train that needs a source


@dataclass(frozen=True)
class Tuner:
    """Tunes one method after the other, each perhaps in a process of its own."""

    experiment: Experiment
    tuning: Tuning
    folder: Path
    device: torch.device

    @property
    def setting(self) -> Setting:
        return Setting(self.experiment, self.folder, Parallel(self.device))

    def check(self, spec: str) -> Checked:
        """Raises UsageError if the method refuses the experiment or its own hyperparameters."""
        found = self._found(spec)
        _refuse(self.experiment, found, vocabulary_size(self.experiment.data))
        ended = 0
        if (self.folder / STUDIES).exists():
            ended = len(self._search(found, None).ended())
        return Checked(variant(found), found.method.uses_source and ended < self.tuning.trials)

    def search(self, spec: str, benchmark: Benchmark | None = None) -> list[FrozenTrial]:
        """Train the trials of a method that are missing. Returns all of them. Without a benchmark no source is trained."""
        return self._search(self._found(spec), benchmark).run()

    def _found(self, spec: str) -> Found:
        stages.prepare()
        ((name, _),) = registry.named([spec], {}).items()
        return registry.get(spec, registry.options_of(name, spec, self.experiment.methods))

    def _search(self, found: Found, benchmark: Benchmark | None) -> Search:
        study = _study(open_storage(self.folder), self.experiment, found, self.tuning)
        vocabulary = vocabulary_size(self.experiment.data)
        return Search(found, study, self.tuning, benchmark or Benchmark(self.setting, follows=True), vocabulary)


def _refuse(experiment: Experiment, found: Found, vocabulary: int) -> None:
    """Raise UsageError if the method refuses the experiment or its own hyperparameters."""
    plan.refuse(experiment.at(1.0, found.training), found, vocabulary, plan.CPU)


def _lock(folder: Path, name: str) -> FileLock:
    return FileLock(folder / ".locks" / f"{name}.lock")


def open_storage(folder: Path) -> JournalStorage:
    """The file of all searches, written after every trial. Raises UsageError if it cannot be written or read."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder.absolute() / STUDIES  # absolute: optuna's lock is a symbolic link to this path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise UsageError(f"cannot write results to {folder}: {error.strerror}; choose another folder with --results") from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}; remove it to tune anew") from error


def _study(storage: JournalStorage, experiment: Experiment, found: Found, tuning: Tuning) -> Study:
    """The stored search for one method's values, or a new one if anything has changed that decides its outcome."""
    ranges = {key: (each.low, each.high) for key, each in space(experiment, found).items()}
    decisive = digest([tuning.fingerprint, tuning.seeds, found.origin, settings(found.method), ranges])
    study = optuna.create_study(storage=storage, study_name=f"{found.name} {decisive}", load_if_exists=True)
    if not study.trials:
        study.enqueue_trial(defaults(experiment, found))
    return study


@dataclass(frozen=True)
class Search:
    """The search for one method's values. Only one process at a time may run it."""

    found: Found
    study: Study
    tuning: Tuning
    benchmark: Benchmark
    vocabulary: int

    def run(self) -> list[FrozenTrial]:
        """Train the trials that are missing. Returns all of them."""
        while (number := len(self.ended())) < self.tuning.trials:
            self.try_next(number)
        return self.ended()[: self.tuning.trials]

    def ended(self) -> list[FrozenTrial]:
        """The trials that are over."""
        return [trial for trial in self.study.trials if trial.state.is_finished()]

    def try_next(self, number: int) -> None:
        """Train with new values, or with those of an interrupted trial, on every seed. Store the mean final loss.

        Values that the method refuses, or fails with, are a failed trial. Raises UsageError if the values are not the cause.
        """
        trial = self._ask(number)
        experiment = self.benchmark.setting.experiment
        values = {key: each.suggest(trial, key) for key, each in space(experiment, self.found).items()}
        name = f"{self.found.name}-trial{number}"
        say(f"{name:<18} (from 0 to {self.tuning.trials - 1}): {_text(values)}")
        try:
            tried = with_values(self.found, values)
            _refuse(experiment, tried, self.vocabulary)
        except UsageError as refusal:
            say(f"{name:<18} refused: {refusal}")
            self._fail(trial, str(refusal), flops=0)
        else:
            self._train(trial, replace(tried, name=name))

    def _ask(self, number: int) -> Trial:
        self.study.sampler = TPESampler(seed=number)  # all methods draw the same numbers in their n-th trial, also when resumed
        interrupted = self.study.get_trials(states=[TrialState.RUNNING])
        return Trial(self.study, interrupted[0]._trial_id) if interrupted else self.study.ask()

    def _train(self, trial: Trial, tried: Found) -> None:
        seeds, folder = self.tuning.seeds, self.benchmark.setting.folder
        succeeded = self.benchmark.run([tried], seeds)
        runs = [run for seed in seeds if (run := store.load(folder / store.name(tried.name, seed)))]
        errors = [run.record.error.message for run in runs if run.record.error]
        flops = sum(run.cost(Unit.FLOPS, Ledger.REUSE) for run in runs)
        if succeeded:
            trial.set_user_attr("flops", flops)
            self.study.tell(trial, statistics.fmean(run.final_loss for run in runs))
        elif errors:
            self._fail(trial, errors[0], flops)
        else:
            raise UsageError(f"{tried.name} needs the small model, whose training failed: the same command tries again")

    def _fail(self, trial: Trial, error: str, flops: float) -> None:
        trial.set_user_attr("flops", flops)
        trial.set_user_attr("error", error)
        self.study.tell(trial, state=TrialState.FAIL)


def table(done: Trials, seeds: Sequence[int]) -> pd.DataFrame:
    """One row a trial, its values under the keys of --set. FLOPs are the sum over all seeds, without the small model's."""
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
    return pd.DataFrame(rows, dtype=object)  # object: a column of integers with blanks would become floats


def summary(done: Trials) -> str:
    """A text with a line for each method: the loss of its defaults, its best loss, and the values chosen."""
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
    """Write trials.csv and tuned.toml: these methods, and those that are there already with the same tuning."""
    trials, tuned = folder / "trials.csv", folder / "tuned.toml"
    rows = {name: chosen.params for name, each in done.items() if (chosen := best(each))}
    with _lock(folder, tuned.name):  # another process may add its methods at the same time
        others = read_others(tuned, tuning, done)
        frame = table(done, tuning.seeds)
        if others.variants and trials.is_file():
            before = sheets.read(trials)
            frame = pd.concat([frame, before[before["method"].isin(others.variants)]])
        frame = frame[[column for column in frame if column != "error"] + ["error"]]
        write_text(trials, sheets.text(frame))
        write_text(tuned, Tuned(tuning, {**variants, **others.variants}, {**rows, **others.rows}).toml())
