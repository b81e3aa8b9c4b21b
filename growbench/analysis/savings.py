"""What each method saves over scratch by one protocol: a table with a row a method, and one with a row a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from growbench.analysis import columns
from growbench.analysis.estimator import Curve, Estimate, Relation, Saving, Verdict, verdict
from growbench.analysis.protocols import Question, Reading, scored_rows
from growbench.analysis.statistics import families, holm
from growbench.config.schema import Published
from growbench.costs.accounts import Ledger, Unit
from growbench.costs.published import MASKED_OUTPUT
from growbench.registry import SCRATCH
from growbench.runs.store import Run

REFERENCE = "reference"  # scratch's verdict


@dataclass(frozen=True)
class Judged:
    """A method's estimate, its p-value corrected for its family, and what that says."""

    estimate: Estimate
    p: float
    verdict: Verdict

    @property
    def text(self) -> str:
        """The verdict, or why there is none."""
        return str(self.verdict) if self.verdict != Verdict.NONE else self.estimate.untested


def judged(estimates: Mapping[str, Estimate], controls: Collection[str]) -> dict[str, Judged]:
    """By method, each judged within its family of tests."""
    found: dict[str, Judged] = {}
    for family in families(estimates, controls):
        adjusted = map(float, holm([estimates[method].p for method in family]))
        found |= {m: Judged(estimates[m], p, verdict(estimates[m], p)) for m, p in zip(family, adjusted, strict=True)}
    return found


def savings(reading: Reading, methods: Sequence[str], controls: Collection[str]) -> pd.DataFrame:
    """One row a method: seeds, how many finished and how many met scratch's loss, savings with intervals, tests, costs."""
    heads = {method: _head(reading, method) for method in methods}
    saved, tests, costs = ({method: dict[str, Any]() for method in methods} for _ in range(3))
    for unit in Unit:
        reference = reading.mean_reference(unit)
        for ledger in Ledger:
            question = Question.of(unit, ledger)
            estimates = {method: reading.estimate(method, question) for method in methods if method != SCRATCH}
            found = judged(estimates, controls)
            for method in methods:
                saving = _of_scratch(reading, unit) if method == SCRATCH else estimates[method].saving
                saved[method] |= columns.saving_row(saving, unit, ledger)
                costs[method][columns.cost_to_target(unit, ledger)] = _cost_to_target(saving, reference, heads[method])
                if unit == Unit.FLOPS:
                    tests[method] |= _test_row(found.get(method), ledger)
    return pd.DataFrame([heads[method] | saved[method] | tests[method] | costs[method] for method in methods])


def _head(reading: Reading, method: str) -> dict[str, Any]:
    met = [seed for seed in reading.finished(method) if _meets(reading, method, seed)]
    seeds, finished = len(reading.seeds(method)), len(reading.finished(method))
    head = {"method": method, "protocol": str(reading.protocol), "seeds": seeds, "finished": finished, "reached": len(met)}
    return head | {columns.TIMED: len(reading.pairs(method, Question.of(Unit.SECONDS, Ledger.REUSE)))}


def _meets(reading: Reading, method: str, seed: int) -> bool:
    """Whether a run ends at or below its own seed's scratch; scratch does, unless a target was given that it misses."""
    loss = reading.loss_to_meet(seed)
    return loss is not None and reading.curve(method, seed, Question.of(Unit.FLOPS, Ledger.REUSE)).meets(loss) < math.inf


def _of_scratch(reading: Reading, unit: Unit) -> Saving:
    """Nothing; a bound where it never meets a target given by hand."""
    unmet = reading.scratch_saving(unit).relation == Relation.BELOW
    return Saving(0.0, relation=Relation.BELOW if unmet else Relation.EQUAL)


def _cost_to_target(saving: Saving, reference: float, head: Mapping[str, Any]) -> float:
    """The cost at which a method meets scratch on average. Inf if it does not, or a seed did not finish; NaN if not known."""
    if head["finished"] < head["seeds"] or saving.relation == Relation.BELOW:
        return math.inf
    return (1 - saving.mean) * reference


def _test_row(found: Judged | None, ledger: Ledger) -> dict[str, Any]:
    """`found`: None of scratch."""
    estimate, p, text = (found.estimate, found.p, found.text) if found else (Estimate(), math.nan, REFERENCE)
    return {
        columns.difference(ledger): estimate.difference,
        columns.tested_at(ledger): estimate.tested_at,
        columns.p_value(ledger): estimate.p,
        columns.adjusted_p_value(ledger): p,
        columns.verdict(ledger): text,
    }


# A row a run


def nominal_seconds(run: Run) -> float:
    """Steps x median step time, summed over the phases: wall time without a noisy machine's outliers."""
    return sum(phase.steps * (phase.median_step_seconds or 0.0) for phase in run.record.phases)


def tokens_per_parameter(run: Run) -> float:
    """Training tokens per parameter of the target; NaN for a run that did not finish, or does not say how many it has."""
    record = run.record
    return record.tokens / record.parameters if run.finished and record.parameters else math.nan


def own_savings(reading: Reading, methods: Sequence[str]) -> pd.DataFrame:
    """What each seed of each method saves by itself, in each unit and ledger; "<" and ">" mark bounds. NaN: none."""
    questions = {(unit, ledger): Question.of(unit, ledger) for unit in Unit for ledger in Ledger}
    rows = []
    for method in methods:
        pairs = {key: {pair.seed: pair for pair in reading.pairs(method, each)} for key, each in questions.items()}
        for seed in reading.seeds(method):
            row: dict[str, Any] = {columns.METHOD: method, columns.SEED: seed}
            for (unit, ledger), found in pairs.items():
                own = found[seed].own_saving if seed in found else Saving()
                own = Saving(0.0) if method == SCRATCH and own.known else own  # by definition
                row |= {columns.saving(unit, ledger): own.mean, columns.relation(unit, ledger): str(own.relation)}
            rows.append(row)
    heads = [name(unit, ledger) for unit, ledger in questions for name in (columns.saving, columns.relation)]
    return pd.DataFrame(rows, columns=[columns.METHOD, columns.SEED, *heads])


def outcomes(reading: Reading) -> pd.DataFrame:
    """One row a run: its cost until it meets scratch in each unit and ledger (inf: it does not), and what it saves by itself.

    Of the single protocol.
    """
    rows = []
    for run in reading.runs:
        record = run.record
        row: dict[str, Any] = {columns.METHOD: record.method, columns.SEED: record.seed, columns.STATUS: record.status}
        row["final_val_loss"] = record.final_val_loss
        if record.final_val_accuracy is not None:
            row["final_val_accuracy"] = record.final_val_accuracy
        row |= {"nominal_seconds": nominal_seconds(run), "tokens_per_parameter": tokens_per_parameter(run)}
        for unit in Unit:
            for ledger in Ledger:
                row[columns.cost_to_target(unit, ledger)] = _own_cost(reading, run, Question.of(unit, ledger))
        rows.append(row | {columns.PAPER_SAVING: _paper_saving(reading, run)})
    own = own_savings(reading, list(dict.fromkeys(run.record.method for run in reading.runs)))
    return pd.DataFrame(rows).merge(own, on=[columns.METHOD, columns.SEED])


def _own_cost(reading: Reading, run: Run, question: Question) -> float:
    """Inf if it does not meet the loss, or did not finish; NaN if its source's cost is not known, or there is no loss to meet."""
    loss = reading.loss_to_meet(run.record.seed)
    if loss is None or math.isnan(question.source_cost(run)):
        return math.nan
    return reading.curve(run.record.method, run.record.seed, question).meets(loss) if run.finished else math.inf


def _paper_saving(reading: Reading, run: Run) -> float:
    """The saving with the source free, in the counter of LiGO's paper; NaN if there is none, or the counter knows too little."""
    seed, rows = run.record.seed, scored_rows(run)
    reference = reading.references[Unit.FLOPS].get(seed)
    if reference is None or run.record.method == SCRATCH or not run.finished:
        return math.nan
    until = Curve.of_run([row["step"] for row in rows], [row["val_loss"] for row in rows]).meets(reference.loss)
    full = reading.full_cost(seed, Unit.FLOPS)
    share = reference.cost / full if full > 0 else math.nan
    scratch = reading.whole(SCRATCH, seed)
    if scratch is None or paper_output_shares(run) != paper_output_shares(scratch):
        return math.nan
    whole = share * paper_flops(scratch, math.inf)
    return 1 - paper_flops(run, until) / whole if whole > 0 and until < math.inf else math.nan


def paper_flops(run: Run, steps: float) -> float:
    """A run's first steps in the counter of LiGO's paper; NaN where it does not know one of their phases, as those of images."""
    total, left = 0.0, steps
    for phase in run.record.phases:
        each = phase.paper_flops_per_step
        if left > 0:
            total += min(phase.steps, left) * (math.nan if each is None else each)
            left -= phase.steps
    return total


def paper_output_shares(run: Run) -> set[float]:
    """At which shares of positions the paper's counter counted the outputs of a run's phases. Others do not compare with it."""
    return {phase.paper_output_share or MASKED_OUTPUT for phase in run.record.phases}


def published(runs: Iterable[Run]) -> dict[str, Published]:
    """By method, the paper's savings."""
    return {run.record.method: run.record.published for run in runs if run.record.published}


def beside(table: pd.DataFrame, methods: Sequence[str], claims: Mapping[str, Published]) -> pd.DataFrame:
    """By method, what stands beside its savings: the paper's claims as shares, and the means of the table of runs.

    The paper's counter has a saving only where every seed has one.
    """
    rows = []
    for method in methods:
        own, claim = table[table["method"] == method], claims.get(method, Published())
        row: dict[str, Any] = {}
        for unit in Unit:
            percent = getattr(claim, unit)
            row[columns.published_saving(unit)] = math.nan if percent is None else percent / 100
        row[columns.PAPER_SAVING] = own[columns.PAPER_SAVING].mean(skipna=False)
        finished = own[own["status"] == "finished"]
        for column in table.columns.intersection(MEANS):
            row[column] = finished[column].astype(float).mean()
        rows.append(row)
    return pd.DataFrame(rows, index=list(methods))


MEANS = ["final_val_loss", "final_val_accuracy", "nominal_seconds", "tokens_per_parameter"]
