"""Reads experiments from TOML files and --set. A wrong key or value is an error of one line that says what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import json
import tomllib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from growbench.config import plain
from growbench.config.schema import (
    Experiment,
    ImageConfig,
    Machine,
    ModelConfig,
    OwnTraining,
    Pretrained,
    Published,
    T,
    TextConfig,
    Training,
)
from growbench.errors import UsageError, check_name, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

MOST_SECTIONS = 4  # of a key, as methods.ligo.train of methods.ligo.train.lr
CHECKPOINT = ("checkpoint", "flops", "seconds")  # keys of [source], if it is a trained model; its sizes may stand beside them
SIZES = ("layers", "width", "heads", "ffn", "kv_heads", "head_dim", "class_layers", "tied")
RESERVED = ("report", "tuning", "replaced", "tracks")  # folders of results that are not an experiment's


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
    check_name("an experiment", path.stem)
    if path.stem in RESERVED:
        raise UsageError(f"an experiment cannot be named {path.stem!r}: it also names folders, and results have one of that name")
    table = _read(path)
    if isinstance(table.get("source"), str):
        table["source"] = {"checkpoint": table["source"]}
    for override in overrides:
        _override(table, override)
    return _experiment(path.stem, parse(File, table))


def title(name: str) -> str:
    """A shipped experiment's title."""
    return str(_read(available()[name])["title"])


def published() -> set[str]:
    """The methods whose savings the papers of shipped experiments state."""
    return {method for path in available().values() for method in _read(path).get("published", {})}


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """An experiment file's table, merged into that of the experiment it extends: a shipped one, or a file beside it."""
    try:
        table = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
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
        below.pop("source", None)  # a pretrained source replaces one that is trained
    return _merged(below, table)


@lru_cache(64)
def _parsed(text: str) -> dict[str, Any]:
    """Experiments extend others, so that a list of all would parse some of them many times."""
    return plain.from_toml(text)


def _merged(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `table` in place of its own; [published], of one experiment alone, is replaced as a whole."""
    both = {
        key: _merged(base[key], table[key])
        for key in (base.keys() & table.keys()) - {"published"}
        if isinstance(base[key], dict) and isinstance(table[key], dict)
    }
    return {**base, **table, **both}


@dataclass(frozen=True)
class File:
    """An experiment file. Its sections are tables, still unread."""

    title: str
    architecture: str
    source: dict[str, Any]
    target: dict[str, Any]
    data: dict[str, Any]
    train: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    published: dict[str, dict[str, Any]] = field(default_factory=dict)


def _experiment(name: str, file: File) -> Experiment:
    for where, section in ("source", file.source), ("target", file.target):
        for key in ("vocabulary", "positions", "patch", "configuration"):
            if key in section:
                raise UsageError(
                    f"{where}.{key}: unknown key; it follows from {'the checkpoint' if key == 'configuration' else '[data]'}"
                )
    if file.target.get("layers") == 0:
        raise UsageError("target.layers = 0: must be at least 1; only a source may have none")
    target = {key: value for key, value in file.target.items() if key != "architecture"}
    architecture = file.target.get("architecture", file.architecture)
    if not isinstance(architecture, str):
        raise UsageError(f"target.architecture = {_short(architecture)}: must be a text")
    pretrained = _pretrained(file.source) if "checkpoint" in file.source else None
    source = target if pretrained and not pretrained.stated else file.source
    training_keys = {f.name for f in dataclasses.fields(Training)}
    others = training_keys | set(CHECKPOINT if pretrained else ())
    return Experiment(
        name=name,
        title=file.title,
        architecture=architecture,
        source=parse(ModelConfig, {key: source[key] for key in source if key not in others}, "source", training_keys),
        target=parse(ModelConfig, target, "target"),
        data=parse(ImageConfig, file.data, "data") if "image_size" in file.data else parse(TextConfig, file.data, "data"),
        train=parse(Training, file.train, "train"),
        source_train=parse(Training, file.train | {key: source[key] for key in source if key in training_keys}, "source"),
        machine=parse(Machine, file.machine, "machine"),
        methods=file.methods,
        published={method: parse(Published, row, f"published.{method}") for method, row in file.published.items()},
        pretrained=pretrained,
        source_architecture="" if architecture == file.architecture else file.architecture,
    )


def _pretrained(values: dict[str, Any]) -> Pretrained:
    for key in values:
        if key not in (*CHECKPOINT, *SIZES):
            allowed = f"allowed are {', '.join((*CHECKPOINT[1:], *SIZES))}; source=PATH replaces the whole table"
            raise UsageError(f"source.{key}: not allowed beside checkpoint, which is trained already; {allowed}")
    found = parse(Pretrained, {key: values[key] for key in values if key in CHECKPOINT}, "source")
    return dataclasses.replace(found, stated=tuple(key for key in values if key in SIZES))


def parse(cls: type[T], values: Mapping[str, Any], where: str = "", other_keys: Iterable[str] = ()) -> T:
    """An instance of the dataclass `cls` from plain values, as TOML has them. `other_keys` are allowed beside its fields, unread.

    Types are strict: a string is not a number, a bool or a float not an integer; numbers are finite. Raises UsageError that
    names the key (below `where`), its value and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} = {_short(values)}: must be a table")
    from pydantic import PydanticUserError, ValidationError

    _refuse_unknown(values, [*(f.name for f in dataclasses.fields(cls) if f.init), *other_keys], where)  # type: ignore[arg-type]
    try:
        # in JSON, a list stands for a tuple, and a string for a path or a date
        return cast(T, _parser(cast(Hashable, cls)).validate_json(json.dumps(values, default=str)))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    except ValidationError as error:
        raise UsageError(_first_wrong(error.errors(), where)) from None
    except (PydanticUserError, NameError) as error:
        raise UsageError(f"{where}: {cls.__name__} has a field whose type is unknown: {error}") from error


@lru_cache(256)
def _parser(cls: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))(cls))


def own_training(options: Mapping[str, Any], method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A method's own values of [train], and its other options. Raises UsageError for keys of [train] that all methods share."""
    own = parse(OwnTraining, options.get("train", {}), f"{method}.train")
    values = {key: value for key, value in dataclasses.asdict(own).items() if value is not None}
    return values, {key: value for key, value in options.items() if key != "train"}


def _first_wrong(errors: list[ErrorDetails], where: str) -> str:
    """The first wrong value and what it must be. Each type of a union has an error of its own."""
    first = errors[0]
    errors = [error for error in errors if error["loc"][:1] == first["loc"][:1]]
    path = first["loc"] if len(errors) == 1 else first["loc"][:1]
    key = (where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)).removeprefix(".")
    if first["type"] == "missing":
        return f"{key} is missing"
    said = " or ".join(dict.fromkeys(error["msg"] for error in errors))
    said = said.replace("Input should be", "must be", 1).replace("Input should be ", "").replace("an object", "a table")
    return f"{key} = {_short(first['input'])}: {said}"


def _short(value: Any) -> str:
    """A value in a message, its middle left out if it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:90]} ... {text[-20:]}"


def _refuse_unknown(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            dotted = f"{where}.{key}" if where else key
            raise UsageError(f"unknown key {dotted}: {did_you_mean(key, known)}")


def _override(table: dict[str, Any], override: str) -> None:
    """Apply `section.key=value` (or `METHOD.field=value`) to a parsed TOML table."""
    key, value = assignment(override)
    *sections, last = key.split(".")
    if sections and sections[0] not in File.__dataclass_fields__:
        sections = ["methods", *sections]  # ligo.operator_steps=50 means methods.ligo.operator_steps
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {_short(override)}: {section} is not a table")
    table[last] = {"checkpoint": value} if key == "source" and isinstance(value, str) else value


def assignment(override: str) -> tuple[str, Any]:
    """Key and value of `section.key=value`. A value that is not valid TOML is a string. Raises UsageError for anything else."""
    key, equals, text = override.partition("=")
    key = key.strip()
    *sections, last = key.split(".")
    if not equals or not last:
        raise UsageError(f"--set {_short(override)}: must be key=value, as in train.steps=100")
    if len(sections) > MOST_SECTIONS or not plain.is_text(override):
        raise UsageError(f"--set {_short(override)}: must be key=value, with a key as train.steps, and text that is UTF-8")
    try:
        return key, plain.from_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text
    except ValueError as error:
        raise UsageError(f"--set {_short(override)}: {error}") from None
