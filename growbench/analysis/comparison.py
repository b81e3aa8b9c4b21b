"""From stored runs to verdicts: what each method saves over scratch by each protocol, and what must be known beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from growbench import registry
from growbench.analysis import columns, equal_cost, ladder, pace, sampling
from growbench.analysis.equal_cost import EqualCost
from growbench.analysis.notes import Noted
from growbench.analysis.protocols import Protocol, Reading
from growbench.analysis.savings import beside, outcomes, own_savings, published, savings
from growbench.analysis.seconds import choose, references_of
from growbench.analysis.selection import comparable, marks, target_of
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError
from growbench.registry import SCRATCH
from growbench.runs import store
from growbench.runs.step_seconds import StepSeconds
from growbench.runs.store import Run

KEEPS = "†"  # follows the name of a method that keeps its source


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows. FLOPs: multiply-add = 2; savings: shares of scratch's cost, NaN where there is none.

    outcomes: one row a run: what it paid until it met scratch (inf: it did not) and what that saves, by unit and ledger.
    savings: one row a method, the columns of savings.csv. ladder: the same, by the ladder protocol.
    """

    title: str
    target_loss: float  # nats, of curves
    target_loss_given: bool  # by hand; otherwise the mean loss that scratch's curves end at
    runs: list[Run]  # at the full budget, with the seconds that compare
    measured: list[Run]  # the same, with the seconds that they measured
    left_out: list[Run]
    methods: list[str]  # scratch first, then by name
    readings: Mapping[Protocol, Reading]  # the runs, read by each protocol
    outcomes: pd.DataFrame
    savings: pd.DataFrame
    notes: list[str]
    shorter: list[Run] = field(default_factory=list)  # those at another than the full budget
    rungs: pd.DataFrame = field(default_factory=pd.DataFrame)
    ladder: pd.DataFrame = field(default_factory=pd.DataFrame)
    equal_cost: list[EqualCost] = field(default_factory=list)
    price: float | None = None  # of an hour

    def at_price(self, price: float) -> Comparison:
        """The same with what each method's seconds cost until it meets scratch. `price`: of an hour, in any currency."""
        if Unit.SECONDS not in self.units:
            return replace(self, notes=[*self.notes, "No seconds compare, so no price can be given."])
        priced = [_priced(table, price) for table in (self.savings, self.ladder)]
        return replace(self, savings=priced[0], ladder=priced[1], price=price)

    @property
    def verdicts(self) -> pd.DataFrame:
        """The table that decides: that of the ladder, which compares complete runs, where there are methods on it."""
        return self.savings if self.ladder.empty else self.ladder

    @property
    def single(self) -> Reading:
        return self.readings[Protocol.SINGLE]

    @property
    def ladder_loss(self) -> float:
        """The final loss that runs of the ladder have to meet, the mean over seeds (nats): on the whole validation split."""
        losses = [reference.loss for reference in self.readings[Protocol.LADDER].references[Unit.FLOPS].values()]
        return math.fsum(losses) / len(losses) if losses else self.target_loss

    def own_savings(self, protocol: Protocol) -> pd.DataFrame:
        """What each seed of each method saves by itself: one row a method and seed."""
        return own_savings(self.readings[protocol], [method for method in self.methods if method != SCRATCH])

    def of(self, method: str, finished: bool = True) -> list[Run]:
        """The compared runs of one method, by seed: the finished ones, or the others."""
        return [run for run in self.runs if run.record.method == method and run.finished == finished]

    @property
    def units(self) -> list[Unit]:
        """In what costs compare: FLOPs, and seconds if any run has some that do."""
        timed = any(not math.isnan(run.cost(Unit.SECONDS, Ledger.REUSE)) for run in self.runs)
        return [unit for unit in Unit if unit == Unit.FLOPS or timed]

    @property
    def has_accuracy(self) -> bool:
        """Whether this is an experiment on images, with an accuracy beside the loss."""
        return "final_val_accuracy" in self.savings

    def where(self, mark: str) -> list[str]:
        """The methods that are marked as `control`, or as `keeps_source`."""
        return list(self.savings.loc[self.savings[mark], "method"])

    def label(self, method: str) -> str:
        """A method's name as a reader sees it, with a dagger if it keeps its source."""
        return method + KEEPS * (method in self._keeping)

    @cached_property
    def _keeping(self) -> frozenset[str]:
        return frozenset(self.where("keeps_source"))


def _priced(savings: pd.DataFrame, price: float) -> pd.DataFrame:
    if savings.empty:
        return savings
    prices = {
        columns.price_to_target(each): savings[columns.cost_to_target(Unit.SECONDS, each)] * price / 3600 for each in Ledger
    }
    return savings.assign(**prices)


def analyse(folder: Path, target_loss: float | None = None) -> Comparison:
    """Compare the runs stored in an experiment's results folder. `target_loss`: nats; default the mean loss that scratch ends at.

    Raises UsageError when there is no such folder, there are no runs, or neither a finished scratch run nor a `target_loss`.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    runs = [run for run in store.load_all(folder) if run.record.method != registry.SOURCE]
    if not any(run.curve for run in runs):
        raise UsageError(f"no ended run with a loss curve in {folder}: give one experiment's folder, as in results/gpt2-tiny")
    return compare(runs, target_loss, references_of(folder))


def compare(runs: Sequence[Run], target_loss: float | None = None, references: Sequence[StepSeconds] = ()) -> Comparison:
    """Compare runs of one experiment. `references`: step times measured alone. Raises UsageError as `analyse` does."""
    measured, left_out = comparable(runs)
    if not any(run.record.budget_share == 1 for run in measured):
        raise UsageError("no run at the full budget: a ladder's shorter ones alone compare with nothing")
    seconds = choose(measured, references)
    kept = [seconds.timed(run) for run in measured]
    whole, others = ([run for run in kept if (run.record.budget_share == 1) == full] for full in (True, False))
    target = target_of(whole) if target_loss is None else target_loss
    methods = sorted({run.record.method for run in whole}, key=lambda method: (method != SCRATCH, method))
    marked = marks(whole)
    controls = {method for method in methods if marked["control"][method]}
    single, climbed = Reading(Protocol.SINGLE, whole, target_loss), Reading(Protocol.LADDER, kept, target_loss)
    table, rungs = outcomes(single), ladder.rungs(kept) if others else pd.DataFrame()
    climbers = ladder.climbers(rungs, methods) if others else []
    reading, compared = (climbed, climbers) if climbers else (single, methods)
    comparison = Comparison(
        title=whole[0].record.title,
        target_loss=target,
        target_loss_given=target_loss is not None,
        runs=whole,
        measured=[run for run in measured if run.record.budget_share == 1],
        left_out=left_out,
        methods=methods,
        readings={Protocol.SINGLE: single, Protocol.LADDER: climbed},
        outcomes=table,
        savings=savings(single, methods, controls)
        .assign(target_loss=target)
        .join(marked, on="method")
        .join(beside(table, methods, published(whole)), on="method")
        .join(sampling.columns(whole, methods), on="method"),
        notes=[
            *Noted(whole, others, left_out, reading, compared).notes(),
            *sampling.note(whole),
            *pace.note(measured),
            seconds.note,
        ],
        shorter=others,
        rungs=rungs,
        equal_cost=equal_cost.at_equal_cost(kept, controls),
        ladder=savings(climbed, climbers, controls).join(marked, on="method") if climbers else pd.DataFrame(),
    )
    not_borne_out = equal_cost.notes(comparison.equal_cost, comparison.verdicts)
    return replace(comparison, notes=[*comparison.notes, *not_borne_out])
