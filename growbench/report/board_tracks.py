"""The board of tracks: methods by tracks as a table of savings, and a page of each track with its entries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from growbench.analysis import columns, tables
from growbench.analysis.comparison import KEEPS, Comparison
from growbench.analysis.estimator import Relation, Verdict
from growbench.analysis.standing import Standing, pareto
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import counted
from growbench.registry import SCRATCH
from growbench.report import board_entries, board_front, drawing, parts, sheets
from growbench.report.board_entries import said_protocol, said_seeds
from growbench.report.cells import saving_of
from growbench.report.headline import sentences, urgent
from growbench.report.looks import looks
from growbench.report.parts import MethodName
from growbench.runs import tracks

Row = Mapping[str, Any]
FULL = 0.6  # the saving, or the loss, that has the strongest colour
STRONGEST = 38  # percent of it in the paper's colour, so that text keeps its contrast


@dataclass(frozen=True)
class Cell:
    """A method's saving on a track in one ledger. `tint`: percent of colour; negative where it costs more."""

    text: str
    tint: int
    claimed: bool
    address: str
    head: str  # of its column, readable without the others
    opens_group: bool
    seeds: str  # how many, if fewer than the track has; empty if all


@dataclass(frozen=True)
class BoardRow:
    """A method's cells, two a track; None where it is not entered."""

    method: MethodName
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class TrackLine:
    """A track as the board lists it. `newest`: no later version supersedes it."""

    name: str
    address: str
    title: str
    seeds: str
    protocol: str
    target: str
    front: Sequence[str]
    newest: bool
    single: bool  # one seed


def save(standings: Sequence[Standing], draft: Path, out: Path) -> dict[str, str]:
    """Write tables and figures to `draft`, and give the pages by their files' names: index.html, and one a track.

    `standings`: by series and version. `out`: where all files will lie.
    """
    newest = {standing.track.series: standing for standing in standings}
    shown = sorted(newest.values(), key=_weight)
    older = [standing for standing in standings if standing not in shown]
    fronts = {standing.track.name: pareto(standing) for standing in standings}
    sheets.write(_sheet(standings), draft / "board.csv")
    names = _names(shown)
    groups = {group: rows for group, rows in _groups(shown, names).items() if rows}
    pages = {
        "index.html": parts.render(
            "tracks.html",
            title=f"growbench: {counted(len(shown), 'track')}",
            tracks=[_line(each, fronts[each.track.name], each in shown) for each in [*shown, *older]],
            groups=groups,
            fewer_seeds=any(cell and cell.seeds for rows in groups.values() for row in rows for cell in row.cells),
            marks=parts.footnotes([standing.comparison for standing in shown]),
            strongest=STRONGEST,
        )
    }
    for standing in standings:
        pages[address(standing, False)] = _track_page(standing, fronts[standing.track.name], draft, out)
    return pages


def _weight(standing: Standing) -> tuple[int, int, str]:
    """Tracks with more seeds stand first, then those with more entries."""
    track = standing.track
    return -len(track.definition.seeds), -len(track.current), track.name


def address(standing: Standing, quoted: bool = True) -> str:
    """The page of a track, beside the board."""
    name = f"{standing.track.name}.html"
    return quote(name) if quoted else name


def pages_of(comparison: Comparison, out: Path) -> dict[str, str]:
    """The pages of the tracks that froze an experiment's scratch, by the tracks' names, seen from a page in `out`."""
    found = {}
    for track in tracks.over(comparison.runs[0].folder.parent):
        page = track.folder.parent / "report" / f"{track.name}.html"
        if page.is_file():
            found[track.name] = board_entries.link(page, out)
    return found


def _sheet(standings: Sequence[Standing]) -> pd.DataFrame:
    """The deciding table of savings of every track, below one another."""
    found = [standing.comparison.verdicts.assign(track=standing.track.name) for standing in standings]
    table = pd.concat(found, ignore_index=True)
    table.insert(0, "track", table.pop("track"))
    return table


def _names(standings: Sequence[Standing]) -> dict[str, MethodName]:
    """All methods, marked if they kept their source, or were a control, on any track."""
    comparisons = [standing.comparison for standing in standings]
    methods = sorted({method for found in comparisons for method in found.methods} - {SCRATCH})
    own, papers = (
        looks(methods),
        {method: name.paper for found in comparisons for method, name in parts.method_names(found).items()},
    )
    keep, controls = ({method for found in comparisons for method in found.where(mark)} for mark in ("keeps_source", "control"))
    return {
        method: MethodName(method, method + KEEPS * (method in keep), own[method], method in controls, papers[method])
        for method in methods
    }


def _groups(standings: Sequence[Standing], names: Mapping[str, MethodName]) -> dict[str, list[BoardRow]]:
    """The rows of the board: methods by how many tracks they are on, then by name; controls by themselves."""
    rows = [{row[columns.METHOD]: row for row in tables.records(standing.comparison.verdicts)} for standing in standings]
    entered = {method: sum(method in found for found in rows) for method in names}
    ordered = sorted(names, key=lambda method: (-entered[method], method))
    made = {
        method: BoardRow(names[method], [cell for place in zip(standings, rows, strict=True) for cell in _cells(*place, method)])
        for method in ordered
    }
    return {
        "Methods": [row for row in made.values() if not row.method.control],
        "Controls": [replace(row, method=replace(row.method, control=False)) for row in made.values() if row.method.control],
    }


def _cells(standing: Standing, rows: Mapping[str, Row], method: str) -> list[Cell | None]:
    row = rows.get(method)
    if row is None:
        return [None, None]
    return [
        Cell(
            text=saving_of(row, Unit.FLOPS, ledger),
            tint=_tint(row, ledger),
            claimed=row[columns.verdict(ledger)] == Verdict.SAVES,
            address=f"{address(standing)}#{quote(method)}",
            head=f"{standing.track.name}, {ledger}",
            opens_group=ledger == Ledger.REUSE,
            seeds=board_entries.fewer_seeds(standing.track, method),
        )
        for ledger in Ledger
    ]


def _tint(row: Row, ledger: Ledger) -> int:
    """How much colour a saving has; none where it is a bound, or not known."""
    found = columns.saving_in(row, Unit.FLOPS, ledger)
    if found.relation != Relation.EQUAL or not math.isfinite(found.mean):
        return 0
    return round(STRONGEST * max(-1.0, min(1.0, found.mean / FULL)))


def _line(standing: Standing, front: pd.DataFrame, newest: bool) -> TrackLine:
    track, comparison = standing.track, standing.comparison
    return TrackLine(
        name=track.name,
        address=address(standing),
        title=track.definition.title,
        seeds=said_seeds(track.definition),
        protocol=said_protocol(track.definition),
        target=f"{track.definition.target_loss:.4f}",
        front=board_front.members(front, comparison, Ledger.REUSE),
        newest=newest,
        single=len(track.definition.seeds) == 1,
    )


def _track_page(standing: Standing, front: pd.DataFrame, draft: Path, out: Path) -> str:
    track, comparison = standing.track, standing.comparison
    names = parts.method_names(comparison)
    figure = f"front-{track.name}"
    images = {figure: drawing.save(figure, front, board_front.figure(comparison), draft)}
    whole = track.place(track.definition.runs) / "report" / "index.html"
    return parts.render(
        "track.html",
        title=track.name,
        definition=track.definition,
        seeds=said_seeds(track.definition),
        protocol=said_protocol(track.definition),
        head=track.head,
        headline=[parts.unbroken(sentence) for sentence in sentences(comparison)],
        urgent=urgent(comparison),
        single=len(track.definition.seeds) == 1,
        images=images,
        figure_name=figure,
        front_said=board_front.said(front, comparison),
        entries=board_entries.entries(standing, names, out),
        earlier=board_entries.superseded(standing),
        scratch=board_entries.reproduced(track.frozen),
        scratch_command=track.definition.command(SCRATCH, track.definition.seeds, track.precision),
        results_name=track.place(track.definition.runs).name,
        own_command=track.definition.command("./mine.py", track.definition.seeds, track.precision),
        frozen=board_entries.link(track.place(track.definition.runs), out),
        controls=[name.label for name in names.values() if name.control],
        marks=parts.footnotes([comparison]),
        whole=board_entries.link(whole, out) if whole.is_file() else "",
        files={name: board_entries.link(track.folder / name, out) for name in ("track.toml", "chain.txt", "entries")},
        configuration=board_entries.configuration(track.definition),
    )
