"""Experiments read from TOML. Keys are strict; every error is one line that says what is allowed."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
import types
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from growbench.config.schema import (
    DataConfig,
    Experiment,
    ImageConfig,
    Machine,
    ModelConfig,
    Pretrained,
    Published,
    T,
    TextConfig,
    Training,
)
from growbench.errors import UsageError, did_you_mean


def available() -> dict[str, Path]:
    """The shipped experiments, by name."""
    folder = Path(str(resources.files("growbench.experiments")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(name: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of that name (or the TOML file at that path), with `key=value` overrides applied.

    Raises UsageError for an unknown name, key or value.
    """
    path = Path(name) if name.endswith(".toml") else available().get(name)
    if path is None:
        raise UsageError(f"unknown experiment {name!r}: {did_you_mean(name, available())}")
    table = _read(path)
    if isinstance(table.get("source"), str):
        table["source"] = {"checkpoint": table["source"]}
    for override in overrides:
        _override(table, override)
    return _experiment(path.stem, table)


def title(name: str) -> str:
    """A shipped experiment's title."""
    return str(_read(available()[name])["title"])


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """An experiment file's table, on top of that of the one it extends: a shipped one, or a file beside it."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read experiment {path}: {error}") from error
    name = table.pop("extends", None)
    if name is None:
        return table
    base = path.parent / name if str(name).endswith(".toml") else available().get(str(name))
    if base is None or not isinstance(name, str):
        raise UsageError(f"{path}: extends = {name!r}: {did_you_mean(str(name), available())}, or a file ending in .toml")
    if base in (*extending, path):
        raise UsageError(f"{path}: extends = {name!r}: extends itself")
    below = _read(base, (*extending, path))
    if isinstance(source := table.get("source"), dict) and "checkpoint" in source:
        below.pop("source", None)  # a pretrained source takes the place of one that is trained
    return _merged(below, table)


def _merged(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`base`, with what `table` says otherwise; published figures belong to one experiment, so that they are all replaced."""
    both = {
        key: _merged(base[key], table[key])
        for key in (base.keys() & table.keys()) - {"published"}
        if isinstance(base[key], dict) and isinstance(table[key], dict)
    }
    return {**base, **table, **both}


def _experiment(name: str, table: dict[str, Any]) -> Experiment:
    known = ["title", "architecture", "source", "target", "data", "train", "machine", "methods", "published"]
    _refuse_unknown(table, known, "")
    for key in known[:6]:
        if key not in table:
            raise UsageError(f"{name}: {key} is missing")
    methods, published = table.get("methods", {}), table.get("published", {})
    sections = {key: table.get(key, {}) for key in ("source", "target", "data", "train", "machine")}
    for where, rows in ("methods", methods), ("published", published):
        sections[where] = rows
        sections |= {f"{where}.{key}": row for key, row in rows.items()} if isinstance(rows, dict) else {}
    for where, section in sections.items():
        if not isinstance(section, dict):
            raise UsageError(f"{where} = {section!r}: must be a table")
    training_keys = {f.name for f in dataclasses.fields(Training)}
    pretrained = None
    if "checkpoint" in table["source"]:
        pretrained = _pretrained(table["source"])
        table = {**table, "source": table["target"]}
    source_training = {key: value for key, value in table["source"].items() if key in training_keys}
    source_model = {key: value for key, value in table["source"].items() if key not in training_keys}
    for section in ("source", "target"):
        for key in ("vocabulary", "positions", "patch"):
            if key in table[section]:
                raise UsageError(f"{section}.{key}: unknown key; it follows from [data]")
    return Experiment(
        name=name,
        title=_convert(table["title"], str, "title"),
        architecture=_convert(table["architecture"], str, "architecture"),
        source=parse(ModelConfig, source_model, "source", hidden_keys=training_keys),
        target=parse(ModelConfig, table["target"], "target"),
        data=_data(table["data"]),
        train=parse(Training, table["train"], "train"),
        source_train=parse(Training, {**table["train"], **source_training}, "source"),
        machine=parse(Machine, sections["machine"], "machine"),
        methods=methods,
        published={method: parse(Published, row, f"published.{method}") for method, row in published.items()},
        pretrained=pretrained,
    )


def _pretrained(values: dict[str, Any]) -> Pretrained:
    for key in values:
        if key not in ("checkpoint", "flops", "seconds"):
            allowed = "beside checkpoint, which brings the sizes, are flops and seconds; or put source=PATH in place of the table"
            raise UsageError(f"source.{key}: allowed {allowed}")
    return parse(Pretrained, values, "source")


def _data(values: dict[str, Any]) -> DataConfig:
    if "image_size" in values:
        return parse(ImageConfig, values, "data")
    return parse(TextConfig, values, "data")


def parse(cls: type[T], values: Mapping[str, Any], where: str, hidden_keys: Iterable[str] = ()) -> T:
    """An instance of the dataclass `cls` from plain values. Raises UsageError naming key, value and what is allowed."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    _refuse_unknown(values, [*fields, *hidden_keys], where)
    hints = get_type_hints(cls)
    converted = {key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    for key, spec in fields.items():
        if key not in converted and spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}.{key} is missing")
    try:
        return cls(**converted)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: int, float, str, bool, Literal, Optional or tuple."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in options:
            raise UsageError(f"{where} = {value!r}: allowed are {', '.join(map(str, options))}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(value, next(option for option in options if option is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where} = {value!r}: must be a list")
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(kinds) != len(value):
            raise UsageError(f"{where} = {value!r}: must have {len(kinds)} entries")
        return tuple(_convert(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) < sys.float_info.max:
            raise UsageError(f"{where} = {value!r}: must be finite")
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        expected = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise UsageError(f"{where} = {value!r}: must be {expected.get(hint, hint.__name__)}")
    return value


def _refuse_unknown(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            dotted = f"{where}.{key}" if where else key
            raise UsageError(f"unknown key {dotted}: {did_you_mean(key, known)}")


def _override(table: dict[str, Any], override: str) -> None:
    """Apply `section.key=value` (or `METHOD.field=value`) to a parsed TOML table. The value is TOML; bare words are texts."""
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise UsageError(f"--set {override!r}: must be key=value, as in train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if sections and sections[0] not in ("source", "target", "data", "train", "machine", "methods", "published"):
        sections = ["methods", *sections]  # ligo.operator_steps=50 means methods.ligo.operator_steps
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {override!r}: {section} is not a table")
    table[last] = {"checkpoint": value} if key.strip() == "source" and isinstance(value, str) else value
