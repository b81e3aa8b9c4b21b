"""The ladder's analysis on runs with known answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from growbench.analysis import ladder
from growbench.analysis.comparison import compare
from growbench.analysis.estimator import Curve
from growbench.runs.records import RunRecord
from growbench.runs.store import Run

BUDGETS = (0.4, 0.55, 0.7, 0.85, 1.0)


def run(method: str, seed: int, budget: float, loss: float, flops: float, source: float | None = 0.0, **record: Any) -> Run:
    cost = {"train": flops, "source": source, "growth": 0.0, "operator": 0.0, "teacher": 0.0}
    row = {"step": 1, "phase": "train", "val_loss": loss, "scored": True, "flops": flops, "seconds": flops, "tokens": 1}
    found = {
        "schema_version": 2, "method": method, "seed": seed, "status": "finished", "final_val_loss": loss, "title": "t",
        "cost": {"flops": cost, "seconds": cost}, "hardware": {"device": "cpu", "name": "x", "threads": 1},
        "config": {"experiment": {}, "method": {}, "budget_share": budget}, "phases": [], "steps": 1, "tokens": 1,
        "parameters": 1, "experiment": "e", **record,
    }  # fmt: skip
    return Run(Path(f"{method}-{seed}-{budget}"), RunRecord.read(json.dumps(found)), [row])


def power_law(method: str, seed: int, head_start: float, source: float | None = 0.0, shift: float = 0.0) -> list[Run]:
    """Final losses 8 - log(cost + head start) + shift: straight in log cost where there is no head start."""
    return [run(method, seed, b, 8 - math.log(100 * b + head_start) + shift, 100 * b, source) for b in BUDGETS]


def saving(runs: list[Run], method: str, target: float | None = None) -> dict[str, Any]:
    comparison = compare(runs, target)
    return comparison.ladder.set_index("method").loc[method].to_dict() | {"notes": comparison.notes}


def ladders(*shifts: float, head_start: float = 0.0, source: float | None = 0.0) -> list[Run]:
    """Of scratch and of a method b that is ahead by a shift of its losses, a seed each."""
    return [
        rung
        for seed, shift in enumerate(shifts)
        for rung in power_law("scratch", seed, 0) + power_law("b", seed, head_start, source, shift)
    ]


def test_a_method_that_needs_77_percent_saves_23_in_every_seed() -> None:
    """Both are straight lines of loss over log cost, so that interpolation is exact between any rungs."""
    row = saving(ladders(*[math.log(0.77)] * 3, source=14.0), "b")
    assert row["flops_saving_reuse"] == pytest.approx(0.23, abs=1e-9)
    # build: the source's 14 come on top; the line is no longer straight in log cost, hence the tolerance
    assert row["flops_saving_build"] == pytest.approx(0.23 - 0.14, abs=2e-3)
    assert (row["protocol"], row["reached"], row["seeds"]) == ("ladder", 3, 3)
    assert (row["flops_saving_reuse_relation"], row["flops_verdict_reuse"]) == ("=", "no spread over seeds")
    assert saving(ladders(-1.0), "scratch")["flops_saving_reuse"] == 0


def test_the_interval_is_where_the_paired_test_ends() -> None:
    """Straight lines in log cost: D is the shift + log(100 / cost), so that the interval is that of the mean shift."""
    shifts = [math.log(0.77) + noise for noise in (-0.02, 0.01, 0.015)]
    row = saving(ladders(*shifts), "b")
    ends = stats.ttest_1samp(shifts, 0).confidence_interval(0.95)
    assert row["flops_saving_reuse"] == pytest.approx(1 - math.exp(np.mean(shifts)))
    assert (row["flops_saving_reuse_low"], row["flops_saving_reuse_high"]) == pytest.approx(
        (1 - math.exp(ends.high), 1 - math.exp(ends.low))
    )
    assert row["flops_p_reuse"] == row["flops_p_holm_reuse"] == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue)
    assert row["flops_verdict_reuse"] == "saves" and row["tested_at_reuse"] == 1


def test_an_unknown_cost_of_the_source_leaves_the_build_ledger_empty() -> None:
    row = saving(ladders(-0.30, -0.25, -0.20, source=None), "b")
    assert row["flops_saving_reuse"] > 0 and math.isnan(row["flops_saving_build"])
    assert row["flops_verdict_build"] == "the cost of the source is not known"


def test_where_the_smallest_budget_is_below_scratch_the_saving_is_a_bound() -> None:
    row = saving(ladders(-2.0), "b")
    assert row["flops_saving_reuse"] == pytest.approx(0.6) and row["flops_saving_reuse_relation"] == ">"
    assert row["flops_to_target_reuse"] == pytest.approx(40)


def test_a_gain_that_is_gone_at_the_end_is_no_gain() -> None:
    """Below scratch at a small budget, above it at the full one: a lucky rung does not count."""
    lucky = [run("b", 0, budget, loss, 100 * budget) for budget, loss in zip(BUDGETS, (4.0, 2.0, 3.9, 3.8, 3.6), strict=True)]
    row = saving(power_law("scratch", 0, 0) + lucky, "b")
    assert (row["flops_saving_reuse"], row["flops_saving_reuse_relation"], row["reached"]) == (0, "<", 0)


def test_a_seed_without_a_finished_scratch_has_no_part_in_the_saving() -> None:
    """Whether scratch broke off in it or never ran: the others' mean stands."""
    scratch = [power_law("scratch", seed, 0) for seed in range(3)]
    methods = [rung for seed in range(3) for rung in power_law("b", seed, 0, shift=math.log(0.75) + 0.01 * seed)]
    expected = saving([*scratch[0], *scratch[1], *methods[: 2 * len(BUDGETS)]], "b")
    broken = [*scratch[2][:-1], run("scratch", 2, 1.0, 0.0, 30.0, status="interrupted")]
    for third in (broken, []):
        row = saving([*scratch[0], *scratch[1], *third, *methods], "b")
        for column in ("flops_saving_reuse", "flops_saving_reuse_low", "flops_p_reuse"):
            assert row[column] == pytest.approx(expected[column])
        assert (row["finished"], row["seeds"]) == (3, 3)


def test_a_rung_that_failed_hides_the_smaller_ones() -> None:
    full = power_law("b", 0, 0, shift=-1.0)
    full[1] = run("b", 0, 0.55, 0.0, 20.0, status="failed")
    row = saving(power_law("scratch", 0, 0) + full, "b")
    assert row["flops_saving_reuse"] == pytest.approx(0.3) and row["flops_saving_reuse_relation"] == ">"
    assert "Did not finish, so that the ladder of their seed begins above them: b-seed0-budget0.55." in row["notes"]
    assert not any("no saving is claimed" in note for note in row["notes"])


def test_smaller_budgets_that_a_seed_lacks_are_said() -> None:
    """What is read is the costs that all seeds have."""
    runs = [rung for rung in ladders(-1.0, -1.1, -0.9) if rung.record.method != "b" or rung.record.seed < 2]
    row = saving([*runs, *power_law("b", 2, 0, shift=-0.9)[3:]], "b")
    assert row["flops_saving_reuse"] == pytest.approx(0.15) and row["flops_saving_reuse_relation"] == ">"
    (note,) = (note for note in row["notes"] if note.startswith("On the ladder"))
    assert note.endswith("where a seed begins at a larger one: b (seed 2 at 0.85).")
    assert not any(note.startswith("On the ladder") for note in saving(ladders(-1.0, -1.1), "b")["notes"])


def test_a_method_that_is_not_on_the_ladder_is_said() -> None:
    notes = saving([*ladders(-0.3, -0.31), *(run("once", seed, 1.0, 3.0, 100.0) for seed in range(2))], "b")["notes"]
    assert "Without several budgets, hence not on the ladder, which decides: once." in notes


def test_a_full_run_that_failed_leaves_no_saving() -> None:
    runs = ladders(-0.3, -0.31, -0.32)
    runs[-1] = run("b", 2, 1.0, 0.0, 20.0, status="failed")
    row = saving(runs, "b")
    assert math.isnan(row["flops_saving_reuse"]) and row["flops_verdict_reuse"] == "did not finish in 1 of 3 seeds"


def test_a_seed_that_ends_above_scratch_counts_with_its_difference() -> None:
    row = saving(ladders(-0.3, 0.02, -0.28), "b")
    assert (row["reached"], row["seeds"]) == (2, 3)
    assert row["flops_saving_reuse"] == pytest.approx(1 - math.exp(np.mean([-0.3, 0.02, -0.28])))
    assert row["flops_saving_reuse_low"] == -math.inf


def test_a_given_target_is_measured_against_scratchs_own_ladder() -> None:
    target = 8 - math.log(80)
    row = saving(ladders(math.log(0.75)), "b", target=target)
    assert row["flops_saving_reuse"] == pytest.approx(0.25, abs=1e-9)  # 60 instead of 80
    beyond = saving(power_law("scratch", 0, 0) + power_law("b", 0, 0, shift=0.05), "b", target=20.0)
    assert math.isnan(beyond["flops_saving_reuse"])  # what scratch would pay for it is not known


def test_seconds_on_other_hardware_do_not_compare() -> None:
    foreign = [run("b", 0, b, 8 - math.log(200 * b), 100 * b, hardware={"device": "cuda", "name": "y"}) for b in BUDGETS]
    row = saving(power_law("scratch", 0, 0) + foreign, "b")
    assert math.isnan(row["seconds_saving_reuse"]) and row["flops_saving_reuse"] == pytest.approx(0.5)


def test_what_was_inherited_is_charged_but_not_spent() -> None:
    rung = run("scratch", 0, 0.4, 5.0, 40.0, inherited={"flops": 30.0, "seconds": 20.0})
    table = ladder.rungs([rung, run("scratch", 0, 1.0, 4.0, 100.0)])
    assert list(table["flops_reuse"]) == [40, 100] and list(table["spent_flops"]) == [10, 100]
    assert list(table["spent_seconds"]) == [20, 100]


def test_without_several_budgets_of_a_method_there_is_no_ladder() -> None:
    comparison = compare([run("scratch", 0, 1.0, 4.0, 100.0)])
    assert comparison.ladder.empty and comparison.rungs.empty
    one_budget = run("b", 0, 1.0, 3.0, 100.0)
    assert compare([*power_law("scratch", 0, 0), one_budget]).ladder.empty
    both = compare([*ladders(-0.2), run("c", 0, 1.0, 3.0, 100.0)])
    assert list(both.ladder["method"]) == ["scratch", "b"] and both.verdicts is both.ladder


@given(
    losses=st.lists(st.floats(1, 9) | st.just(math.nan), min_size=1, max_size=6),
    target=st.floats(1, 9),
)
def test_the_cost_is_never_outside_the_budgets_that_were_run(losses: list[float], target: float) -> None:
    costs = [float(2**index) for index in range(len(losses))]
    cost = Curve.of_ladder(costs, losses).meets(target)
    if not losses[-1] <= target:
        assert math.isinf(cost)
        return
    assert costs[0] <= cost <= costs[-1] * (1 + 1e-12)
    met = [index for index in range(len(losses)) if all(loss <= target for loss in losses[index:])]
    assert cost <= costs[met[0]] * (1 + 1e-12) and (met[0] == 0 or cost >= costs[met[0] - 1] * (1 - 1e-12))
