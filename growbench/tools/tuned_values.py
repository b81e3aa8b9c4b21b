"""The file of tuned values: `growbench tune` writes it, and `growbench run --tuned` reads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from growbench.config import plain
from growbench.config.loading import parse
from growbench.config.schema import Experiment
from growbench.console import say
from growbench.errors import UsageError, did_you_mean
from growbench.method.options import settings
from growbench.registry import Found
from growbench.tools.search_space import Trials, Values, defaults, fingerprint, tunable_ranges, with_values


@dataclass(frozen=True)
class Tuning:
    """What all values in the file were tuned on."""

    experiment: str  # the experiment and its --set options, as on the command line
    fingerprint: str
    seeds: tuple[int, ...]
    trials: int  # of each method


@dataclass(frozen=True)
class Tuned:
    """The content of tuned.toml."""

    tuning: Tuning
    variants: Mapping[str, Sequence[str]]  # by method: what identifies the method that was tuned
    rows: Mapping[str, Values]  # by method: the values of its best trial, if one finished

    def toml(self) -> str:
        """As text: the tables [tuned] and [variants], and a table for each method with a subtable for its values of training."""
        methods = {name: _nested(row) for name, row in self.rows.items()}
        return tomli_w.dumps({"tuned": dataclasses.asdict(self.tuning), "variants": dict(self.variants), "methods": methods})


@dataclass(frozen=True)
class Tables:
    """The tables of tuned.toml, still unread."""

    tuned: dict[str, Any]
    variants: dict[str, list[str]]
    methods: dict[str, dict[str, Any]]


def read(path: Path) -> Tuned:
    """Raises UsageError if it is not a file of tuned values."""
    try:
        file = plain.from_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}") from error
    try:
        tables = parse(Tables, file)
        tuning = parse(Tuning, tables.tuned, "tuned")
        for name in tables.methods.keys() - tables.variants.keys():
            raise UsageError(f"variants.{name} is missing")
    except UsageError as error:
        raise UsageError(f"{error}; growbench tune writes such files: tune again") from None
    return Tuned(tuning, tables.variants, {name: _flat(row) for name, row in tables.methods.items()})


def read_others(path: Path, tuning: Tuning, done: Trials) -> Tuned:
    """What tuned.toml holds of methods that are not in `done`. Nothing of a file with another tuning."""
    none = Tuned(tuning, {}, {})
    try:
        before = read(path)
    except UsageError:  # there is none, or another version wrote it
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


def variant(found: Found) -> list[str]:
    """What identifies a tuned method: its code, the hyperparameters that are not tuned, and the ranges of the others."""
    ranges = tunable_ranges(found)  # as declared: a default set by hand may widen them, and is no other variant
    values = settings(found.method)
    fixed = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if key not in ranges]
    return [found.origin, *fixed, *(f"{key} from {each.low} to {each.high}" for key, each in ranges.items())]


def _nested(row: Values) -> dict[str, Any]:
    """Values as tables: those whose key begins with `train.` in a subtable."""
    training = {key.removeprefix("train."): value for key, value in row.items() if key.startswith("train.")}
    return {key: value for key, value in row.items() if not key.startswith("train.")} | {"train": training}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """The reverse: values by key, as `train.lr`."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        values |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return values


def apply(
    path: Path, experiment: Experiment, methods: Iterable[Found], seeds: Iterable[int], by_hand: Collection[str]
) -> list[Found]:
    """The methods with the values from a file of tuned values, except those that are set `by_hand` (keys as ligo.operator_lr).

    Raises UsageError if the values were tuned on one of these seeds or on another experiment, or if the file lacks a method or
    has it with other code or hyperparameters.
    """
    try:
        return _apply(read(path), experiment, methods, seeds, by_hand)
    except UsageError as error:
        raise UsageError(f"--tuned {path}: {error}") from None


def _apply(
    tuned: Tuned, experiment: Experiment, methods: Iterable[Found], seeds: Iterable[int], by_hand: Collection[str]
) -> list[Found]:
    if tuned.tuning.fingerprint != fingerprint(experiment):
        raise UsageError(f"tuned on another experiment ({tuned.tuning.experiment}): give that experiment and its --set options")
    if both := sorted({*tuned.tuning.seeds} & {*seeds}):
        raise UsageError(f"tuned on seed {both[0]}: --seeds must name others than {', '.join(map(str, tuned.tuning.seeds))}")
    applied = []
    for found in methods:
        if found.name not in tuned.rows:
            raise UsageError(f"{found.name} was not tuned: --methods may name {', '.join(tuned.rows) or 'none'}")
        _refuse_other_variant(found, tuned.variants[found.name])
        values = _checked(tuned.rows[found.name], experiment, found)
        own = {key for key in values if {f"{found.name}.{key}", f"{found.variant_of}.{key}"} & {*by_hand}}
        applied.append(with_values(found, {key: value for key, value in values.items() if key not in own}))
    return applied


def _refuse_other_variant(found: Found, tuned: Sequence[str]) -> None:
    asked = variant(found)
    then, now = (
        ", ".join(str(each) for each in these if each not in those) or "nothing of that"
        for these, those in ((tuned, asked), (asked, tuned))
    )
    if then != now:
        raise UsageError(f"{found.name} was tuned with {then}, and now has {now}: give what it was tuned with, or tune it again")


def _checked(values: Values, experiment: Experiment, found: Found) -> Values:
    """A method's tuned values. Raises UsageError unless they are exactly those of its search space, and valid."""
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
