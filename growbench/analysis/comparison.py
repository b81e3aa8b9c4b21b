"""From stored runs to figures: the target loss, what each run paid to reach it, savings over scratch with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from growbench import registry
from growbench.analysis import ladder
from growbench.analysis.notes import notes
from growbench.analysis.savings import outcomes, p_values, published, savings
from growbench.analysis.selection import comparable, marks, target_of
from growbench.errors import UsageError
from growbench.registry import SCRATCH
from growbench.runs import store
from growbench.runs.store import Run

KEEPS = "†"  # follows the name of a method that keeps its source


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows. FLOPs: multiply-add = 2; savings: shares of scratch's cost, NaN where there is none.

    outcomes: one row a run: what it paid until the target (inf: not reached) and what that saves, by unit and ledger.
    savings: one row a method, the columns of savings.csv.
    """

    title: str
    target: float
    target_given: bool  # by hand; otherwise the mean final loss of scratch
    runs: list[Run]
    left_out: list[Run]
    methods: list[str]  # scratch first, then by name
    outcomes: pd.DataFrame
    savings: pd.DataFrame
    notes: list[str]
    shorter: list[Run] = field(default_factory=list)  # of the ladder: those below the full budget
    rungs: pd.DataFrame = field(default_factory=pd.DataFrame)
    ladder: pd.DataFrame = field(default_factory=pd.DataFrame)

    def of(self, method: str, finished: bool = True) -> list[Run]:
        """The compared runs of one method, by seed: the finished ones, or the others."""
        return [run for run in self.runs if run.record.method == method and run.finished == finished]

    @property
    def has_accuracy(self) -> bool:
        """Whether this is an experiment on images, with an accuracy beside the loss."""
        return "final_val_accuracy" in self.savings

    def where(self, mark: str) -> list[str]:
        """The methods that are marked as `control`, or as `keeps_source`."""
        return list(self.savings.loc[self.savings[mark], "method"])

    def label(self, method: str) -> str:
        """A method's name as a reader sees it, with a dagger if it keeps its source."""
        return method + KEEPS * (method in self.where("keeps_source"))


def analyse(folder: Path, target_loss: float | None = None) -> Comparison:
    """Compare the runs stored in an experiment's results folder. `target_loss`: nats; default the mean final loss of scratch.

    Raises UsageError when there are no runs, or neither a finished scratch run nor a `target_loss`.
    """
    runs = [run for run in store.load_all(folder) if run.record.method != registry.SOURCE]
    if not any(run.curve for run in runs):
        raise UsageError(f"no ended run with a loss curve in {folder}: give one experiment's folder, as in results/gpt2-tiny")
    return compare(runs, target_loss)


def compare(runs: Sequence[Run], target_loss: float | None = None) -> Comparison:
    """Compare runs of one experiment. Raises UsageError as `analyse` does."""
    kept, left_out = comparable(runs)
    shorter = [run for run in kept if run.record.budget_share < 1]
    climbed = ladder.rungs(kept) if shorter else pd.DataFrame()
    kept = [run for run in kept if run.record.budget_share == 1]
    if not kept:
        raise UsageError("no run at the full budget: a ladder's shorter ones alone compare with nothing")
    target = target_of(kept) if target_loss is None else target_loss
    table = outcomes(kept, target, target_loss is not None)
    methods = sorted({run.record.method for run in kept}, key=lambda method: (method != SCRATCH, method))
    figures, marked = savings(table, methods, target, published(kept)), marks(kept)
    rivals = [method for method in methods if method != SCRATCH and not marked["control"][method]]
    return Comparison(
        title=kept[0].record.title,
        target=target,
        target_given=target_loss is not None,
        runs=kept,
        left_out=left_out,
        methods=methods,
        outcomes=table,
        savings=figures.join(marked, on="method").join(p_values(table, methods, rivals), on="method"),
        notes=notes(kept, shorter, left_out, target_loss),
        shorter=shorter,
        rungs=climbed,
        ladder=climbed if climbed.empty else ladder.savings(climbed, methods, target, target_loss is not None),
    )
