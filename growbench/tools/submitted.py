"""What runs must be that are entered into a track: of its configuration, complete, undamaged, plausible, and as planned.

Each refusal is one line. None of this proves that a run was trained: whoever reviews an entry reproduces its runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growbench.costs.accounts import CHARGED, Ledger, Unit
from growbench.errors import UsageError, check_name
from growbench.files import sha256, small_file
from growbench.planning.plan import PlannedPhase, Unplannable, plan
from growbench.registry import SCRATCH, SOURCE, Found
from growbench.runs import curve, store, tracks
from growbench.runs.jobs import Setting
from growbench.runs.records import RunRecord, RunStatus
from growbench.runs.store import Run
from growbench.runs.tracks import Track
from growbench.tools.reproduce import experiment_of
from growbench.training.parallel import Parallel

HIGHEST_LOSS = 100.0  # nats: of no vocabulary is that of a guess so high
LARGEST_GAP = 0.1  # nats between a curve's end and the loss on the whole split, beyond scratch's; in committed runs up to 0.03
ROUNDING = 1e-9  # relative: FLOPs per step are means over a phase's steps


def read(folder: Path) -> Run:
    """A finished run whose files are whole. Raises UsageError for any other."""
    tracks.digest_of(folder)  # refuses links and files that are too large
    try:
        record = RunRecord.read(small_file(folder / store.RECORD, tracks.LARGEST).decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"{folder}: {store.RECORD} cannot be read: {error}") from error
    if record.status != RunStatus.FINISHED:
        raise UsageError(f"{folder}: has not finished: {record.status}")
    if record.evaluations is None or curve.FILE not in record.sha256:
        raise UsageError(f"{folder}: was stored by an earlier version, without digests: train it again")
    if wrong := curve.damage(folder / curve.FILE, record.evaluations, record.sha256[curve.FILE]):
        raise UsageError(f"{folder}: {curve.FILE} {wrong}")
    if wrong := curve.fault(folder / curve.FILE):
        raise UsageError(f"{folder}: {curve.FILE} is not plausible: {wrong}")
    if wrong := _damaged_documents(folder, record):
        raise UsageError(f"{folder}: {wrong}")
    run = store.load(folder)
    if run is None:
        raise UsageError(f"{folder}: cannot be read")
    return tracks.as_stored(run)


def _damaged_documents(folder: Path, record: RunRecord) -> str:
    """What is wrong with the losses by document, where there are any; empty if nothing is."""
    file = folder / store.DOCUMENTS
    if not file.is_file():
        return ""
    if record.sha256.get(store.DOCUMENTS) != sha256(file):
        return f"{store.DOCUMENTS} is damaged (sha256 differs)"
    try:
        store.read_documents(file, record.final_val_loss)
    except Exception as error:  # numpy has many for a damaged file
        return f"{store.DOCUMENTS} {' '.join(str(error).split())}"
    return ""


def together(track: Track, runs: Sequence[Run]) -> None:
    """Raise UsageError unless these are all runs of one entry: one method's, with seeds and budgets that the track takes."""
    first = runs[0].record
    check_name("a method", first.method)
    if first.method in (SCRATCH, SOURCE):
        raise UsageError(f"{runs[0].folder}: {first.method} belongs to the frozen runs of {track.name}")
    for run in runs[1:]:
        for key, own in ("method", run.record.method), ("variant_of", run.record.variant_of), ("origin", run.record.origin):
            if own != getattr(first, key):
                raise UsageError(f"{run.folder}: {key} is {own!r}, and {getattr(first, key)!r} in {runs[0].folder}")
        if key := difference(first.config.method, run.record.config.method):
            raise UsageError(f"{run.folder}: has other hyperparameters than {runs[0].folder}: {key}")
    given = [run.name for run in runs]
    if twice := [name for name in given if given.count(name) > 1]:
        raise UsageError(f"{twice[0]} was given twice")
    track.definition.seeds_of(first.method, given)


def configured(track: Track, run: Run) -> None:
    """Raise UsageError unless a run has the track's configuration."""
    if key := difference(track.definition.configuration, run.record.config.experiment):
        raise UsageError(f"{run.folder}: has another configuration than {track.name}: {key}")
    theirs = {each for frozen in track.frozen for each in frozen.record.hardware.precisions}
    if theirs and (other := run.record.hardware.precisions - theirs):
        again = f"run it again with --set machine.precision={min(theirs)}"
        raise UsageError(f"{run.folder}: was trained in {min(other)}, and scratch on {track.name} in {min(theirs)}: {again}")
    if run.record.config.stop_at_loss is not None:
        raise UsageError(f"{run.folder}: stopped at a target; runs of a track complete their schedules")


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first key that differs, with both values; empty if none does."""
    ours, theirs = dict(_flat(wanted)), dict(_flat(found))
    for key in (*ours, *theirs):
        if ours.get(key) != theirs.get(key):
            stated, needed = (repr(table[key]) if key in table else "missing" for table in (theirs, ours))
            return f"{key} is {stated}, and must be {needed}"
    return ""


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def plausible(track: Track, run: Run) -> None:
    """Raise UsageError unless the curve is one that the benchmark writes, and agrees with the record."""
    if wrong := _implausible(track, run):
        raise UsageError(f"{run.folder}: is not plausible: {wrong}")


def _implausible(track: Track, run: Run) -> str:
    """What is wrong; empty if nothing is."""
    rows = run.curve
    for column in ("step", "tokens", "flops", "seconds"):
        if not all(column in row for row in rows) or any(b[column] < a[column] for a, b in itertools.pairwise(rows)):
            return f"{column} is missing or falls"
    for row in rows:
        for column in ("val_loss", "train_loss"):
            if (loss := row[column]) is not None and not 0 < loss < HIGHEST_LOSS:
                return f"{column} is {loss:g} at step {row['step']}"
    if wrong := _wrong_places(track, run):
        return wrong
    return _wrong_sums(run) or _wrong_end(track, run) or _wrong_documents(track, run)


def _wrong_sums(run: Run) -> str:
    """Where the record's totals are not those of its phases and its curve."""
    rows, record = run.curve, run.record
    charged = record.cost.charged(Unit.FLOPS, Ledger.REUSE)
    spent = sum((phase.growth_flops or 0) + phase.steps * _per_step(phase.flops_per_step) for phase in record.phases)
    for what, flops in ("the curve ends at", rows[-1]["flops"]), ("the phases take", spent):
        if not math.isclose(flops, charged, rel_tol=ROUNDING):
            return f"{what} {flops:.6g} FLOPs, and {charged:.6g} are charged"
    for what, stated, counted in (
        ("steps", record.steps, sum(phase.steps for phase in record.phases)),
        ("tokens", record.tokens, rows[-1]["tokens"]),
    ):
        if stated != counted:
            return f"{store.RECORD} says {stated} {what}, and there are {counted}"
    return ""


def _wrong_end(track: Track, run: Run) -> str:
    """What is wrong with the curve's last loss: it is of a part of the validation split, of which the record has the whole."""
    scratch = next(each for each in track.frozen if each.record.method == SCRATCH and each.record.seed == run.record.seed)
    gap, usual = (each.curve_loss - each.final_loss for each in (run, scratch))
    if not abs(gap - usual) <= LARGEST_GAP:
        return f"its curve ends {gap:+.3f} nats beside its loss on the whole validation split, and scratch's {usual:+.3f}"
    return ""


def _wrong_places(track: Track, run: Run) -> str:
    """What is wrong with the steps at which it was evaluated: every 1 % of the budget, and where a phase begins and ends."""
    record, steps = run.record, [row["step"] for row in run.curve]
    whole = track.definition.configuration["train"]["steps"]
    every = max(1, round(record.budget_share * whole) // 100)
    expected = [
        step
        for phase in record.phases
        for step in [*range(0, phase.steps, every), phase.steps]
        for step in [phase.first_step + step]
    ]
    if record.inherited:  # up to where it branches off it was evaluated as the longer run is
        ends = {end for phase in record.phases for end in (phase.first_step, phase.first_step + phase.steps)}
        apart = max((b - a for a, b in itertools.pairwise(steps)), default=0)
        if ends <= set(steps) and apart <= max(1, whole // 100) and steps[-1] == record.steps:
            return ""
    elif steps == expected:
        return ""
    return f"the evaluations are at other steps than those of {record.steps} steps in {len(record.phases)} phases"


def _wrong_documents(track: Track, run: Run) -> str:
    """What is wrong with the losses by validation document: they are of the split that scratch was evaluated on."""
    scratch = next(frozen for frozen in track.frozen if frozen.record.method == SCRATCH).documents
    own = run.documents
    if scratch is not None and (own is None or not np.array_equal(scratch[:, 1], own[:, 1])):
        return f"{store.DOCUMENTS} is missing, or of another validation split than scratch's"
    return ""


def _per_step(flops: Mapping[Any, float]) -> float:
    return sum(each for account, each in flops.items() if account in CHARGED)


def vocabulary_of(track: Track, run: Run) -> int:
    """The size of the vocabulary. Raises UsageError if the data is not what the track was made on."""
    data = Setting(experiment_of(run.record), run.folder.parent, Parallel(torch.device("cpu"))).load_data("target")
    if data.fingerprint != track.definition.configuration.get("fingerprint"):
        raise UsageError(f"{run.folder}: its data has another fingerprint here than on {track.name}")
    return data.vocabulary


def as_declared(track: Track, runs: Sequence[Run], found: Found) -> None:
    """Raise UsageError unless runs are charged what their source cost on the track, and are marked as their method is."""
    method = found.method
    sources = {run.record.seed: run.cost(Unit.FLOPS, Ledger.REUSE) for run in track.frozen if run.record.method == SOURCE}
    for run in runs:
        for mark in ("control", "keeps_source"):
            if (stated := getattr(run.record, mark)) != (own := getattr(method, mark)):
                raise UsageError(f"{run.folder}: {mark} is {stated}, and {own} in {found.name}")
        charged, cost = run.source_cost(Unit.FLOPS), sources.get(run.record.seed) if method.uses_source else 0.0
        if cost is not None and not math.isclose(charged, cost, rel_tol=ROUNDING):
            raise UsageError(f"{run.folder}: is charged {charged:.6g} FLOPs for its source, which cost {cost:.6g}")


def as_planned(runs: Sequence[Run], found: Found, vocabulary: int) -> list[str]:
    """What cannot be planned, and so was not compared. `runs`: of an entry. Raises UsageError if one differs from its plan."""
    unplanned = []
    for share in {run.record.budget_share: None for run in runs}:  # all seeds have one plan
        own = [run for run in runs if run.record.budget_share == share]
        experiment = experiment_of(own[0].record).at(share, found.training)
        try:
            planned = plan(experiment, found, vocabulary)
        except Unplannable as error:
            unplanned.append(str(error))
            continue
        for run in own:
            if wrong := _unplanned(run, planned):
                raise UsageError(f"{run.folder}: differs from the plan of {found.name}: {wrong}")
    return list(dict.fromkeys(unplanned))


def _unplanned(run: Run, planned: Sequence[PlannedPhase]) -> str:
    record = run.record
    phases, wanted = ([(each.name, each.steps, each.scored) for each in some] for some in (record.phases, planned))
    if phases != wanted:
        return f"phases (name, steps, scored) {phases}, and {wanted} are planned"
    charged, total = record.cost.charged(Unit.FLOPS, Ledger.REUSE), sum(each.flops for each in planned)
    if not math.isclose(charged, total, rel_tol=ROUNDING):
        return f"{charged:.6g} FLOPs, and {total:.6g} are planned"
    return ""
