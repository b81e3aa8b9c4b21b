"""The ladder's analysis on runs with known answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growbench.analysis import ladder
from growbench.analysis.comparison import compare
from growbench.runs.records import RunRecord
from growbench.runs.store import Run

BUDGETS = (0.4, 0.55, 0.7, 0.85, 1.0)


def run(method: str, seed: int, budget: float, loss: float, flops: float, source: float = 0.0, **record: Any) -> Run:
    cost = {"train": flops, "source": source, "growth": 0.0, "operator": 0.0, "teacher": 0.0}
    row = {"step": 1, "phase": "train", "val_loss": loss, "scored": True, "flops": flops, "seconds": flops, "tokens": 1}
    found = {
        "schema_version": 2, "method": method, "seed": seed, "status": "finished", "final_val_loss": loss, "title": "t",
        "cost": {"flops": cost, "seconds": cost}, "hardware": {"device": "cpu", "name": "x", "threads": 1},
        "config": {"experiment": {}, "method": {}, "budget_share": budget}, "phases": [], "steps": 1, "tokens": 1,
        "parameters": 1, "experiment": "e", **record,
    }  # fmt: skip
    return Run(Path(f"{method}-{seed}-{budget}"), RunRecord.read(json.dumps(found)), [row])


def power_law(method: str, seed: int, head_start: float, source: float = 0.0, shift: float = 0.0) -> list[Run]:
    """Final losses 8 - log(cost + head start) + shift: straight in log cost where there is no head start."""
    return [run(method, seed, b, 8 - math.log(100 * b + head_start) + shift, 100 * b, source) for b in BUDGETS]


def saving(runs: list[Run], method: str, column: str = "flops_saving_reuse", target: float | None = None) -> dict[str, Any]:
    comparison = compare(runs, target)
    return comparison.ladder.set_index("method").loc[method].to_dict() | {"notes": comparison.notes}


def test_a_method_that_needs_seven_tenths_saves_three_tenths_in_every_seed() -> None:
    """Both are straight lines of loss over log cost, so that interpolation is exact between any rungs."""
    runs = [r for seed in (0, 1, 2) for r in power_law("scratch", seed, 0) + power_law("b", seed, 0, 14.0, math.log(0.77))]
    row = saving(runs, "b")
    assert row["flops_saving_reuse"] == pytest.approx(0.23, abs=1e-9)
    # build: the source's 14 come on top; the line is no longer straight in log cost, hence the tolerance
    assert row["flops_saving_build"] == pytest.approx(0.23 - 0.14, abs=2e-3)
    assert (row["reached"], row["seeds"], row["at_least"]) == (3, 3, False)
    assert saving(runs, "scratch")["flops_saving_reuse"] == 0


def test_where_the_smallest_budget_meets_the_target_the_saving_is_a_bound() -> None:
    runs = power_law("scratch", 0, 0) + power_law("b", 0, 0, shift=-2.0)
    row = saving(runs, "b")
    assert row["flops_saving_reuse"] == pytest.approx(0.6) and row["at_least"]


def test_a_gain_that_is_gone_at_the_end_is_no_gain() -> None:
    """Below the target at a small budget, above it at the full one: a lucky rung does not count."""
    lucky = [run("b", 0, budget, loss, 100 * budget) for budget, loss in zip(BUDGETS, (4.0, 2.0, 3.9, 3.8, 3.6), strict=True)]
    row = saving(power_law("scratch", 0, 0) + lucky, "b")
    assert math.isnan(row["flops_saving_reuse"]) and row["reached"] == 0


def test_a_seed_without_a_finished_scratch_has_no_part_in_the_saving() -> None:
    """Whether scratch broke off in it or never ran: the others' mean stands, and the method reached the target in all."""
    scratch = [power_law("scratch", seed, 0) for seed in range(3)]
    methods = [rung for seed in range(3) for rung in power_law("b", seed, 0, shift=math.log(0.75))]
    expected = saving([*scratch[0], *scratch[1], *methods[: 2 * len(BUDGETS)]], "b")["flops_saving_reuse"]
    broken = [*scratch[2][:-1], run("scratch", 2, 1.0, 0.0, 30.0, status="interrupted")]
    for third in (broken, []):
        row = saving([*scratch[0], *scratch[1], *third, *methods], "b")
        assert row["flops_saving_reuse"] == pytest.approx(expected) and (row["reached"], row["seeds"]) == (3, 3)


def test_a_given_target_below_scratchs_ladder_gives_no_saving() -> None:
    """What scratch would pay for it is not known: neither then is what others save."""
    row = saving(power_law("scratch", 0, 0) + power_law("b", 0, 0, shift=0.05), "b", target=20.0)
    assert math.isnan(row["flops_saving_reuse"])


def test_a_rung_that_failed_counts_as_missed() -> None:
    full = power_law("b", 0, 0, shift=-1.0)
    full[1] = run("b", 0, 0.55, 0.0, 20.0, status="failed")
    row = saving(power_law("scratch", 0, 0) + full, "b")
    assert row["flops_saving_reuse"] == pytest.approx(0.3) and row["at_least"]  # only the rungs above it are trusted


def test_a_method_that_missed_in_one_seed_has_no_saving() -> None:
    runs = [r for seed in (0, 1) for r in power_law("scratch", seed, 0) + power_law("b", seed, 0, shift=-1.0 + 2 * seed)]
    row = saving(runs, "b")
    assert (row["reached"], row["seeds"]) == (1, 2) and math.isnan(row["flops_saving_reuse"])


def test_a_given_target_is_measured_against_scratchs_own_ladder() -> None:
    target = 8 - math.log(80)
    row = saving(power_law("scratch", 0, 0) + power_law("b", 0, 0, shift=math.log(0.75)), "b", target=target)
    assert row["flops_saving_reuse"] == pytest.approx(0.25, abs=1e-9)  # 60 instead of 80
    assert saving(power_law("scratch", 0, 0), "scratch", target=target)["flops_saving_reuse"] == pytest.approx(0)


def test_seconds_on_other_hardware_do_not_compare() -> None:
    foreign = [run("b", 0, b, 8 - math.log(200 * b), 100 * b, hardware={"device": "cuda", "name": "y"}) for b in BUDGETS]
    row = saving(power_law("scratch", 0, 0) + foreign, "b")
    assert math.isnan(row["seconds_saving_reuse"]) and row["flops_saving_reuse"] == pytest.approx(0.5)


def test_what_was_inherited_is_charged_but_not_spent() -> None:
    rung = run("scratch", 0, 0.4, 5.0, 40.0, inherited={"flops": 30.0, "seconds": 20.0})
    table = ladder.rungs([rung, run("scratch", 0, 1.0, 4.0, 100.0)])
    assert list(table["flops_reuse"]) == [40, 100] and list(table["spent_flops"]) == [10, 100]
    assert list(table["spent_seconds"]) == [20, 100]


def test_without_shorter_budgets_there_is_no_ladder() -> None:
    comparison = compare([run("scratch", 0, 1.0, 4.0, 100.0)])
    assert comparison.ladder.empty and comparison.rungs.empty
    one_budget = run("b", 0, 1.0, 3.0, 100.0)
    assert list(compare([*power_law("scratch", 0, 0), one_budget]).ladder["method"]) == ["scratch"]


@given(
    losses=st.lists(st.floats(1, 9) | st.just(math.nan), min_size=1, max_size=6),
    target=st.floats(1, 9),
)
def test_the_cost_is_never_outside_the_budgets_that_were_run(losses: list[float], target: float) -> None:
    costs = [float(2**index) for index in range(len(losses))]
    found = ladder.cost_to_end_at(losses, costs, target)
    cost = found.cost
    if not losses[-1] <= target:
        assert math.isinf(cost)
        return
    assert costs[0] <= cost <= costs[-1] * (1 + 1e-12)
    met = [index for index in range(len(losses)) if all(loss <= target for loss in losses[index:])]
    assert cost <= costs[met[0]] * (1 + 1e-12) and (met[0] == 0 or cost >= costs[met[0] - 1] * (1 - 1e-12))
    assert found.at_most == (met[0] == 0 or math.isnan(losses[met[0] - 1]))
