"""From stored runs to figures: the target loss, what each run paid to reach it, savings over scratch with their intervals."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from growbench import ladder, results
from growbench.config import UsageError
from growbench.results import CHARGED, LEDGERS, SCRATCH, UNITS, Run
from growbench.statistics import holm, interval, paired_p, smallest_detectable

ACCOUNTS = ("source", *CHARGED)
WORK = ("train", "operator", "teacher", "overhead")  # accounts that a step may have
LEVELS = 80  # loss levels of a savings curve
KEEPS = "†"  # follows the name of a method that keeps its source
LEFT_OUT = "Left out,"  # how the note begins that names what was not compared
MEASURES = ("val_loss", "val_accuracy")  # of a curve's rows; accuracy for images only


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
        return [run for run in self.runs if run.record["method"] == method and run.finished == finished]

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
    runs = [run for run in results.load_all(folder) if run.record["method"] != results.SOURCE]
    if not any(run.curve for run in runs):
        raise UsageError(f"no ended run with a loss curve in {folder}: give one experiment's folder, as in results/gpt2-tiny")
    return compare(runs, target_loss)


def compare(runs: Sequence[Run], target_loss: float | None = None) -> Comparison:
    """Compare runs of one experiment. Raises UsageError as `analyse` does."""
    kept, left_out = comparable(runs)
    shorter = [run for run in kept if run.budget < 1]
    climbed = ladder.rungs(kept) if shorter else pd.DataFrame()
    kept = [run for run in kept if run.budget == 1]
    if not kept:
        raise UsageError("no run at the full budget: a ladder's shorter ones alone compare with nothing")
    target = target_of(kept) if target_loss is None else target_loss
    table = outcomes(kept, target, target_loss is not None)
    methods = sorted({run.record["method"] for run in kept}, key=lambda method: (method != SCRATCH, method))
    figures, marked = savings(table, methods, target, published(kept)), marks(kept)
    rivals = [method for method in methods if method != SCRATCH and not marked["control"][method]]
    return Comparison(
        title=kept[0].record["title"],
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


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def is_scratch(run: Run) -> bool:
    return run.record["method"] == SCRATCH


def comparable(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs that share scratch's experiment (should it have several, the most common one at the full budget), and the others.

    Of one method, only those with the hyperparameters and the origin of its first seed: two variants have no common mean.
    """
    scratch = [run for run in runs if is_scratch(run) and run.budget == 1]
    base = [run for run in scratch if run.finished] or scratch or runs
    identity = Counter(_identity(run) for run in base).most_common(1)[0][0]
    ordered = sorted(runs, key=lambda run: (run.record["method"], run.record["seed"]))
    shared = [run for run in ordered if _identity(run) == identity]
    first: dict[str, str] = {}
    for run in shared:
        first.setdefault(run.record["method"], _variant(run))
    kept = [run for run in shared if _variant(run) == first[run.record["method"]]]
    return kept, [run for run in runs if run not in kept]


def _identity(run: Run) -> str:
    return json.dumps(run.record["config"]["experiment"], sort_keys=True)


def _variant(run: Run) -> str:
    return json.dumps([run.record["config"]["method"], run.record.get("origin")], sort_keys=True)


def first_run(runs: Iterable[Run], method: str) -> Run:
    """A method's run of the lowest seed that finished, or else of the lowest seed."""
    own = [run for run in runs if run.record["method"] == method]
    return min(own, key=lambda run: (not run.finished, run.record["seed"]))


def marks(runs: Sequence[Run]) -> pd.DataFrame:
    """By method, whether it is a control, and whether it keeps its source: the final model then holds the small one too.

    A control has no trained small model behind it, neither given nor trained on the way, so that what it saves is not owed
    to growth. Read off a finished run's costs and phases; runs of older versions may not say, and are then not marked.
    """
    methods = list(dict.fromkeys(run.record["method"] for run in runs))
    firsts = [first_run(runs, method) for method in methods]
    columns = {"control": [_is_control(run) for run in firsts], "keeps_source": [_keeps_source(run) for run in firsts]}
    return pd.DataFrame(columns, index=methods)


def _is_control(run: Run) -> bool:
    if is_scratch(run) or not run.finished or run.source_cost("flops") != 0:
        return False
    scored = [phase for phase in run.record["phases"] if phase.get("scored")]
    return bool(scored) and all(phase.get("target_sized") for phase in scored)


def _keeps_source(run: Run) -> bool:
    return bool(run.record.get("keeps_source"))


def target_of(runs: Iterable[Run]) -> float:
    """The mean final validation loss (nats) of the finished scratch runs. Raises UsageError if there is none."""
    losses = [run.record["final_val_loss"] for run in runs if is_scratch(run) and run.finished]
    if not losses:
        raise UsageError("no finished scratch run sets the target: run scratch, or give --target-loss")
    return math.fsum(losses) / len(losses)


def cost_to_loss(curve: Iterable[Mapping[str, Any]], level: float, unit: str) -> float:
    """What a curve pays (`flops` or `seconds`, reuse ledger) until its loss first is at or below `level`; inf if it never is.

    Only scored rows count. Between two scored evaluations in a row the crossing is interpolated linearly; after an unscored
    one, or at the start, the evaluation's own cost stands.
    """
    above: Mapping[str, Any] | None = None
    for row in curve:
        if row["scored"] and row["val_loss"] <= level:
            if above is None:
                return row[unit]
            share = (above["val_loss"] - level) / (above["val_loss"] - row["val_loss"])
            return above[unit] + share * (row[unit] - above[unit])
        above = row if row["scored"] and math.isfinite(row["val_loss"]) else None
    return math.inf


def cost_to_target(run: Run, level: float, unit: str, ledger: str) -> float:
    """What a run paid until the loss `level`, in FLOPs or seconds. Inf if it never got there, or did not finish.

    NaN in the build ledger if nobody knows what its source cost.
    """
    own = cost_to_loss(run.curve, level, unit) if run.finished else math.inf
    return own + run.source_cost(unit) if ledger == "build" and own < math.inf else own


def reference_cost(scratch: Run, unit: str, ledger: str, given_target: float | None = None) -> float:
    """What a saving is measured against: scratch's full budget; for a target given by hand, what scratch paid to reach it.

    A given target that scratch never reached leaves the full budget, so that the saving is a lower bound.
    """
    full = scratch.cost(unit, ledger)
    return full if given_target is None else min(full, cost_to_target(scratch, given_target, unit, ledger))


def nominal_seconds(run: Run) -> float:
    """Steps x median step time, summed over the phases: wall time without a noisy machine's outliers."""
    return sum(phase["steps"] * (phase["median_step_seconds"] or 0.0) for phase in run.record["phases"])


def tokens_per_parameter(run: Run) -> float:
    """Training tokens per parameter of the target; NaN for a run that did not finish, or does not say how many it has."""
    return run.record["tokens"] / run.record["parameters"] if run.finished and run.record["parameters"] else math.nan


def outcomes(runs: Iterable[Run], target: float, target_given: bool) -> pd.DataFrame:
    """One row a run: cost to target as `{unit}_{ledger}` (inf: not reached), saving as `{unit}_saving_{ledger}` (NaN: none)."""
    runs = list(runs)
    scratch = {run.record["seed"]: run for run in runs if is_scratch(run) and run.finished}
    given = target if target_given else None
    return pd.DataFrame([_outcome(run, scratch.get(run.record["seed"]), target, given) for run in runs])


def _outcome(run: Run, scratch: Run | None, target: float, given: float | None) -> dict[str, Any]:
    row = {key: run.record[key] for key in ("method", "seed", "status", "final_val_loss")}
    if run.record.get("final_val_accuracy") is not None:
        row["final_val_accuracy"] = run.record["final_val_accuracy"]
    row |= {"nominal_seconds": nominal_seconds(run), "tokens_per_parameter": tokens_per_parameter(run)}
    for unit in UNITS:
        for ledger in LEDGERS:
            reference = reference_cost(scratch, unit, ledger, given) if scratch else math.nan
            # By definition scratch meets its own mean loss at the end of its budget, in every seed.
            cost = reference if run is scratch and given is None else cost_to_target(run, target, unit, ledger)
            row[f"{unit}_{ledger}"] = cost
            row[f"{unit}_saving_{ledger}"] = _saving(run, scratch, unit, cost, reference)
    row["flops_saving_paper_counter"] = _paper_saving(run, scratch, target, given)
    return row


def _paper_saving(run: Run, scratch: Run | None, target: float, given: float | None) -> float:
    """The saving with the source free, in the counter of LiGO's paper; NaN if there is none, or the counter knows too little."""
    until = cost_to_loss(run.curve, target, "step") if run.finished else math.inf
    if run is scratch or scratch is None or math.isinf(until):
        return math.nan
    whole = math.inf if given is None else cost_to_loss(scratch.curve, given, "step")
    reference = paper_flops(scratch, whole)
    return 1 - paper_flops(run, until) / reference if reference > 0 else math.nan


def paper_flops(run: Run, steps: float) -> float:
    """A run's first steps in the counter of LiGO's paper; NaN where it knows one of their phases not, as those of images."""
    total, left = 0.0, steps
    for phase in run.record["phases"]:
        each = phase.get("paper_flops_per_step")
        if left > 0:
            total += min(phase["steps"], left) * (math.nan if each is None else each)
            left -= phase["steps"]
    return total


def _saving(run: Run, scratch: Run | None, unit: str, cost: float, reference: float) -> float:
    """1 - cost / reference; 0 for the reference itself; NaN if not reached, not paired, or timed on other hardware."""
    if run is scratch:
        return 0.0
    if scratch is None or math.isinf(cost) or reference <= 0 or (unit == "seconds" and run.hardware != scratch.hardware):
        return math.nan
    return 1 - cost / reference


def published(runs: Iterable[Run]) -> dict[str, Mapping[str, float | None]]:
    """By method, the paper's savings in percent: {"flops": x or None, "seconds": y or None}."""
    return {run.record["method"]: run.record["published"] for run in runs if run.record.get("published")}


def savings(
    table: pd.DataFrame, methods: Sequence[str], target: float, claims: Mapping[str, Mapping[str, float | None]]
) -> pd.DataFrame:
    """One row a method: seeds, how many reached the target, mean savings with intervals, the paper's claims; all as shares.

    A method that missed the target in any seed has no saving (NaN): an average over the lucky seeds would flatter it.
    """
    rows = {method: table[table["method"] == method] for method in methods}
    return pd.DataFrame([_method_row(rows[method], method, target, claims.get(method, {})) for method in methods])


def _method_row(table: pd.DataFrame, method: str, target: float, claim: Mapping[str, float | None]) -> dict[str, Any]:
    reached = int(np.isfinite(table["flops_reuse"]).sum())
    row: dict[str, Any] = {"method": method, "seeds": len(table), "reached": reached, "target_loss": target}
    for unit in UNITS:
        for ledger in LEDGERS:
            column = f"{unit}_saving_{ledger}"
            values = _by_seed(table, column).to_numpy()
            row[column] = values.mean() if len(values) else math.nan
            row[f"{column}_low"], row[f"{column}_high"] = interval(values, most=1)
    for unit in UNITS:
        percent = claim.get(unit)
        row[f"published_{unit}_saving"] = math.nan if percent is None else percent / 100
    row["flops_saving_paper_counter"] = table["flops_saving_paper_counter"].mean() if reached == len(table) else math.nan
    for unit in UNITS:
        for ledger in LEDGERS:
            costs = table[f"{unit}_{ledger}"]  # inf as soon as one seed missed, NaN as soon as one source's cost is not known
            row[f"{unit}_to_target_{ledger}"] = costs.mean() if reached < len(table) else costs.mean(skipna=False)
    for column in table.columns.intersection(["final_val_loss", "final_val_accuracy", "nominal_seconds", "tokens_per_parameter"]):
        row[column] = table.loc[table["status"] == "finished", column].astype(float).mean()
    return row


def _by_seed(table: pd.DataFrame, column: str) -> pd.Series:
    """The savings of one method in each seed; none where it missed the target in any, unless it is scratch.

    None either where the cost of any seed's source is not known.
    """
    counts = np.isfinite(table["flops_reuse"]).all() or (table["method"] == SCRATCH).all()
    counts = counts and table[column.replace("_saving", "")].notna().all()
    return table.set_index("seed")[column].dropna() if counts else pd.Series(dtype=float)


def p_values(table: pd.DataFrame, methods: Sequence[str], rivals: Sequence[str]) -> pd.DataFrame:
    """By method, p-values of its saving in FLOPs, paired by seed: that it is 0, and that it is its best rival's.

    Two-sided, Holm-corrected over the methods. The best rival is the other method of `rivals` that saves most on average. NaN
    for scratch, with fewer than two seeds, and where a seed missed the target.
    """
    tested = [method for method in methods if method != SCRATCH]
    found = pd.DataFrame(index=list(methods))
    for ledger in LEDGERS:
        saved = {method: _by_seed(table[table["method"] == method], f"flops_saving_{ledger}") for method in tested}
        ahead = {method: _over_best_rival(method, saved, rivals) for method in tested}
        for against, differences in (("scratch", saved), ("best", ahead)):
            p = holm([paired_p(differences[method].to_numpy()) for method in tested])
            found[f"flops_p_{against}_{ledger}"] = pd.Series(p, tested)
    return found


def _over_best_rival(method: str, saved: Mapping[str, pd.Series], rivals: Sequence[str]) -> pd.Series:
    """In each seed, how much more a method saves than the best of the other `rivals`; empty if none shares two seeds with it."""
    ahead = [(saved[method] - saved[rival]).dropna() for rival in rivals if rival != method]
    return min((each for each in ahead if len(each) > 1), key=pd.Series.mean, default=pd.Series(dtype=float))


def notes(runs: Sequence[Run], shorter: Sequence[Run], left_out: Sequence[Run], target_loss: float | None) -> list[str]:
    """What a reader must know before believing the tables, one sentence each. `shorter`: runs below the full budget."""
    found = []
    if left_out:
        found.append(
            f"{LEFT_OUT} since their experiment differs from that of scratch, or their hyperparameters from those of the "
            f"method's first seed: {_names(left_out)}."
        )
    if target_loss is not None:
        found.append(
            f"The target {target_loss:g} was given by hand, so savings are measured against what scratch paid to reach it, "
            "or against its full budget where it did not."
        )
    unknown = [run for run in runs if any(math.isnan(run.source_cost(unit)) for unit in UNITS)]
    trained_elsewhere = [run for run in unknown if "pretrained" not in run.record["config"]["experiment"]]
    if len(unknown) > len(trained_elsewhere):
        found.append(f"The source was pretrained, and {results.UNKNOWN_SOURCE}.")
    if trained_elsewhere:
        names = _names(trained_elsewhere)
        found.append(f"Source trained on other hardware, hence no saving in seconds with it charged: {names}.")
    unfinished = [run for run in (*runs, *shorter) if not run.finished]
    if unfinished:
        found.append(f"Did not finish, and count as not reached: {_names(unfinished)}.")
    scratch = {run.record["seed"]: run for run in runs if is_scratch(run) and run.finished}
    unpaired = [run for run in runs if run.record["seed"] not in scratch]
    if unpaired:
        found.append(f"Without a finished scratch run of the same seed, hence without a saving: {_names(unpaired)}.")
    foreign = [run for run in runs if run.record["seed"] in scratch and run.hardware != scratch[run.record["seed"]].hardware]
    if foreign:
        found.append(f"Ran on other hardware than scratch, hence no saving in seconds: {_names(foreign)}.")
    if len({run.hardware for run in scratch.values()}) > 1:
        found.append("Scratch ran on different hardware in different seeds: its mean seconds mix machines.")
    if len({run.record["seed"] for run in runs}) == 1:
        found.append("One seed: no interval can be given, and small differences mean nothing. A claim takes three seeds or more.")
    return found + _noise_note(list(scratch.values()))


def _noise_note(scratch: Sequence[Run]) -> list[str]:
    """How much scratch varies, and what saving can be told from that with so many seeds; nothing for one."""
    if len(scratch) < 2:
        return []
    deviation = np.std([run.record["final_val_loss"] for run in scratch], ddof=1)
    least = detectable_saving(scratch)
    found = f"only a saving of about {100 * least:.1f} % or more" if least < 1 else "no saving"
    return [
        f"Noise floor: scratch's final loss varies by {deviation:.4f} (standard deviation over {len(scratch)} seeds). Of a "
        f"method whose cost varies as much as scratch's near its final loss, these seeds would find {found}; steadier ones need "
        "less."
    ]


def detectable_saving(scratch: Sequence[Run]) -> float:
    """The saving that a paired test finds four times in five, by what scratch runs pay to the worst of their final losses.

    As if methods varied as scratch does, and two runs of one seed had nothing in common.
    """
    level = max(run.record["final_val_loss"] for run in scratch)
    costs = np.array([cost_to_loss(run.curve, level, "flops") for run in scratch])
    return smallest_detectable(math.sqrt(2) * np.std(costs / costs.mean(), ddof=1), len(scratch))


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(run.name for run in runs)


def mean_curves(comparison: Comparison) -> pd.DataFrame:
    """The curves: per method one averaged over its finished seeds (loss: mean, low, high), and one per unfinished run.

    Seeds are averaged evaluation by evaluation, over those that all of them have. Of images, accuracy as well as loss.
    """
    groups = [comparison.of(method) for method in comparison.methods]
    groups += [[run] for method in comparison.methods for run in comparison.of(method, finished=False)]
    with_curve = [[run for run in group if run.curve] for group in groups]
    return pd.concat([_mean_curve(group) for group in with_curve if group], ignore_index=True)


def _mean_curve(runs: Sequence[Run]) -> pd.DataFrame:
    rows = pd.concat([pd.DataFrame(run.curve) for run in runs], keys=range(len(runs)), names=["run", None]).reset_index("run")
    rows["place"] = rows.groupby("run")["phase"].transform(lambda phase: phase.ne(phase.shift()).cumsum())
    grouped = rows.groupby(["place", "step"], sort=False)  # a step is evaluated again in the next phase, after growth
    columns = {
        "phase": ("phase", "first"),
        "scored": ("scored", "first"),
        "flops": ("flops", "mean"),
        "seconds": ("seconds", "mean"),
    }
    for measure in MEASURES:
        if measure in rows:
            columns |= {measure + end: (measure, how) for end, how in (("", "mean"), ("_low", "min"), ("_high", "max"))}
    curve = grouped.agg(**columns)  # type: ignore[call-overload]
    curve = curve[grouped.size() == len(runs)].reset_index().drop(columns="place")
    curve.insert(0, "method", runs[0].record["method"])
    curve.insert(1, "seeds", " ".join(str(run.record["seed"]) for run in runs))
    curve.insert(2, "status", runs[0].record["status"])
    return curve


def savings_curve(comparison: Comparison, unit: str = "flops") -> pd.DataFrame:
    """The saving over scratch at every loss level that scratch passed, its own cost to that level being the reference.

    Rows (method, ledger, loss, saving, low, high; low and high over the seeds) stand only where both reached the level in
    every seed. Levels run from scratch's loss at 5 % of its budget down to its final loss.
    """
    scratch = {run.record["seed"]: run for run in comparison.of(SCRATCH)}
    rows = []
    for ledger in LEDGERS:
        for method in comparison.methods:
            pairs = [(run, scratch[run.record["seed"]]) for run in comparison.of(method) if run.record["seed"] in scratch]
            if method == SCRATCH or not pairs or comparison.of(method, finished=False):
                continue
            for level in _levels(list(scratch.values())):
                values = [_saving_at(run, reference, level, unit, ledger) for run, reference in pairs]
                if np.isfinite(values).all():
                    rows.append((method, ledger, level, np.mean(values), min(values), max(values)))
    return pd.DataFrame(rows, columns=["method", "ledger", "loss", "saving", "low", "high"])


def _levels(scratch: Sequence[Run]) -> list[float]:
    early = [row["val_loss"] for run in scratch for row in run.curve if row["flops"] >= 0.05 * run.cost("flops", "reuse")]
    return list(np.linspace(max(early), target_of(scratch), LEVELS))


def _saving_at(run: Run, scratch: Run, level: float, unit: str, ledger: str) -> float:
    cost, reference = cost_to_target(run, level, unit, ledger), cost_to_target(scratch, level, unit, ledger)
    return 1 - cost / reference if math.isfinite(cost) and math.isfinite(reference) and reference > 0 else math.nan


def cost_breakdown(comparison: Comparison) -> pd.DataFrame:
    """What a whole run cost by account, the mean over a method's finished seeds. Columns: method, unit, account, cost.

    NaN: a source whose cost is not known.
    """
    rows = [
        (method, unit, account, np.mean([_spent(run, unit, account) for run in comparison.of(method)]))
        for unit in UNITS
        for method in comparison.methods
        if comparison.of(method)
        for account in ACCOUNTS
    ]
    return pd.DataFrame(rows, columns=["method", "unit", "account", "cost"])


def _spent(run: Run, unit: str, account: str) -> float:
    return run.source_cost(unit) if account == "source" else run.record["cost"][unit].get(account, 0.0)


def phases(comparison: Comparison) -> pd.DataFrame:
    """Each method's phases in order, as its first finished seed had them; older runs leave blank what they did not record.

    FLOPs per step in all that is charged, also as a share of scratch's step, and by account (`overhead`: a teacher whose
    outputs count as stored).
    """
    firsts = [first_run(comparison.runs, method) for method in comparison.methods]
    reference = (
        _charged_per_step(firsts[0].record["phases"][-1]) if is_scratch(firsts[0]) and firsts[0].record["phases"] else math.nan
    )
    rows = [
        {
            "method": run.record["method"],
            "seed": run.record["seed"],
            "phase": phase.get("name"),
            "scored": phase.get("scored"),
            "steps": phase["steps"],
            "flops_per_step": _charged_per_step(phase),
            "share_of_scratch": _charged_per_step(phase) / reference,
            **{account: phase.get("flops_per_step", {}).get(account, math.nan) for account in WORK},
            "growth_flops": phase.get("growth_flops"),
        }
        for run in firsts
        for phase in run.record["phases"]
    ]
    columns = ["method", "seed", "phase", "scored", "steps", "flops_per_step", "share_of_scratch", *WORK]
    return pd.DataFrame(rows, columns=[*columns, "growth_flops"])


def _charged_per_step(phase: Mapping[str, Any]) -> float:
    spent = phase.get("flops_per_step", {})
    return float(sum(spent.get(account, 0.0) for account in CHARGED)) if spent else math.nan


GROWTH = ("loss_before", "loss_after", "output_change", "steps_to_recover", "duplicates", "duplicates_end", "optimizer")


def growth(comparison: Comparison) -> pd.DataFrame:
    """What became of each model that a phase took over, from the phase before or the source: one row a finished run and phase.

    Validation loss before and after; `output_change` of the logits on validation data; `steps_to_recover` until the loss is
    as low as before (inf: never); the share of FFN units that are `duplicates` of another after growth and at the phase's end
    (of target-sized models); the optimizer's state, `new` or `kept`. Blank: what older runs did not record.
    """
    rows = [
        {"method": method, "seed": run.record["seed"], "phase": phase.get("name")}
        | {key: phase.get(key) for key in GROWTH}
        | {"steps_to_recover": steps_to_recover(run, phase)}
        for method in comparison.methods
        for run in comparison.of(method)
        for phase in run.record["phases"]
        if phase.get("loss_before") is not None or phase.get("output_change") is not None
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "phase", *GROWTH])


def steps_to_recover(run: Run, phase: Mapping[str, Any]) -> float:
    """Steps from a phase's start until a loss as low as that before it; inf if never, NaN if that was not recorded."""
    before, start = phase.get("loss_before"), phase.get("first_step", 0)
    if before is None:
        return math.nan
    if phase["loss_after"] <= before:
        return 0
    return next((row["step"] - start for row in run.curve if row["step"] > start and row["val_loss"] <= before), math.inf)


TARGETS = (*range(1, 11), math.inf)  # grown from one source


def amortised(comparison: Comparison) -> pd.DataFrame:
    """The FLOPs saving when `targets` are grown from one source, each paying its share of it: from the build to the reuse value.

    One row a method and number of targets; low and high over the seeds. A method without a saving has no row.
    """
    rows = []
    known = comparison.savings[[f"flops_saving_{ledger}" for ledger in LEDGERS]].notna().all(axis=1)
    reached = known & (comparison.savings["method"] != SCRATCH)
    for method in comparison.savings.loc[reached, "method"]:
        seeds = comparison.outcomes[comparison.outcomes["method"] == method]
        reuse, build = (seeds[f"flops_saving_{ledger}"].dropna() for ledger in LEDGERS)
        for targets in TARGETS:
            values = reuse + (build - reuse) / targets  # 1 - (cost + source / targets) / reference
            rows.append((method, targets, values.mean(), values.min(), values.max()))
    return pd.DataFrame(rows, columns=["method", "targets", "saving", "low", "high"])


def ladder_curves(comparison: Comparison) -> pd.DataFrame:
    """Final loss against cost over the budgets of the ladder, in either ledger; means over seeds, the loss with low and high."""
    if comparison.rungs.empty:
        return comparison.rungs
    rungs = comparison.rungs.dropna(subset="final_val_loss")
    rows = [
        (method, ledger, budget, runs[f"flops_{ledger}"].mean(skipna=False), losses.mean(), losses.min(), losses.max())
        for ledger in LEDGERS
        for method in comparison.methods
        for budget, runs in rungs[rungs["method"] == method].groupby("budget")
        for losses in [runs["final_val_loss"]]
    ]
    curves = pd.DataFrame(rows, columns=["method", "ledger", "budget", "flops", "val_loss", "low", "high"])
    return curves.dropna(subset="flops")  # of a source whose cost is not known
