"""`growbench submit`: runs of a method are checked against a track, and laid out as an entry for a pull request."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from growbench import origins, registry
from growbench.errors import UsageError
from growbench.files import make_folder, small_file, write_text
from growbench.registry import Found
from growbench.runs import chain, tracks
from growbench.runs.store import Run
from growbench.runs.tracks import Entry, Track
from growbench.tools import entered, submitted
from growbench.tools.entered import Place


@dataclass(frozen=True)
class Request:
    """What `growbench submit` was asked for."""

    runs: Sequence[Path]
    track: str
    folder: Path  # of tracks
    code: str | None  # FILE.py or FILE.py:CLASS
    made_by: str
    out: Path | None


def submit(request: Request) -> str:
    """Check the runs, and write the entry's files. Says what to do next. Raises UsageError, and then writes nothing."""
    track = tracks.named(request.folder, request.track)
    track.runs  # noqa: B018 - refuses a track that was changed
    runs = [submitted.read(folder) for folder in request.runs]
    for run in runs:
        submitted.configured(track, run)
    submitted.together(track, runs)
    for run in runs:
        submitted.plausible(track, run)
    found = entered.found_of(runs[0].record, request.code)
    vocabulary = submitted.vocabulary_of(track, runs[0])
    submitted.as_declared(track, runs, found)
    unplanned = submitted.as_planned(runs, found, vocabulary)
    code = _code(found)
    made = _entry(request, track, runs, code)
    return _written(request, track, made, runs, code) + "".join(f"\nnot compared with a plan: {reason}" for reason in unplanned)


def _code(found: Found) -> Path | None:
    """The file of a method that is not growbench's own. Raises UsageError if its code is in other files too."""
    if not found.foreign:
        return None
    own, *others = origins.files(type(found.method)).values()
    foreign = [file.name for file in others if file.parent != _methods_folder()]
    if foreign:
        raise UsageError(f"{own.name} imports {', '.join(foreign)}: the method of an entry is one file")
    if wrapped := [name for name in found.method.wraps if registry.is_foreign(name)]:
        raise UsageError(f"{own.name} wraps {', '.join(wrapped)}: the method of an entry is one file")
    small_file(own, chain.LARGEST)
    return own


def _methods_folder() -> Path:
    return next(iter(registry.built_in().values())).parent


def _entry(request: Request, track: Track, runs: Sequence[Run], code: Path | None) -> Entry:
    """The entry, which supersedes the method's last one. Raises UsageError if it holds the same runs."""
    record = runs[0].record
    before = track.current.get(record.method)
    number = before.number + 1 if before else 1
    folder = f"{tracks.ENTRIES}/{record.method}@{number}"
    place = Place(folder)
    if code:
        name, sha256 = f"{folder}/{code.name}", hashlib.sha256(small_file(code, chain.LARGEST)).hexdigest()
        cls = "".join((request.code or "").partition(":")[1:])
        place = Place(folder, name, sha256, "/".join((*track.folder.resolve().parts[-3:], name)) + cls)
    made = entered.entry(track.definition, number, runs, place, request.made_by)
    if before and before.sha256 == made.sha256:
        raise UsageError(f"these runs are those of {before.name} on {track.name} already")
    tracks.check_entry(track.definition, made, before)
    return made


def _written(request: Request, track: Track, made: Entry, runs: Sequence[Run], code: Path | None) -> str:
    """Write the entry into the track, or below --out. The chain comes last: without it, the entry is not there."""
    out = request.out / track.name if request.out else track.folder
    extended = chain.extended(track.folder, made.file, tracks.text(made).encode())
    for place in (out / tracks.ENTRIES, out / made.runs):
        if place.is_symlink():
            raise UsageError(f"{place}: must be a folder, and no link")
    if own := [run.folder for run in runs if run.folder.resolve().is_relative_to((out / made.runs).resolve())]:
        raise UsageError(f"{own[0]}: lies where the entry is laid out, which begins empty")
    try:
        _lay_out(out, made, runs, code)
        write_text(out / chain.FILE, extended)
    except OSError as error:
        _remove(out, made)
        raise UsageError(f"cannot write the entry to {out}: {error.strerror}; choose another folder with --out") from error
    supersedes = f", which supersedes {made.method}@{made.number - 1}" if made.number > 1 else ""
    quoted = shlex.quote(str(out))
    steps = [] if request.out is None else [f"copy {quoted} over {shlex.quote(str(track.folder))} in a clone of growbench"]
    steps += [
        f"growbench report {shlex.quote(str(track.folder.parents[1]))}, and look at the board",
        f"git add {shlex.quote(str(track.folder))}, commit, and open a pull request",
    ]
    return "\n".join([f"entry: {out / made.file}{supersedes}", *(f"next: {step}" for step in steps)])


def _lay_out(out: Path, made: Entry, runs: Sequence[Run], code: Path | None) -> None:
    """Write the entry, its runs and its code. What was written is removed if that fails."""
    _remove(out, made)  # of a submission that was broken off
    try:
        for run in runs:
            place = out / made.runs / run.name
            make_folder(place)
            for name in tracks.EVIDENCE:
                if (run.folder / name).is_file():
                    shutil.copyfile(run.folder / name, place / name)
        if code:
            shutil.copyfile(code, out / made.code)
        write_text(out / made.file, tracks.text(made))
    except BaseException:
        _remove(out, made)
        raise


def _remove(out: Path, made: Entry) -> None:
    shutil.rmtree(out / made.runs, ignore_errors=True)
    with suppress(OSError):
        (out / made.file).unlink()
