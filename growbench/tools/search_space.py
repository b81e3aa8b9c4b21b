"""The search space of tuning: learning rate and warm-up, the same for every method, and what a method declares tunable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, Trial

from growbench import architectures, data
from growbench.config.schema import Experiment
from growbench.errors import UsageError
from growbench.registry import Found

LR = (0.3, 3.0)  # lowest and highest, as multiples of the experiment's learning rate
WARMUP = 0.2  # longest, as a share of the budget
Values = Mapping[str, Any]  # of a trial: train.lr, train.warmup (steps), and the method's own hyperparameters
Trials = Mapping[str, Sequence[FrozenTrial]]  # by method


@dataclass(frozen=True)
class Range:
    """The range that a value is searched in, both ends included; integers if both ends are integers."""

    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether values are drawn uniformly in their logarithm: for a range of a factor of ten or more."""
        return self.low > 0 and round(self.high / self.low, 6) >= 10

    def holding(self, value: float) -> Range:
        """The range, widened to hold a value, and of its type."""
        kind = type(value)
        return Range(kind(min(self.low, value)), kind(max(self.high, value)))

    def suggest(self, trial: Trial, name: str) -> float:
        """The value of a trial: an int or a float, as the ends are."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


def defaults(experiment: Experiment, found: Found) -> dict[str, Any]:
    """The values of a method's first trial: those it has without tuning."""
    own = {name: getattr(found.method, name) for name in tunable_ranges(found)}
    train = experiment.at(1.0, found.training).train
    return {"train.lr": train.lr, "train.warmup": train.warmup_steps, **own}


def space(experiment: Experiment, found: Found) -> dict[str, Range]:
    """The range of each value: learning rate and warm-up, the same for every method, and its own `tunable` hyperparameters."""
    train = experiment.train
    shared = {"train.lr": Range(LR[0] * train.lr, LR[1] * train.lr), "train.warmup": Range(0, round(WARMUP * train.steps))}
    ranges = shared | tunable_ranges(found)
    return {key: ranges[key].holding(default) for key, default in defaults(experiment, found).items()}


def tunable_ranges(found: Found) -> dict[str, Range]:
    """The ranges of a method's `tunable` hyperparameters, as it declares them."""
    fields = dataclasses.fields(found.method)  # type: ignore[arg-type]
    return {each.name: Range(*each.metadata["range"]) for each in fields if "range" in each.metadata}


def with_values(found: Found, values: Values) -> Found:
    """The method with other values of its hyperparameters and of training. Raises UsageError if the method refuses them."""
    training = {key.removeprefix("train."): value for key, value in values.items() if key.startswith("train.")}
    own = {key: value for key, value in values.items() if not key.startswith("train.")}
    try:
        return replace(found, method=replace(found.method, **own), training={**found.training, **training})
    except UsageError as error:
        raise UsageError(f"{found.name}: {error}") from None


def best(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The trial with the lowest loss, of several the first; None if all failed."""
    return min(
        (trial for trial in trials if trial.value is not None), key=lambda trial: (trial.value, trial.number), default=None
    )


def fingerprint(experiment: Experiment) -> str:
    """A digest of all that the runs of an experiment share, its data included."""
    architecture = architectures.of(experiment)
    corpus = data.load(experiment.data, architecture.objective, architecture.tokenizer, experiment.train.batch)
    return digest(experiment.identity() | {"fingerprint": corpus.fingerprint})


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
