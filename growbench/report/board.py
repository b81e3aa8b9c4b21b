"""The board of several experiments: all savings in one table, and how often each method comes how near to the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from growbench.analysis import columns, profiles, tables
from growbench.analysis.comparison import KEEPS, Comparison
from growbench.analysis.estimator import Verdict
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import counted, ratio
from growbench.registry import SCRATCH
from growbench.report import drawing, inline, parts, sheets
from growbench.report.cells import saving_of
from growbench.report.drawing import LEDGER_TITLES
from growbench.report.looks import looks
from growbench.report.parts import MethodName, MethodRows, TableByMethod

Row = Mapping[str, Any]


def save(comparisons: Mapping[str, Comparison], pages: Mapping[str, str], out: Path) -> str:
    """Write tables and figure to `out`, and give the page. Both by experiment; `pages`: addresses of their own pages."""
    table = profiles.savings(comparisons)
    means = profiles.mean_ratios(table)
    sheets.write(table, out / "overview.csv")
    sheets.write(means, out / "mean_ratios.csv")
    names = _names(comparisons)
    shown = _columns(comparisons)
    (out / "overview.md").write_text(markdown(shown, names), encoding="utf-8", errors="backslashreplace")
    images = {}
    if table["experiment"].nunique() >= profiles.FEW:
        draw = partial(performance_profile, {method: name.label for method, name in names.items()})
        images["performance_profile"] = drawing.save("performance_profile", profiles.profiles(table), draw, out)
    return parts.render(
        "board.html",
        title="growbench: all experiments",
        experiments=[Experiment.of(name, found, pages[name]) for name, found in comparisons.items()],
        savings=_table(shown, means, names),
        marks=parts.footnotes(comparisons.values()),
        images=images,
        left_out=[name.label for method, name in names.items() if method not in profiles.everywhere(table)],
    )


@dataclass(frozen=True)
class Experiment:
    """An experiment's line: its name links to its page."""

    name: str
    address: str
    title: str
    seeds: str

    @classmethod
    def of(cls, name: str, comparison: Comparison, address: str) -> Experiment:
        seeds = {run.record.seed for run in comparison.runs}
        return cls(name, address, comparison.title, counted(len(seeds), "seed"))


def _names(comparisons: Mapping[str, Comparison]) -> dict[str, MethodName]:
    """All methods, scratch first; marked if they kept their source, or were a control, in any experiment."""
    methods = sorted({method for found in comparisons.values() for method in found.methods} - {SCRATCH})
    found = looks(methods)
    keep, controls = (
        {method for found in comparisons.values() for method in found.where(mark)} for mark in ("keeps_source", "control")
    )
    return {
        method: MethodName(method, method + KEEPS * (method in keep), found[method], method in controls)
        for method in (SCRATCH, *methods)
    }


def _columns(comparisons: Mapping[str, Comparison]) -> dict[str, dict[str, Row]]:
    """By the column's head a row of savings by method: of each experiment, and of its ladder if it has one."""
    shown: dict[str, dict[str, Row]] = {}
    for name, found in comparisons.items():
        for head, table in ((name, found.savings), (f"{name}, ladder", found.ladder)):
            if not table.empty:
                shown[head] = {row["method"]: row for row in tables.records(table)}
    return shown


def _savings(shown: Mapping[str, Mapping[str, Row]], method: str, ledger: Ledger) -> list[str]:
    """A method's saving in each column, with a star where it is claimed."""
    rows = [found.get(method) for found in shown.values()]
    stars = [row is not None and row[columns.verdict(ledger)] == Verdict.SAVES for row in rows]
    return [f"{saving_of(row, Unit.FLOPS, ledger)}{' *' * star}" for row, star in zip(rows, stars, strict=True)]


def _table(shown: Mapping[str, Mapping[str, Row]], means: pd.DataFrame, names: Mapping[str, MethodName]) -> TableByMethod:
    """Methods by experiments."""
    mean = {row["method"]: row for row in tables.records(means)}
    blocks = [
        MethodRows(
            name,
            [[ledger, *_savings(shown, method, ledger), _ratio(mean.get(method), ledger)] for ledger in Ledger],
        )
        for method, name in names.items()
    ]
    return TableByMethod(["ledger", *shown, "cost over scratch's"], blocks)


def _ratio(mean: Row | None, ledger: Ledger) -> str:
    """A method's mean; blank where no experiment has one."""
    return ratio(mean[columns.to_scratch(ledger)]) if mean else ""


def markdown(shown: Mapping[str, Mapping[str, Row]], names: Mapping[str, MethodName]) -> str:
    """The same as a Markdown table, to paste into a README."""
    rows = [
        [name.label + " (control)" * name.control, ledger, *_savings(shown, method, ledger)]
        for method, name in names.items()
        if method != SCRATCH
        for ledger in Ledger
    ]
    keeps = f"\n{parts.MARKS['keeps_source']}\n" if any(name.label.endswith(KEEPS) for name in names.values()) else ""
    star = "\n\\* p < 0.05 after Holm's correction, in the test that the method saves nothing.\n"
    return parts.markdown_table(["method", "FLOPs saved", *shown], rows, names=2) + star + keeps


def performance_profile(labels: Mapping[str, str], data: pd.DataFrame, width: float) -> Figure:
    """For each method the share of experiments in which its cost is at most tau times the best method's."""
    methods = list(data["method"].unique())
    names = [labels[method] for method in methods]
    height = drawing.high_enough(2.8 if drawing.is_wide(width) else 2.5, names)
    figure, both = drawing.panels(width, [height], 2, drawing.Frame(0.6, 0.25 + drawing.room(names), 0.4))
    drawn = looks(labels)
    for axes, ledger in zip(both, Ledger, strict=True):
        axes.set_xscale("log")
        axes.set_xlim(1, profiles.FURTHEST)
        axes.set_ylim(-0.06, 1.06)
        ends = []
        for place, method in enumerate(methods):
            steps, look = data[(data["method"] == method) & (data["ledger"] == ledger)], drawn[method]
            if steps.empty:  # the cost of its source is not known
                continue
            shares = steps["share"] + min(0.008, 0.08 / len(methods)) * (place - (len(methods) - 1) / 2)
            inline.tag(drawing.line(axes, steps["tau"], shares, look, linewidth=1.4, drawstyle="steps-post"), method)
            ends.append(drawing.End(profiles.FURTHEST, shares.iloc[-1], method, labels[method], look))
        drawing.label_ends(axes, ends)
        drawing.percent_axis(axes.yaxis)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tau, _: f"{tau:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("FLOPs until scratch is met, over the best, log scale", loc="left")
        drawing.title(axes, LEDGER_TITLES[ledger])
    return figure
