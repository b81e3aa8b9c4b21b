"""The page of one experiment, and its savings as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Unit
from growbench.formatting import counted, settings
from growbench.registry import SCRATCH
from growbench.report import parts, run_tables, savings_tables
from growbench.report.drawing import Cuts
from growbench.report.equal_cost import at_equal_cost
from growbench.report.headline import sentences, urgent
from growbench.report.live import layer
from growbench.report.ranking import named
from growbench.report.run_tables import distinct
from growbench.report.words import described
from growbench.runs.records import RunError
from growbench.runs.store import Run


def html(
    comparison: Comparison, images: Mapping[str, Cuts], home: str = "", tracks: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The whole page. `images`: by the plot's name. `home`, `tracks`: addresses of the board, and of tracks by name, if any."""
    unfinished = [run for run in (*comparison.runs, *comparison.shorter) if not run.finished]
    return parts.render(
        "experiment.html",
        title=comparison.title,
        setting=_setting(comparison),
        home=home,
        tracks=tracks,
        contents=_contents(comparison, images, bool(unfinished)),
        headline=[parts.unbroken(sentence) for sentence in sentences(comparison)],
        urgent=urgent(comparison),
        uncontrolled=len(comparison.methods) > 1 and not comparison.where("control"),
        deciding="savings" if comparison.ladder.empty else "ladder_savings",
        words=described(comparison),
        unnamed=[comparison.label(method) for method in comparison.methods if method not in named(comparison)],
        live=layer(comparison),
        savings=savings_tables.SavingsTable(comparison).grouped(),
        target=f"{comparison.target_loss:.4f}",
        target_given=comparison.target_loss_given,
        marks=parts.footnotes([comparison]),
        notes=[note for note in comparison.notes if note not in urgent(comparison)],
        ladder=savings_tables.ladder(comparison),
        images=images,
        claims=comparison.savings[[columns.published_saving(unit) for unit in Unit]].notna().any(axis=None),
        ladder_loss=f"{comparison.ladder_loss:.3f}",
        equal_cost=at_equal_cost(comparison),
        papers=savings_tables.papers(comparison),
        tests=savings_tables.tests(comparison),
        growth=run_tables.growth(comparison),
        phases=run_tables.phases(comparison),
        failures=[Failure.of(run) for run in unfinished],
        runs=run_tables.runs(comparison),
        methods=run_tables.methods(comparison),
        tuning=run_tables.tuning(comparison),
        provenance=_provenance(comparison.runs),
    )


def _contents(comparison: Comparison, images: Mapping[str, Cuts], failed: bool) -> dict[str, str]:
    """The sections by their ids, in the page's order."""
    shown = {
        "verdict": ("Verdict", True),
        "curves": ("Curves", "loss_vs_flops" in images),
        "ladder": ("Ladder", not comparison.ladder.empty),
        "cost": ("Cost", "cost_breakdown" in images),
        "failures": ("Failures", failed),
        "behind": ("Tables and details", True),
        "reading": ("How to read this", True),
    }
    return {id: name for id, (name, there) in shown.items() if there}


def markdown(comparison: Comparison) -> str:
    """The savings as a Markdown table, to paste into a README."""
    keeps = f" {parts.MARKS['keeps_source']}" if comparison.where("keeps_source") else ""
    whose = "Target loss" if comparison.target_loss_given else "Scratch's curves end at"
    loss = f"{whose} {comparison.target_loss:.4f}."
    below = " ".join(
        [
            f"{loss} In brackets: 95 % intervals over seeds, p-values by Holm's procedure.{keeps}",
            *map(parts.markdown_text, urgent(comparison)),
        ]
    )
    return f"{savings_tables.SavingsTable(comparison).markdown()}\n{below}\n"


def _setting(comparison: Comparison) -> str:
    seeds = len({run.record.seed for run in comparison.runs})
    machines = distinct(_machine(run) for run in comparison.runs)
    controls = len(comparison.where("control"))
    methods = counted(len(set(comparison.methods) - {SCRATCH}) - controls, "method")
    others = counted(controls, "control") if controls else ""
    experiment = comparison.runs[0].record.experiment
    return " · ".join(filter(None, (experiment, methods, others, counted(seeds, "seed"), machines)))


def _machine(run: Run) -> str:
    hardware = run.record.hardware
    details = [hardware.device, counted(hardware.threads, "thread"), hardware.precision, hardware.processes]
    if hardware.micro_batch:
        details.append(f"micro-batches of {hardware.micro_batch}")
    if hardware.compile != "auto":
        details.append(f"compile {hardware.compile}")
    if hardware.at_once > 1:
        details.append(f"{hardware.at_once} runs at once")
    if hardware.earlier:
        details.append(f"begun on {hardware.earlier}")
    return f"{hardware.name} ({', '.join(filter(None, details))})"


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and what is known about it."""

    run: str
    said: str
    traceback: str

    @classmethod
    def of(cls, run: Run) -> Failure:
        error = run.record.error or RunError()
        where = "" if error.step is None else f" at step {error.step}"
        message = f": {error.message}" if error.message else ""
        return cls(run.name, run.record.status + where + message, error.traceback)


def _provenance(runs: Sequence[Run]) -> dict[str, str]:
    """Hardware, versions, data, parameters and the experiment itself; one line each, several values where the runs differ."""
    rows = {
        "hardware": distinct(_machine(run) for run in runs),
        "versions": distinct(settings(run.record.versions) for run in runs),
        "data": distinct(settings(run.record.data) for run in runs),
        "target parameters": distinct(f"{run.record.parameters:,}" for run in runs if run.record.parameters),
    }
    for key, value in runs[0].record.config.experiment.items():
        rows[key.replace("_", " ")] = settings(value) if isinstance(value, Mapping) else str(value)
    return rows
