"""Forest plots: what each method saves with its interval, or how its loss differs, the two ledgers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from growbench.analysis import columns, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.estimator import Relation, Saving, Verdict
from growbench.analysis.protocols import Protocol
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.report import inline
from growbench.report.cells import claimed, outcome
from growbench.report.drawing import (
    LEDGER_TITLES,
    NARROW,
    SMALL,
    TITLES,
    WIDE,
    Frame,
    Name,
    inches_wide,
    is_wide,
    labels,
    left_edge,
    panels,
    percent_axis,
    room,
    title,
    write_name,
)
from growbench.report.looks import CHIPS, INK, PAPER, RULE, SOFT, Look, looks
from growbench.report.ranking import FEW, Group, groups, papers

ARROWS = {Relation.BELOW: "<", Relation.ABOVE: ">"}  # markers
BESIDE = {False: 1.85, True: 2.9}  # inches right of a panel in the wide cut, without and with intervals
PITCH = {True: 0.27, False: 0.42}  # inches from row to row, in the wide and in the narrow cut


class Line(NamedTuple):
    """A method's row, or with `method` None the title of those below it."""

    text: str
    method: str | None = None
    row: Mapping[str, Any] = {}


def frame(comparison: Comparison, width: float, beside: float) -> Frame:
    """The room around the panels. `beside`: inches right of each panel in the wide cut."""
    names = max(room(labels(comparison)) - 0.1, 1.4)
    return Frame(names, beside, 0.2, below=0.5) if is_wide(width) else Frame(0.12, 0.12, below=0.5)


def geometry(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """By cut what drawing the plot anew takes, in inches. `across`: panels in a row; `right`: without intervals, and with."""
    cuts = {"wide": WIDE, "narrow": NARROW}
    found = {}
    for name, width in cuts.items():
        beside = [frame(comparison, width, inches) for inches in BESIDE.values()]
        found[name] = {
            **asdict(beside[0]), "right": [each.right for each in beside], "width": width, "pitch": PITCH[is_wide(width)],
            "across": 2 if is_wide(width) else 1,
        }  # fmt: skip
    return found


def lines(comparison: Comparison, found: Sequence[Group]) -> list[Line]:
    """From top to bottom; a single group needs no title."""
    shown = []
    for group in found:
        if len(found) > 1:
            shown.append(Line(group.title))
        shown += [Line(comparison.label(row[columns.METHOD]), row[columns.METHOD], row) for row in group.rows]
    return shown


@dataclass(frozen=True)
class Forest:
    """The rows of a forest plot at one width. Each panel is one ledger's, of one unit; rows are at 0, -1, ... from above."""

    comparison: Comparison
    lines: Sequence[Line]
    width: float
    beside: float = 2.0  # inches for what stands right of each panel in the wide cut

    @property
    def wide(self) -> bool:
        return is_wide(self.width)

    @property
    def looks(self) -> dict[str, Look]:
        return looks(self.comparison.methods)

    @property
    def papers(self) -> dict[str, str]:
        return papers(self.comparison)

    def panels(self, rows: int) -> tuple[Figure, list[Axes]]:
        """Empty panels, two in a row."""
        height = PITCH[self.wide] * (len(self.lines) + 0.2)
        figure, axes = panels(self.width, [height] * rows, 2, frame(self.comparison, self.width, self.beside))
        for place, each in enumerate(axes):
            self._frame(each, named=self.wide and place % 2 == 0)
        return figure, axes

    def _frame(self, axes: Axes, named: bool) -> None:
        axes.set_ylim(-len(self.lines) + 0.3, 0.7)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        if self.wide:
            axes.axvline(0, color=INK.light, linewidth=0.9, zorder=1)
        for place, each in enumerate(self.lines):
            if each.method is None:
                if named or not self.wide:
                    at = left_edge(axes) if self.wide else 0.0
                    _beside(axes, at, -place - 0.12, each.text, color=SOFT.light, fontsize=SMALL, fontweight="bold")
                continue
            if named or not self.wide:
                self._name(axes, place, each)
            axes.axhline(-place - (0.5 if self.wide else 0.42), color=RULE.light, linewidth=0.6, zorder=0)
            if not self.wide:  # not through the names
                axes.plot([0, 0], [-place - 0.42, -place + 0.08], color=INK.light, linewidth=0.9, zorder=1)

    def _name(self, axes: Axes, place: int, each: Line) -> None:
        assert each.method is not None
        at, height = (left_edge(axes), -place) if self.wide else (0.0, -place + 0.3)
        paper = self.papers.get(each.method)
        write_name(axes, at, height, Name(each.method, each.text, self.looks[each.method], paper))

    def interval(self, axes: Axes, place: int, found: Saving, ledger: Ledger) -> list[Any]:
        """The interval as a line, to the edge of the axes with an arrow where its end is open; on it the value."""
        method = self.lines[place].method
        assert method is not None
        look, height, (left, right) = self.looks[method], self.height(place), axes.get_xlim()
        drawn = []
        if found.has_interval:
            drawn += axes.plot(
                np.clip([found.low, found.high], left, right), [height] * 2, color=look.colour, lw=1.6, clip_on=False
            )
            for edge, arrow, beyond in ((left, "<", found.low < left), (right, ">", found.high > right)):
                if beyond:
                    drawn += axes.plot(edge, height, arrow, color=look.colour, markersize=5, clip_on=False)
        if found.known:
            dot, face = ARROWS.get(found.relation, look.marker), look.colour if ledger == Ledger.REUSE else PAPER.light
            at = np.maximum(found.mean, left)
            drawn += axes.plot(at, height, dot, color=look.colour, markerfacecolor=face, markersize=7, clip_on=False)
        return drawn

    def write(self, axes: Axes, place: int, text: str) -> list[Any]:
        """A figure and its interval: in columns of their own right of the panel, or above its right end."""
        inches = inches_wide(axes)
        if not self.wide:
            return [_beside(axes, 1 - 1.12 / inches, -place + 0.3, text, ha="right", fontsize=SMALL - 0.5)]
        value, _, interval = text.partition(" (")
        drawn = [_beside(axes, 1 + 0.72 / inches, -place, value, ha="right", fontsize=SMALL + 0.5)]
        if interval:
            drawn.append(_beside(axes, 1 + 0.78 / inches, -place, f"({interval}", color=SOFT.light, fontsize=SMALL))
        return drawn

    def height(self, place: int) -> float:
        """Where a row's interval is drawn: in the narrow cut below its name."""
        return -place if self.wide else -place - 0.15


def _beside(axes: Axes, x: float, y: float, text: str, **options: Any) -> Any:
    """Text at a height of the data and a share of the axes' width."""
    return axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", **options)


def savings(protocol: Protocol) -> Callable[[Comparison, pd.DataFrame, float], Figure]:
    """How to draw savings over scratch with their intervals: full markers with the source free, open ones with it charged.

    An arrow stands where a value is only a bound, or an interval has an open end. Beside the FLOPs is what the test says. Time is
    below them where methods are few.
    """

    def draw(comparison: Comparison, data: pd.DataFrame, width: float) -> Figure:
        found = groups(data) or [Group("", tables.records(data))]
        rows = [row for group in found for row in group.rows]
        units = comparison.units if len(rows) < FEW else [Unit.FLOPS]
        intervals = any(columns.saving_in(row, Unit.FLOPS, ledger).has_interval for row in rows for ledger in Ledger)
        forest = Forest(comparison, lines(comparison, found), width, BESIDE[intervals])
        figure, axes = forest.panels(len(units))
        own = comparison.own_savings(protocol)
        both = [(unit, ledger) for unit in units for ledger in Ledger]
        for each, (unit, ledger) in zip(axes, both, strict=True):
            _saving_limits(each, rows, own, unit)
            for place, shown in enumerate(forest.lines):
                if shown.method is not None:
                    _saving_row(each, forest, place, Cell(unit, ledger, own[own[columns.METHOD] == shown.method]))
            percent_axis(each.xaxis)
            each.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            each.set_xlabel(f"{TITLES[unit]} saved over scratch", loc="left")
            title(each, LEDGER_TITLES[ledger])
        return figure

    return draw


class Cell(NamedTuple):
    """What a row shows in one panel. `own`: what the method's seeds save by themselves."""

    unit: Unit
    ledger: Ledger
    own: pd.DataFrame


def _saving_row(axes: Axes, forest: Forest, place: int, cell: Cell) -> None:
    """A method's seeds, interval and value; right of them the figures and the verdict; its paper's claim with the source free."""
    _, method, row = forest.lines[place]
    assert method is not None
    look, height = forest.looks[method], forest.height(place)
    saving = columns.saving_in(row, cell.unit, cell.ledger)
    relations = cell.own[columns.relation(cell.unit, cell.ledger)]
    drawn = [*_seeds(axes, cell.own[columns.saving(cell.unit, cell.ledger)], relations, height, look)]
    drawn += forest.interval(axes, place, saving, cell.ledger)
    drawn += forest.write(axes, place, outcome(row, cell.unit, cell.ledger) if method != SCRATCH else "reference")
    if cell.unit == Unit.FLOPS and method != SCRATCH:
        drawn.append(_chip(axes, forest, place, claimed(row, cell.ledger)))
    claim = row.get(columns.published_saving(cell.unit), math.nan)
    if cell.ledger == Ledger.REUSE and not math.isnan(claim):
        drawn += axes.plot(claim, height, "|", color=INK.light, markersize=11, markeredgewidth=1.2)
    inline.tag(drawn, method)


def _chip(axes: Axes, forest: Forest, place: int, verdict: Verdict) -> Any:
    text, ground, ink = CHIPS[verdict]
    inches = inches_wide(axes)
    at, height = (1 + (forest.beside - 0.52) / inches, -place) if forest.wide else (1 - 0.53 / inches, -place + 0.3)
    box = {"boxstyle": "round,pad=0.3,rounding_size=0.7", "facecolor": ground.light, "edgecolor": "none"}
    return _beside(axes, at, height, text, ha="center", color=ink.light, fontsize=SMALL - 0.5, bbox=box)


def _saving_limits(axes: Axes, rows: Sequence[Mapping[str, Any]], own: pd.DataFrame, unit: Unit) -> None:
    """Savings up to 100 %; what costs more than twice scratch is drawn at the edge, with its figure beside it."""
    values = [0.0, 0.1, *(row.get(columns.published_saving(unit), np.nan) for row in rows)]
    for ledger in Ledger:
        values += [*own[columns.saving(unit, ledger)]]
        for row in rows:
            found = columns.saving_in(row, unit, ledger)
            values += [value for value in (found.mean, found.low, found.high) if np.isfinite(value)]
    low, high = max(np.nanmin(values), -1.0), min(np.nanmax(values), 1.0)
    axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _seeds(axes: Axes, savings: pd.Series, relations: pd.Series, height: float, look: Look) -> list[Any]:
    """A small dot for what each seed saves by itself, an arrow where that is only a bound."""
    left, _ = axes.get_xlim()
    drawn = []
    for saving, relation in zip(savings, relations, strict=True):
        marker, size = (ARROWS[relation], 4.5) if relation in ARROWS else ("o", 3)
        drawn += axes.plot(max(saving, left), height, marker, color=look.colour, markersize=size, alpha=0.45, clip_on=False)
    return drawn
