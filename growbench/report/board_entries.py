"""What a track's page says of its entries: who made them, with which command and code, and who reproduced them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from growbench.analysis import columns, tables
from growbench.analysis.selection import made_by_earlier_code
from growbench.analysis.standing import Standing
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import counted, setting
from growbench.report.cells import Judged, judged, saving_of
from growbench.report.parts import MethodName
from growbench.report.ranking import groups
from growbench.runs.store import Run
from growbench.runs.tracks import Definition, Entry, Track

COMMIT = 7  # digits of one


@dataclass(frozen=True)
class EntryLine:
    """An entry that counts, as its track's page shows it."""

    method: MethodName
    entry: Entry
    savings: Mapping[str, str]  # by ledger
    verdicts: Mapping[str, Judged]  # by ledger
    loss: str
    code: str  # whose it is, or whether it is today's
    code_address: str  # of a method's file that lies with the entry
    runs_address: str
    hyperparameters: str
    reproduced: str
    seeds: str  # how many, if fewer than the track has; empty if all


def entries(standing: Standing, names: Mapping[str, MethodName], out: Path) -> list[EntryLine]:
    """In the order of the ranking, controls last."""
    track, comparison = standing.track, standing.comparison
    rows = [row for group in groups(comparison.verdicts) for row in group.rows]
    finals = {row[columns.METHOD]: row["final_val_loss"] for row in tables.records(comparison.savings)}
    lines = []
    for row in rows:
        method = row[columns.METHOD]
        entry = track.current[method]
        runs = track.runs_of(entry)
        lines.append(
            EntryLine(
                method=names[method],
                entry=entry,
                savings={ledger: saving_of(row, Unit.FLOPS, ledger) for ledger in Ledger},
                verdicts={ledger: judged(row, ledger) for ledger in Ledger},
                loss=f"{finals[method]:.4f}",
                code=_code(entry, runs),
                code_address=link(track.place(entry.code), out) if entry.code else "",
                runs_address=link(track.place(entry.runs), out),
                hyperparameters=", ".join(f"{key} = {setting(value)}" for key, value in entry.hyperparameters.items()) or "none",
                reproduced=reproduced(runs),
                seeds=fewer_seeds(track, method),
            )
        )
    return lines


def _code(entry: Entry, runs: Sequence[Run]) -> str:
    if entry.code:
        return "its own file"
    return "earlier than today's" if made_by_earlier_code(runs) else "today's"


def superseded(standing: Standing) -> list[Entry]:
    """The entries that later ones supersede."""
    return [entry for entry in standing.track.entries if entry is not standing.track.current[entry.method]]


def reproduced(runs: Sequence[Run]) -> str:
    """By whom, as far as stamps beside the runs say it."""
    stamps = [run.stamp for run in runs if run.stamp]
    if not stamps:
        return "not yet"
    last = max(stamps, key=lambda stamp: stamp.date)
    exact = all(stamp.largest_difference == 0 for stamp in stamps)
    commit = last.versions.get("commit", "unknown")[:COMMIT]
    how = "bit-identical" if exact else f"losses within {max(stamp.largest_difference for stamp in stamps):.2g}"
    return f"{len(stamps)} of {counted(len(runs), 'run')}, {how}: growbench {commit} on {last.hardware.name}, {last.date}"


def fewer_seeds(track: Track, method: str) -> str:
    """How many of the track's seeds a method has; empty if all."""
    own, all_seeds = len(track.seeds_of(track.current[method])), len(track.definition.seeds)
    return f"{own} of {all_seeds} seeds" if own < all_seeds else ""


def said_seeds(definition: Definition) -> str:
    number = len(definition.seeds)
    return "one seed, no test" if number == 1 else counted(number, "seed")


def said_protocol(definition: Definition) -> str:
    return f"ladder of {len(definition.budgets)} budgets" if definition.protocol == "ladder" else "single protocol"


def configuration(definition: Definition) -> str:
    """As JSON, a key a line."""
    return json.dumps(definition.configuration, indent=1)


def link(path: Path, out: Path) -> str:
    """The address of a file, seen from a page in `out`."""
    return quote(os.fsencode(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()))
