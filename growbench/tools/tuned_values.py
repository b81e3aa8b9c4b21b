"""The file of tuned values: what `growbench tune` writes, and `growbench run --tuned` takes."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from growbench.config.loading import parse
from growbench.config.schema import Experiment
from growbench.console import say
from growbench.errors import UsageError, did_you_mean
from growbench.registry import Found
from growbench.tools.search_space import Trials, Values, _tunable, defaults, fingerprint, with_values

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
        """As text: a table on the tuning, one on the variants, and one a method, with its values of training in a table below."""
        methods = {name: _nested(row) for name, row in self.rows.items()}
        return tomli_w.dumps({"tuned": dataclasses.asdict(self.tuning), "variants": dict(self.variants), "methods": methods})


def _variant(found: Found) -> list[str]:
    """What decides a method's tuning beside the experiment: its code, what is not tuned of it, and the ranges of the rest."""
    ranges = _tunable(found)  # as declared: a default set by hand may widen them, and is no variant
    settings = dataclasses.asdict(found.method)  # type: ignore[call-overload]
    fixed = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items() if key not in ranges]
    return [found.origin, *fixed, *(f"{key} from {each.low} to {each.high}" for key, each in ranges.items())]


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


def _nested(row: Values) -> dict[str, Any]:
    """Values by table: those whose key begins with train. in one of their own."""
    training = {key.removeprefix("train."): value for key, value in row.items() if key.startswith("train.")}
    return {key: value for key, value in row.items() if not key.startswith("train.")} | {"train": training}


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
