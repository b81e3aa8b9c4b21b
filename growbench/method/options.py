"""The options that all growth methods have in common, and the hyperparameters that identify a method's runs."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

Number = TypeVar("Number", int, float)
State = Literal["new", "kept", "grown"]

# marks the hyperparameters of every method; at its default one is left out of a run's identity, so that older runs still count
COMMON = {"common": True}
COMMON_NAMES = ("state", "rewarm_steps", "rewarm_peak")


def tunable(default: Number, low: Number, high: Number, /) -> Number:
    """A hyperparameter that `growbench tune` searches from `low` to `high`, on a log scale if `high / low` is ten or more.

    If `default` is an integer, only integers are tried.
    """
    if not low <= default <= high:
        raise ValueError(f"tunable({default}, {low}, {high}): must be a default, and a range that holds it")
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def settings(method: Any) -> dict[str, Any]:
    """The hyperparameters that decide a method's runs, as plain values: of those of every method, what is not at its default."""
    values = dataclasses.asdict(method)
    fields = {each.name: each for each in dataclasses.fields(method)}
    return {key: value for key, value in values.items() if not is_common(fields[key]) or value != fields[key].default}


def is_common(field: dataclasses.Field[Any]) -> bool:
    """Whether a hyperparameter is one of those that every method has."""
    return "common" in field.metadata
