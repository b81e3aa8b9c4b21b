"""The page of several experiments: all savings in one table, and how often each method comes how near to the best."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from growbench.analysis import profiles, tables
from growbench.analysis.comparison import KEEPS, Comparison
from growbench.costs.accounts import LEDGERS
from growbench.formatting import counted, ratio
from growbench.registry import SCRATCH
from growbench.report import drawing, parts
from growbench.report.cells import saving_of
from growbench.report.drawing import LEDGER_TITLES, WIDE

Row = Mapping[str, Any]

READING = """
<p class="soft">FLOPs saved against scratch at its full budget, at the target loss of each experiment; in brackets, 95 %
intervals over seeds. Reuse: the small model is free. Build: its training is charged. Ladder: of runs that each end at the target,
with a budget and a learning-rate decay of their own; otherwise the cost is read off one run's curve. Last, the geometric mean
over a method's experiments of that cost over scratch's: below 1 it saves; a dash where it missed a target.</p>
"""

PROFILE = (
    "Near the best, how often",
    "The share of experiments in which a method meets the target at no more than so many times the cost of the cheapest method "
    "there, scratch included at its full budget. High on the left: often the best. A method that missed a target stays below "
    "100 %. Lines that would hide one another are drawn side by side.",
)


def save(comparisons: Mapping[str, Comparison], pages: Mapping[str, str], out: Path) -> str:
    """Write tables and figure to `out`, and give the page. Both by experiment; `pages`: addresses of their own pages."""
    table = profiles.savings(comparisons)
    means = profiles.mean_ratios(table)
    table.to_csv(out / "overview.csv", index=False)
    means.to_csv(out / "mean_ratios.csv", index=False)
    labels = _labels(comparisons)
    controls = {method for found in comparisons.values() for method in found.where("control")}
    columns = _columns(comparisons)
    (out / "overview.md").write_text(markdown(columns, labels, controls), encoding="utf-8")
    body = f"""<h1>{counted(len(comparisons), "experiment")}</h1>
{_links(comparisons, pages)}
{READING}
{_table(columns, means, labels, controls)}
{parts.footnotes(comparisons.values())}
{_profile(table, labels, out)}"""
    return parts.document("growbench: all experiments", body)


def _labels(comparisons: Mapping[str, Comparison]) -> dict[str, str]:
    """All methods, scratch first, as a reader sees them; with a dagger if they kept their source in any experiment."""
    methods = sorted({method for found in comparisons.values() for method in found.methods} - {SCRATCH})
    keep = {method for found in comparisons.values() for method in found.where("keeps_source")}
    return {method: method + KEEPS * (method in keep) for method in (SCRATCH, *methods)}


def _links(comparisons: Mapping[str, Comparison], pages: Mapping[str, str]) -> str:
    rows = ""
    for name, found in comparisons.items():
        seeds = counted(len({run.record.seed for run in found.runs}), "seed")
        rows += f'<li><a href="{escape(pages[name])}">{escape(name)}</a>: {escape(found.title)}, {seeds}</li>'
    return f"<ul>{rows}</ul>"


def _columns(comparisons: Mapping[str, Comparison]) -> dict[str, dict[str, Row]]:
    """By the column's head a row of savings by method: of each experiment, and of its ladder if it has one."""
    columns: dict[str, dict[str, Row]] = {}
    for name, found in comparisons.items():
        for head, table in ((name, found.savings), (f"{name}, ladder", found.ladder)):
            if not table.empty:
                columns[head] = {row["method"]: row for row in tables.records(table)}
    return columns


def _savings(columns: Mapping[str, Mapping[str, Row]], method: str, ledger: str) -> list[str]:
    return [saving_of(rows.get(method), "flops", ledger) for rows in columns.values()]


def _table(
    columns: Mapping[str, Mapping[str, Row]], means: pd.DataFrame, labels: Mapping[str, str], controls: Collection[str]
) -> str:
    """Methods by experiments."""
    looks = drawing.looks(labels)
    mean = {row["method"]: row for row in tables.records(means)}
    methods = []
    for method in labels:
        rows = [[ledger, *_savings(columns, method, ledger), ratio(mean[method][f"to_scratch_{ledger}"])] for ledger in LEDGERS]
        methods.append((parts.method_name(labels[method], looks[method], method in controls), rows))
    return parts.table_by_method("overview", ("ledger", *columns, "cost over scratch's"), methods)


def markdown(columns: Mapping[str, Mapping[str, Row]], labels: Mapping[str, str], controls: Collection[str]) -> str:
    """The same as a Markdown table, to paste into a README."""
    rows = [
        [labels[method] + " (control)" * (method in controls), ledger, *_savings(columns, method, ledger)]
        for method in labels
        if method != SCRATCH
        for ledger in LEDGERS
    ]
    keeps = f"\n{parts.MARKS['keeps_source']}\n" if any(label.endswith(KEEPS) for label in labels.values()) else ""
    return parts.markdown_table(["method", "FLOPs saved", *columns], rows, names=2) + keeps


def _profile(table: pd.DataFrame, labels: Mapping[str, str], out: Path) -> str:
    """The performance profile, where there are experiments enough."""
    if table["experiment"].nunique() < profiles.FEW:
        return ""
    cuts = drawing.save("performance_profile", profiles.profiles(table), partial(performance_profile, labels), out)
    left_out = [labels[method] for method in labels if method not in profiles.everywhere(table)]
    note = f" Not run in every experiment, hence not shown: {escape(', '.join(left_out))}." if left_out else ""
    return parts.figure("performance_profile", PROFILE[0], PROFILE[1] + note, cuts)


def performance_profile(labels: Mapping[str, str], data: pd.DataFrame, width: float) -> Figure:
    """For each method the share of experiments in which its cost is at most tau times the best method's."""
    methods = list(data["method"].unique())
    names = [labels[method] for method in methods]
    height = drawing.high_enough(2.8 if width == WIDE else 2.5, names)
    figure, both = drawing.panels(width, [height] * 2, 0.75, 0.25 + drawing.room(names))
    looks = drawing.looks(labels)
    for axes, ledger in zip(both, LEDGERS, strict=True):
        axes.set_xscale("log")
        axes.set_xlim(1, profiles.FURTHEST)
        axes.set_ylim(-0.06, 1.06)
        ends = []
        for place, method in enumerate(methods):
            steps, look = data[(data["method"] == method) & (data["ledger"] == ledger)], looks[method]
            if steps.empty:  # the cost of its source is not known
                continue
            shares = steps["share"] + min(0.008, 0.08 / len(methods)) * (place - (len(methods) - 1) / 2)
            axes.plot(steps["tau"], shares, look.line, color=look.colour, linewidth=1.4, markersize=4, drawstyle="steps-post")
            ends.append((profiles.FURTHEST, shares.iloc[-1], labels[method], look))
        drawing.label_ends(axes, ends)
        drawing.percent_axis(axes.yaxis)
        axes.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tau, _: f"{tau:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("FLOPs to target over the best, log scale", loc="left")
        drawing.title(axes, "Share of experiments, " + LEDGER_TITLES[ledger])
    return figure
