"""What an entry of a track says of its runs: the origin of their method, and the command that makes them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growbench import registry
from growbench.config import loading
from growbench.errors import UsageError
from growbench.method.options import settings
from growbench.registry import Found
from growbench.runs import tracks
from growbench.runs.records import RunRecord
from growbench.runs.store import Run
from growbench.runs.tracks import Definition, Entry


@dataclass(frozen=True)
class Place:
    """Where an entry's runs and code lie, seen from the track's folder."""

    runs: str
    code: str = ""
    code_sha256: str = ""
    spec: str = ""  # of a method that is a file, as `growbench run` takes it


def entry(definition: Definition, number: int, runs: Sequence[Run], place: Place, made_by: str) -> Entry:
    """The entry of these runs, which are all of one method's."""
    record = runs[0].record
    return Entry(
        method=record.method,
        number=number,
        origin=record.origin,
        hyperparameters=_without_none(record.config.method),
        made_by=made_by,
        date=datetime.date.today().isoformat(),
        command=command(definition, runs, place.spec or record.method_itself),
        runs=place.runs,
        sha256={run.name: tracks.digest_of(run.folder) for run in runs},
        variant_of=record.variant_of,
        code=place.code,
        code_sha256=place.code_sha256,
    )


def _without_none(value: Any) -> Any:
    """TOML has no word for None."""
    return {key: _without_none(each) for key, each in value.items() if each is not None} if isinstance(value, Mapping) else value


def found_of(record: RunRecord, code: str | None) -> Found:
    """The method of a run as it is here, with the run's hyperparameters.

    `code`: FILE.py or FILE.py:CLASS, of a loose method. Raises UsageError if the run was made by other code.
    """
    own = record.method_itself
    if code is None and own not in registry.names():
        raise UsageError(f"{own} is no method of growbench or of an installed package: attach its file with --code FILE.py")
    if code is not None and own in registry.names():
        raise UsageError(f"--code: {own} is the name of a method that is known without a file")
    options = {key: value for key, value in record.config.method.items() if not key.startswith("train.")}
    tuned = {key.removeprefix("train."): value for key, value in record.config.method.items() if key.startswith("train.")}
    spec = code or own
    found = registry.get(f"{record.method}={spec}" if record.variant_of else spec, {**options, "train": tuned})
    if (found.name, found.origin) != (record.method, record.origin):
        theirs, ours = f"{record.method} ({record.origin})", f"{found.name} ({found.origin})"
        raise UsageError(f"the runs are of {theirs}, and {spec} is {ours}: run it again with this code")
    return found


def command(definition: Definition, runs: Sequence[Run], spec: str) -> str:
    """The command that makes an entry's runs, with all hyperparameters that are not the usual ones. `spec`: of its method."""
    record, seeds = runs[0].record, definition.seeds_of(runs[0].record.method, [run.name for run in runs])
    name, usual = record.method, _usual(definition, record)
    own = [f"{name}.{key}={_text(value)}" for key, value in record.config.method.items() if usual.get(key) != value]
    own += tracks.in_precision(definition, *runs)
    return definition.command(f"{name}={spec}" if record.variant_of else spec, seeds, own)


def _usual(definition: Definition, record: RunRecord) -> dict[str, Any]:
    """The hyperparameters that growbench's own method has on the track's experiment. None of a loose one are known."""
    if record.method_itself not in registry.names():
        return {}
    experiment = loading.load(definition.experiment, definition.overrides)
    found = registry.get(record.method_itself, experiment.methods.get(record.method_itself))
    values = {**settings(found.method), **{f"train.{key}": value for key, value in found.training.items()}}
    return dict(json.loads(json.dumps(values)))  # as a record has them


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
