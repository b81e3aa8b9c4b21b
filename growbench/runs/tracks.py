"""Tracks: frozen runs of scratch under one configuration and protocol, and the entries that are compared with them.

A track is a folder, as results/tracks/gpt2-tiny@1, which holds
    track.toml            configuration, protocol, seeds, target, and the digests of the frozen runs, which lie elsewhere
    entries/ligo@1.toml   an entry: the origin of its method, the digests of its runs, who made them, and how
    entries/ligo@1/       its runs and its method's file, where they lie nowhere else
    chain.txt             the digests of these files, see growbench.runs.chain
Its files are never edited. ligo@2 supersedes ligo@1, gpt2-tiny@2 supersedes gpt2-tiny@1.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tomli_w

from growbench.config import plain
from growbench.config.loading import parse
from growbench.config.schema import T
from growbench.errors import UsageError, check_name, did_you_mean
from growbench.files import small_file
from growbench.planning.budgets import Budgets
from growbench.registry import SCRATCH, SOURCE
from growbench.runs import chain, curve, store
from growbench.runs.records import RunRecord
from growbench.runs.store import Run

FOLDER = "tracks"  # in results
FILE, ENTRIES = "track.toml", "entries"
VERSIONED = re.compile(r"(.+)@([1-9]\d{0,5})")
EVIDENCE = (store.RECORD, curve.FILE, store.DOCUMENTS)  # of a run: the files that its digest is made from
LARGEST = 2**26  # bytes of one of them
FEWEST_SEEDS = 3  # of an entry; all of them where a track has fewer


@dataclass(frozen=True)
class Definition:
    """The content of track.toml: what every entry shares with the frozen runs."""

    title: str
    experiment: str  # as `growbench run` takes it
    overrides: tuple[str, ...]  # its --set
    protocol: Literal["single", "ladder"]
    budgets: tuple[float, ...]  # of scratch; those up to 1 of every method
    seeds: tuple[int, ...]
    target_loss: float  # nats: the mean loss that the frozen runs of scratch end at
    frozen_by: str
    date: str  # YYYY-MM-DD
    runs: str  # the folder of the frozen runs, seen from the track's
    configuration_sha256: str
    sha256: Mapping[str, str]  # of each frozen run, by its folder's name
    configuration: Mapping[str, Any]  # all that decides the outcome of scratch's runs, as run.json has it

    def run_names(self, method: str, seeds: Sequence[int]) -> list[str]:
        """The runs that a method must have of these seeds: all its budgets."""
        shares = Budgets.split(self.budgets).of(method)
        return [store.name(method, seed, share) for seed in seeds for share in shares]

    def seeds_of(self, method: str, runs: Collection[str]) -> tuple[int, ...]:
        """The seeds of an entry with these runs: the track's first ones, so that nobody chooses among seeds.

        Raises UsageError for too few seeds, one that was passed over, and one that lacks a budget.
        """
        known = self.run_names(method, self.seeds)
        if other := [run for run in runs if run not in known]:
            raise UsageError(f"{other[0]} is none of the track's runs: {', '.join(known)}")
        given = [seed for seed in self.seeds if not set(self.run_names(method, [seed])).isdisjoint(runs)]
        fewest = min(FEWEST_SEEDS, len(self.seeds))
        seeds = self.seeds[: max(len(given), fewest)]
        if missing := [run for run in self.run_names(method, seeds) if run not in runs]:
            enough = "all seeds" if fewest == len(self.seeds) else f"the first {fewest} seeds or more"
            raise UsageError(f"an entry has {enough} of the track at every budget; missing: {', '.join(missing)}")
        return seeds

    def command(self, spec: str, seeds: Sequence[int], options: Sequence[str] = ()) -> str:
        """What runs a method on the track. `spec`: the method as `growbench run` takes it; `options`: its hyperparameters."""
        asked = ["growbench", "run", self.experiment]
        asked += [part for override in (*self.overrides, *options) for part in ("--set", override)]
        asked += ["--methods", spec, "--seeds", ",".join(map(str, seeds))]
        if self.protocol == "ladder":
            asked += ["--protocol", "ladder", "--budgets", ",".join(f"{share:.12g}" for share in self.budgets)]
        return shlex.join(asked)


@dataclass(frozen=True)
class Entry:
    """The content of an entry's file: runs of one method on a track."""

    method: str
    number: int  # 1, and one more for each that supersedes the one before
    origin: str  # of the method's code: its owner, and the digest
    hyperparameters: Mapping[str, Any]
    made_by: str
    date: str  # YYYY-MM-DD
    command: str  # that makes the runs
    runs: str  # their folder, seen from the track's
    sha256: Mapping[str, str]  # of each run, by its folder's name
    variant_of: str = ""  # the method's own name, if `method` is that of a variant
    code: str = ""  # the method's file beside the runs; empty for one of growbench's own
    code_sha256: str = ""

    @property
    def name(self) -> str:
        return f"{self.method}@{self.number}"

    @property
    def file(self) -> str:
        """Its place in the track's folder."""
        return f"{ENTRIES}/{self.name}.toml"


@dataclass(frozen=True)
class Track:
    """A track as it is stored. Its files are as they were written; so are its runs once they have been read."""

    folder: Path
    definition: Definition
    entries: Sequence[Entry] = field(default_factory=tuple)  # in the order in which they came

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> int:
        return int(self.name.rpartition("@")[2])

    @property
    def series(self) -> str:
        """The name that its versions share."""
        return self.name.rpartition("@")[0]

    @property
    def head(self) -> str:
        """The digest that names all of its files."""
        return chain.head(self.folder)

    @cached_property
    def current(self) -> dict[str, Entry]:
        """The entries that count, by method: those that none supersedes."""
        return {entry.method: entry for entry in self.entries}  # the later one stays

    @cached_property
    def runs(self) -> list[Run]:
        """The frozen runs, and those of the entries that count. Raises UsageError for one that is not as it was entered."""
        frozen = self.frozen
        return [*frozen, *(run for entry in self.current.values() for run in self.runs_of(entry))]

    @cached_property
    def frozen(self) -> list[Run]:
        """Scratch and its small models."""
        return list(self._read(self.definition.runs, self.definition.sha256))

    @cached_property
    def precision(self) -> tuple[str, ...]:
        """The --set by which a run has the precision of the frozen ones, where their [train] leaves it to the machine."""
        return in_precision(self.definition, *self.frozen)

    def seeds_of(self, entry: Entry) -> tuple[int, ...]:
        """Those that an entry has, which may be fewer than the track's."""
        return self.definition.seeds_of(entry.method, entry.sha256)

    def runs_of(self, entry: Entry) -> list[Run]:
        """An entry's. Raises UsageError for one that is not as it was entered, and if the method's file is not."""
        if entry.code and hashlib.sha256(small_file(self.place(entry.code), chain.LARGEST)).hexdigest() != entry.code_sha256:
            raise UsageError(f"{self.folder / entry.code} is not the code that {entry.name} was entered with: its sha256 differs")
        return list(self._read(entry.runs, entry.sha256))

    def place(self, named: str) -> Path:
        """What a file of the track names. Raises UsageError if it is not within the results that the track belongs to."""
        root = self.folder.resolve().parents[1]
        place = (self.folder / named).resolve()
        if not place.is_relative_to(root):
            raise UsageError(f"{self.folder}: {named!r} leads out of {root}")
        return place

    def _read(self, runs: str, digests: Mapping[str, str]) -> Iterator[Run]:
        place = self.place(runs)
        for name, digest in digests.items():
            check_name("a run", name)
            if digest_of(place / name) != digest:
                raise UsageError(f"{place / name} is not the run that {self.name} holds: its sha256 differs")
            run = store.load(place / name)
            if run is None or not run.finished or run.name != name:
                raise UsageError(f"{place / name} is no finished run of this name, as {self.name} demands")
            yield as_stored(run)


def in_precision(definition: Definition, *runs: Run) -> tuple[str, ...]:
    """The --set by which other runs on a track have the precision of these; none if the track has its own, or these differ."""
    found = {run.record.hardware.precision for run in runs}
    free = definition.configuration.get("train", {}).get("precision") == "auto"
    return tuple(f"machine.precision={each}" for each in found - {""}) if free and len(found) == 1 else ()


def as_stored(run: Run) -> Run:
    """A run with the origin and the configuration that it was stored with, whatever the stamp of a reproduction says."""
    return replace(run, record=RunRecord.read((run.folder / store.RECORD).read_text(encoding="utf-8")))


def digest_of(run: Path) -> str:
    """The sha256 of all that a run's folder says of it. Raises UsageError for links and for files that are too large."""
    if run.is_symlink():
        raise UsageError(f"{run}: must be a folder, and no link")
    lines = []
    for name in EVIDENCE:
        if name != store.DOCUMENTS or os.path.lexists(run / name):
            lines.append(f"{name} {hashlib.sha256(small_file(run / name, LARGEST)).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_of_configuration(configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def text(content: Definition | Entry) -> str:
    """As TOML."""
    return tomli_w.dumps(asdict(content), multiline_strings=False)


def load(folder: Path) -> Track:
    """The track in a folder, its runs still unread. Raises UsageError for what is none, and for files that were changed."""
    if not VERSIONED.fullmatch(folder.name):
        raise UsageError(f"{folder}: a track's folder is named NAME@VERSION, as gpt2-tiny@1")
    if (folder / ENTRIES).is_symlink():
        raise UsageError(f"{folder / ENTRIES}: must be a folder, and no link")
    definition, *entries = chain.contents(folder).items()
    track = Track(folder, _parsed(Definition, folder, *definition), [_parsed(Entry, folder, *entry) for entry in entries])
    if digest_of_configuration(track.definition.configuration) != track.definition.configuration_sha256:
        raise UsageError(f"{folder / FILE}: the configuration has another sha256 than configuration_sha256")
    before: dict[str, Entry] = {}  # of each method
    for entry, (name, _) in zip(track.entries, entries, strict=True):
        try:
            check_name("a method", entry.method)
            if entry.file != name:
                raise UsageError(f"holds {entry.name}; the file has the entry's name")
            check_entry(track.definition, entry, before.get(entry.method))
        except UsageError as error:
            raise UsageError(f"{folder / name}: {error}") from None
        before[entry.method] = entry
    return track


def check_entry(definition: Definition, entry: Entry, before: Entry | None) -> None:
    """Raise UsageError unless the entry may follow `before`, the last one of its method."""
    if entry.method in (SCRATCH, SOURCE):
        raise UsageError(f"{entry.method} belongs to the frozen runs")
    if entry.number != (before.number + 1 if before else 1):
        raise UsageError("the numbers of a method's entries rise by one")
    seeds = definition.seeds_of(entry.method, entry.sha256)
    if before and len(seeds) < (needed := len(definition.seeds_of(before.method, before.sha256))):
        raise UsageError(f"{before.name} has {needed} seeds: an entry that supersedes it has as many, or more")


def load_all(folder: Path) -> list[Track]:
    """The tracks in a folder, by name and version. Raises UsageError if one of them is not as it was written."""
    places = [path.parent for path in folder.glob(f"*/{FILE}") if VERSIONED.fullmatch(path.parent.name)]
    return sorted(map(load, places), key=lambda track: (track.series, track.version))


def are_in(folder: Path) -> bool:
    """Whether a folder holds tracks."""
    return any(VERSIONED.fullmatch(path.parent.name) for path in folder.glob(f"*/{FILE}"))


def over(runs: Path) -> list[Track]:
    """The tracks that froze the runs in a folder. One that was changed is named and left out."""
    found = []
    for folder in (above / FOLDER for above in runs.resolve().parents[:2] if are_in(above / FOLDER)):
        for file in sorted(folder.glob(f"*@*/{FILE}")):
            try:
                track = load(file.parent)
                found += [track] if track.place(track.definition.runs) == runs.resolve() else []
            except UsageError as error:
                curve.say_once(f"left out: {error}")
    return found


def named(folder: Path, name: str) -> Track:
    """The track of that name. Raises UsageError if there is none."""
    known = [path.parent.name for path in folder.glob(f"*/{FILE}")]
    if name not in known:
        raise UsageError(f"no track {name!r} in {folder}: {did_you_mean(name, known)}")
    return load(folder / name)


def _parsed(cls: type[T], folder: Path, name: str, content: bytes) -> T:
    try:
        return parse(cls, plain.from_toml(content.decode("utf-8")))
    except (UsageError, ValueError) as error:
        raise UsageError(f"{folder / name}: {error}") from None
