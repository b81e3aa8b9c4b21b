"""`growbench freeze`: finished runs of an experiment become a track, with scratch as its frozen reference."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from growbench import registry
from growbench.analysis import standing
from growbench.analysis.comparison import compare
from growbench.analysis.selection import made_by_earlier_code
from growbench.config import loading
from growbench.config.schema import PROTOCOL, Experiment
from growbench.errors import UsageError, check_name
from growbench.files import make_folder, move, write_text
from growbench.registry import SCRATCH, SOURCE
from growbench.runs import chain, store, tracks
from growbench.runs.records import RunStatus
from growbench.runs.store import Run
from growbench.runs.tracks import Definition
from growbench.tools import entered, submitted
from growbench.tools.entered import Place


@dataclass(frozen=True)
class Request:
    """What `growbench freeze` was asked for."""

    experiment: str  # as `growbench run` takes it
    overrides: Sequence[str]
    results: Path
    series: str | None  # the track's name without its version; None: the experiment's
    made_by: str

    def loaded(self) -> Experiment:
        return loading.load(self.experiment, self.overrides)


@dataclass(frozen=True)
class Frozen:
    """A track that was made, and what was left out."""

    folder: Path
    entries: list[str]
    left_out: dict[str, str]  # by method the reason

    def text(self) -> str:
        lines = [f"track: {self.folder}; entries: {', '.join(self.entries) or 'none'}"]
        return "\n".join([*lines, *(f"left out: {method}: {reason}" for method, reason in self.left_out.items())])


def freeze(request: Request, folder: Path) -> Frozen:
    """Make the next version of a track in `folder`, the folder of tracks. Nothing is copied: the track names the runs.

    Raises UsageError if scratch's runs are not complete, or were made with another configuration or by other code than that of
    today.
    """
    experiment = request.loaded()
    series = request.series or experiment.name
    check_name("a track", series)
    place = request.results / experiment.name
    if not place.resolve().is_relative_to(folder.parent.resolve()):
        raise UsageError(f"{place}: a track names runs within {folder.parent}, which holds {folder}")
    runs = store.load_all(place)
    versions = [track.version for track in tracks.load_all(folder) if track.series == series]
    target = folder / f"{series}@{max(versions, default=0) + 1}"
    definition = _definition(request, experiment, runs, os.path.relpath(place, target))
    draft = folder / f".{target.name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        made = _fill(draft, definition, runs, request.made_by)
        move(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Frozen(target, **made)


def _fill(draft: Path, definition: Definition, runs: Sequence[Run], made_by: str) -> dict[str, Any]:
    """Write the track's files: its definition, and an entry of each method that has enough runs."""
    make_folder(draft / tracks.ENTRIES)
    _add(draft, tracks.FILE, tracks.text(definition))
    entries, left_out = [], {}
    for method in sorted({run.record.method for run in runs} - {SCRATCH, SOURCE}):
        try:
            seeds = _seeds(definition, method, runs)
            complete = _complete(definition, definition.run_names(method, seeds), runs)
            made = entered.entry(definition, 1, complete, Place(definition.runs), made_by)
            tracks.check_entry(definition, made, None)
        except UsageError as error:
            left_out[method] = str(error)
            continue
        _add(draft, made.file, tracks.text(made))
        few = f" ({len(seeds)} of {len(definition.seeds)} seeds)" if len(seeds) < len(definition.seeds) else ""
        entries.append(made.name + few)
    return {"entries": entries, "left_out": left_out}


def _add(folder: Path, name: str, content: str) -> None:
    write_text(folder / chain.FILE, chain.extended(folder, name, content.encode()))
    write_text(folder / name, content)


def _definition(request: Request, experiment: Experiment, runs: Sequence[Run], place: str) -> Definition:
    scratch = [run for run in runs if run.record.method == SCRATCH and run.finished]
    seeds = sorted({run.record.seed for run in scratch if run.record.budget_share == 1})
    if not seeds:
        raise UsageError(f"no finished run of scratch at the full budget of {experiment.name} in {request.results}")
    budgets = sorted({run.record.budget_share for run in scratch})
    configuration = scratch[0].record.config.experiment
    if (protocol := configuration.get("protocol", 1)) != PROTOCOL:
        raise UsageError(f"{scratch[0].folder} was made under protocol {protocol}, and today's is {PROTOCOL}: run it again")
    asked = {**json.loads(json.dumps(experiment.identity())), "fingerprint": configuration.get("fingerprint")}
    if key := submitted.difference(asked, configuration):
        raise UsageError(f"{scratch[0].folder} was not made by this experiment: {key}; give with --set what it was made with")
    definition = Definition(
        title=experiment.title,
        experiment=request.experiment,
        overrides=tuple(request.overrides),
        protocol="ladder" if len(budgets) > 1 else "single",
        budgets=tuple(budgets),
        seeds=tuple(seeds),
        target_loss=0.0,
        frozen_by=request.made_by,
        date=datetime.date.today().isoformat(),
        runs=place,
        configuration_sha256=tracks.digest_of_configuration(configuration),
        sha256={},
        configuration=configuration,
    )
    frozen = _complete(definition, definition.run_names(SCRATCH, seeds), runs)
    sources = [run for run in runs if run.record.method == SOURCE and run.record.seed in seeds]
    digests = {run.name: tracks.digest_of(run.folder) for run in (*frozen, *sources)}
    return replace(definition, target_loss=standing.target_loss(definition, compare(frozen)), sha256=digests)


def _seeds(definition: Definition, method: str, runs: Sequence[Run]) -> list[int]:
    """The track's first seeds that have all runs of a method; all of the track's where those are too few.

    Raises UsageError for a run that failed: whoever left out its seed would choose among outcomes.
    """
    if failed := [run.name for run in runs if run.record.method == method and run.record.status == RunStatus.FAILED]:
        raise UsageError(f"{failed[0]} failed")
    finished = {run.name for run in runs if run.finished}
    seeds = list(takewhile(lambda seed: finished.issuperset(definition.run_names(method, [seed])), definition.seeds))
    return seeds if len(seeds) >= tracks.FEWEST_SEEDS else list(definition.seeds)


def _complete(definition: Definition, needed: Sequence[str], runs: Sequence[Run]) -> list[Run]:
    """The needed runs of a method. Raises UsageError if one is missing, or is not of today's code."""
    found = {run.name: run for run in runs if run.name in needed and run.finished}
    if missing := [name for name in needed if name not in found]:
        raise UsageError(f"{len(missing)} of {len(needed)} runs are missing: {', '.join(missing)}")
    if earlier := made_by_earlier_code(found.values()):
        raise UsageError(f"{earlier[0].name} was made by earlier code")
    own = [tracks.as_stored(found[name]) for name in needed]
    for run in own:
        if key := submitted.difference(definition.configuration, run.record.config.experiment):
            raise UsageError(f"{run.name} has another configuration than scratch: {key}")
    for run in own:
        if (run.record.origin, run.record.config.method) != (own[0].record.origin, own[0].record.config.method):
            raise UsageError(f"{run.name} has other code or hyperparameters than {own[0].name}")
    if registry.is_foreign(own[0].record.method_itself) or own[0].record.method_itself not in registry.names():
        raise UsageError("its code is not growbench's own: enter it with growbench submit")
    return own
