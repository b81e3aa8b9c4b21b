"""Step times measured alone on an idle machine, as `growbench bench` stores them beside an experiment's runs.

Reference seconds of a run are its steps times these: what it would have taken on a machine with nothing else to do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import Field, TypeAdapter, ValidationError

from growbench.costs.hardware import Hardware
from growbench.files import write_text

FILE = "step_seconds.json"
SCHEMA_VERSION = 1
LARGEST_ERROR = 0.02  # of a step's time, relative, with which a report still uses it

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class PhaseSeconds:
    """What a phase of a method takes."""

    name: str
    steps: int  # of the whole budget
    step_seconds: Positive  # of one step; the mean over its workloads, as often as each comes in the whole budget
    spread: NotNegative  # interquartile range over the median, of its measurements against scratch's step
    error: NotNegative  # standard error of step_seconds, relative: large on a machine that was not idle
    growth_seconds: NotNegative  # of the growth before the phase


@dataclass(frozen=True, kw_only=True)
class MethodSeconds:
    """What the phases of a method take, or those of the small model's own training."""

    origin: str  # of the method's code
    config: str  # digest of its hyperparameters
    commit: str  # of growbench's code
    date: str  # YYYY-MM-DD
    phases: list[PhaseSeconds]


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """What was measured of one experiment on one machine."""

    hardware: Hardware
    versions: Mapping[str, str]  # of what the speed may depend on
    experiment: str  # digest of its configuration
    methods: Mapping[str, MethodSeconds]  # by name; the small model's own training as "source"


@dataclass(frozen=True, kw_only=True)
class _File:
    schema_version: int
    machines: list[StepSeconds]


@cache
def _reader() -> TypeAdapter[_File]:
    return TypeAdapter(_File)


def digest_of_experiment(identity: Mapping[str, Any]) -> str:
    """Of a configuration as run.json has it. The content of the data does not count, as no step's time depends on it."""
    return _digest({key: value for key, value in identity.items() if "fingerprint" not in key})


def digest_of_method(hyperparameters: Mapping[str, Any]) -> str:
    """Of hyperparameters as run.json has them. Tuned values of [train] do not count, as no step's time depends on them."""
    return _digest({key: value for key, value in hyperparameters.items() if not key.startswith("train.")})


def _digest(value: Any) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]}"


def read(folder: Path) -> list[StepSeconds]:
    """What is stored in an experiment's results folder, by machine. Raises ValueError for a file that cannot be read."""
    file = folder / FILE
    if not file.is_file():
        return []
    try:
        found = _reader().validate_json(file.read_bytes(), strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"{file}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error
    if found.schema_version != SCHEMA_VERSION:
        raise ValueError(f"{file}: schema_version = {found.schema_version}: this growbench reads {SCHEMA_VERSION}")
    return found.machines


def store(folder: Path, measured: StepSeconds) -> Path:
    """Add a measurement to those of an experiment, in full or not at all. It replaces what the same machine measured before.

    Methods that were not measured again stay, if the experiment and the versions are the same. A file that cannot be read is
    replaced. Other processes wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{FILE}.lock"
    with FileLock(lock):
        try:
            written = dataclasses.asdict(_File(schema_version=SCHEMA_VERSION, machines=_joined(folder, measured)))
            write_text(folder / FILE, json.dumps(written, indent=1, allow_nan=False) + "\n")
        finally:
            lock.unlink(missing_ok=True)  # while locked: a process that then locks the unlinked file tries again
    return folder / FILE


def _joined(folder: Path, measured: StepSeconds) -> list[StepSeconds]:
    """What stands in the folder with a measurement added."""
    try:
        before: Sequence[StepSeconds] = read(folder)
    except ValueError:
        before = []
    same = (measured.experiment, measured.versions)
    for earlier in before:
        if earlier.hardware == measured.hardware and (earlier.experiment, earlier.versions) == same:
            measured = dataclasses.replace(measured, methods={**earlier.methods, **measured.methods})
    return [*(earlier for earlier in before if earlier.hardware != measured.hardware), measured]
