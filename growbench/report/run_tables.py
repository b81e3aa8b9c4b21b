"""The tables that say what the runs did: growth, phases, each run's figures, methods as run, tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from growbench.analysis import pace, savings, tables
from growbench.analysis.comparison import Comparison
from growbench.analysis.pace import Pace, Place
from growbench.console import say
from growbench.costs.accounts import CHARGED, UNCHARGED, Account, Ledger, Unit
from growbench.formatting import NONE, Scale, data_size, digits, percent, settings
from growbench.report import sheets
from growbench.report.cells import cost_scale
from growbench.report.parts import MethodRows, PlainTable, TableByMethod, method_names
from growbench.runs import store
from growbench.runs.records import RunRecord
from growbench.runs.store import Run


def growth(comparison: Comparison) -> TableByMethod | None:
    """What growth did to each model, and how long it took to recover; None where no phase took over a model."""
    table = tables.growth(comparison)
    if table.empty:
        return None
    table["place"] = table.groupby(["method", "seed"]).cumcount()
    names = method_names(comparison)
    rows = {
        str(method): [_growth_cells(seeds) for _, seeds in rows.groupby("place")]
        for method, rows in table.groupby("method", sort=False)
    }
    heads = {head: any(cells[head] for found in rows.values() for cells in found) for head in GROWTH_HEADS}
    shown = [head for head, filled in heads.items() if filled]
    blocks = [MethodRows(names[method], [[cells[head] for head in shown] for cells in found]) for method, found in rows.items()]
    return TableByMethod(shown, blocks)


GROWTH_HEADS = ("phase", "loss before → after", "output change", "steps to recover", "duplicates", "optimizer")


def _growth_cells(seeds: pd.DataFrame) -> dict[str, str]:
    """One phase's row by head: figures averaged over seeds, blank where nothing was recorded."""
    mean = {key: pd.to_numeric(seeds[key]).mean() for key in tables.GROWTH if key != "optimizer"}
    loss = f"{mean['loss_before']:.3f} → {mean['loss_after']:.3f}"
    duplicates = f"{percent(mean['duplicates'])} → {percent(mean['duplicates_end'])}"
    cells = (
        str(seeds["phase"].iloc[0]),
        "" if math.isnan(mean["loss_before"]) else loss,
        _change(mean["output_change"]),
        _recovered(pd.to_numeric(seeds["steps_to_recover"])),
        "" if math.isnan(mean["duplicates"]) else duplicates,
        distinct(seeds["optimizer"].dropna()),
    )
    return dict(zip(GROWTH_HEADS, cells, strict=True))


def _change(change: float) -> str:
    """A relative change of outputs; blank where there was nothing to compare with."""
    return "" if math.isnan(change) else digits(change) if change >= 0.001 else "< 0.001"


def _recovered(steps: pd.Series) -> str:
    """The mean number of steps until the loss recovered, or in how many seeds it did; blank where that was not recorded."""
    mean = steps.mean()
    return (
        "" if math.isnan(mean) else f"{NONE} ({(steps < math.inf).sum()} of {len(steps)})" if math.isinf(mean) else f"{mean:.0f}"
    )


WORK = {
    Account.TRAIN: "train",
    Account.OPERATOR: "operator",
    Account.TEACHER: "teacher",
    Account.OVERHEAD: "teacher, not charged",
    Account.OPTIMIZER: "optimizer, not charged",
}


def phases(comparison: Comparison) -> TableByMethod | None:
    """What each method did in order, and what a step of it cost beside a step of scratch; None where no run recorded that."""
    table = tables.phases(comparison)
    if table["flops_per_step"].isna().all():
        return None
    scale = cost_scale(table["flops_per_step"].max(), Unit.FLOPS)
    accounts = [account for account in WORK if account in table and (table[account] > 0).any()]
    paces = pace.paces(comparison.measured)
    heads = ["phase", "steps", f"{scale.name} per step", "of scratch's step", *(WORK[account] for account in accounts)]
    names = method_names(comparison)
    blocks = [
        MethodRows(
            names[str(method)],
            [
                [*_phase_cells(row, accounts, scale), *_pace_cells(paces.get(Place(str(method), number)), bool(paces))]
                for number, row in enumerate(tables.records(rows))
            ],
        )
        for method, rows in table.groupby("method", sort=False)
    ]
    return TableByMethod([*heads, *(PACE_HEADS if paces else ())], blocks)


def _phase_cells(row: Mapping[str, Any], accounts: Sequence[Account], scale: Scale) -> list[str]:
    share = row["share_of_scratch"]
    shares = [share, *(share * row[account] / row["flops_per_step"] for account in accounts)]
    shown = (digits(share) if share > 0 else "" for share in shares)
    return [str(row["phase"]), f"{row['steps']:,}", scale.text(row["flops_per_step"]), *shown]


PACE_HEADS = ("time for a FLOP", "CPU time for a FLOP")  # of scratch's


def _pace_cells(found: Pace | None, shown: bool) -> list[str]:
    """Blank where it is not known."""
    ratios = (found.seconds, found.cpu_seconds) if found else (math.nan, math.nan)
    return ["" if math.isnan(ratio) else digits(ratio) for ratio in ratios] if shown else []


def runs(comparison: Comparison) -> PlainTable:
    """Each run's loss, size, times and memory."""
    sizes = ("steps", "tokens", "tokens / parameter")
    times = ("seconds", "nominal seconds", *UNCHARGED)
    heads = ("run", "status", "final loss", "test loss", *sizes, *times, "energy", "peak memory")
    return PlainTable(heads, [_run_cells(run) for run in comparison.measured])


def _run_cells(run: Run) -> list[str]:
    record = run.record
    loss, memory = record.final_val_loss, record.peak_memory_bytes
    uncharged = (record.cost.of(Unit.SECONDS, account) for account in UNCHARGED)
    times = (run.cost(Unit.SECONDS, Ledger.REUSE), savings.nominal_seconds(run), *uncharged)
    return [
        run.name,
        record.status,
        *(NONE if each is None else f"{each:.4f}" for each in (loss, record.final_test_loss)),
        f"{record.steps:,}",
        f"{record.tokens:,}",
        digits(savings.tokens_per_parameter(run)),
        *(digits(time) for time in times),
        _energy(record),
        data_size(memory) if memory else NONE,
    ]


def _energy(record: RunRecord) -> str:
    """What is charged of a run's energy, by part of the machine."""
    measured = {
        part: sum(kwh for account, kwh in spent.items() if account in CHARGED) for part, spent in record.energy_kwh.items()
    }
    return ", ".join(f"{digits(kwh)} kWh {part.upper()}" for part, kwh in measured.items()) or "not measured"


def methods(comparison: Comparison) -> PlainTable:
    """Each method's hyperparameters and where it comes from; a variant comes from its method."""
    first = {run.record.method: run.record for run in reversed(comparison.runs)}
    rows = [
        (
            method,
            settings(record.config.method),
            f"{record.variant_of} of {record.origin}" if record.variant_of else record.origin,
        )
        for method, record in ((method, first[method]) for method in comparison.methods)
    ]
    return PlainTable(("method", "hyperparameters", "from"), rows, sentences=("hyperparameters", "from"))


@dataclass(frozen=True)
class TuningShown:
    """Which methods ran with tuned values, and the trials that lie beside the runs."""

    tuned: Sequence[str]
    untuned: Sequence[str]
    elsewhere: Sequence[str] = ()  # tuned, but without a trial here
    trials: PlainTable | None = None
    seeds: str = ""  # of the trials


def tuning(comparison: Comparison) -> TuningShown | None:
    """None where nothing was tuned, here or elsewhere."""
    values = {run.record.method: run.record.config.method for run in comparison.runs}
    tuned = [method for method in comparison.methods if {"train.lr", "train.warmup"} <= values[method].keys()]
    untuned = [method for method in comparison.methods if method not in tuned]
    file = comparison.runs[0].folder.parent / store.TUNING / "trials.csv"
    if not file.is_file():
        return TuningShown(tuned, untuned) if tuned else None
    try:
        trials = sheets.read(file)
        elsewhere = [method for method in tuned if method not in set(trials["method"])]
        return TuningShown(tuned, untuned, elsewhere, _trials(trials), trials["seeds"].iloc[0].replace(" ", ", "))
    except (OSError, ValueError, LookupError) as error:
        say(f"{file} cannot be read, and is left out: {' '.join(str(error).split())}")
        return TuningShown(tuned, untuned)


def _trials(trials: pd.DataFrame) -> PlainTable:
    scale = cost_scale(trials["flops"].astype(float).max(), Unit.FLOPS)
    rows = [_trial_cells(row, scale) for row in tables.records(trials)]
    return PlainTable(("method", "trial", "final loss", scale.name, "values"), rows, sentences=("values",))


def _trial_cells(row: Mapping[str, Any], scale: Scale) -> list[str]:
    """A trial as trials.csv has it, its values under the names that --set knows."""
    values = {key: text for key, text in row.items() if "." in key and text}
    shown = settings({key: int(text) if text.isdigit() else float(text) for key, text in values.items()})
    finished = row["status"] == "finished"
    loss, note = (f"{float(row['loss']):.4f}", "") if finished else ("failed", f"; {row['error']}")
    return [row["method"], row["trial"], loss, scale.text(float(row["flops"])), shown + note]


def distinct(texts: Iterable[str]) -> str:
    """What was said, each thing once."""
    return "; ".join(dict.fromkeys(texts))
