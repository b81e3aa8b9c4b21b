"""Equal cost on runs with known answers: final losses that follow a law of cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from growbench.analysis.equal_cost import Outcome, at_equal_cost, notes, table
from growbench.analysis.estimator import Verdict
from growbench.costs.accounts import Ledger
from growbench.runs.records import RunRecord
from growbench.runs.store import Run

FULL = 1000.0  # FLOPs of scratch's full budget
STEPS = 100
NOISE = (0.02, -0.01, 0.03)  # of each seed, scratch's and a method's in common


def law(flops: float) -> float:
    """Straight in log cost, so that interpolation between budgets is exact."""
    return 8 - math.log(flops)


def run(method: str, seed: int, flops: float, loss: float, budget: float = 1.0, **record: Any) -> Run:
    cost = {"train": flops, "source": 0.0, "growth": 0.0, "operator": 0.0, "teacher": 0.0} | record.pop("cost", {})
    config = {"experiment": {}, "method": {}, "budget_share": budget, "stop_at_loss": record.pop("stop_at_loss", None)}
    found = {
        "schema_version": 2, "method": method, "seed": seed, "status": "finished", "final_val_loss": loss, "title": "t",
        "cost": {"flops": cost, "seconds": cost}, "hardware": {"device": "cpu", "name": "x", "threads": 1},
        "config": config, "phases": [], "steps": round(STEPS * budget), "tokens": 1, "parameters": 1, "experiment": "e", **record,
    }  # fmt: skip
    return Run(Path(f"{method}-{seed}-{budget}"), RunRecord.read(json.dumps(found)), [])


def scratch(seed: int, budgets: Sequence[float], of_cost: Callable[[float], float] = law) -> list[Run]:
    return [run("scratch", seed, FULL * each, of_cost(FULL * each) + NOISE[seed], each) for each in budgets]


def rows(runs: list[Run], **controls: Any) -> pd.DataFrame:
    return table(at_equal_cost(runs, **controls)).set_index(["method", "ledger"])


def test_under_the_protocol_the_run_of_the_same_cost_is_what_counts() -> None:
    """It has a whole number of steps: up to half a step off, above the method's cost or below it, and never interpolated."""
    for off in (-4.9, 0.0, 4.9):  # a step is 10
        rungs = [each for seed in range(3) for each in scratch(seed, (0.5, 0.86, 1), lambda flops: 1000 / flops)]
        method = [run("mine", seed, 860 + off, 1000 / 860 + NOISE[seed] - 0.1 * (seed + 1)) for seed in range(3)]
        found = rows(rungs + method).loc["mine", Ledger.REUSE]
        assert found["difference"] == pytest.approx(-0.2)
        assert found["scratch_loss"] == pytest.approx(1000 / 860 + 0.04 / 3)
        assert found["budget"] == pytest.approx(0.86 + off / FULL) and found["seeds"] == 3


def test_the_interval_is_students_and_the_test_his_too() -> None:
    """Differences of 0.1, 0.2 and 0.3: 0.2 with a standard error of 0.1 / sqrt 3; with two degrees of freedom p is elementary."""
    runs = [each for seed in range(3) for each in scratch(seed, (1,))]
    runs += [run("mine", seed, FULL, law(FULL) + NOISE[seed] + 0.1 * (seed + 1)) for seed in range(3)]
    found = rows(runs).loc["mine", Ledger.REUSE]
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert found["p"] == pytest.approx(1 - math.sqrt(12 / 14))
    assert found["verdict"] == Outcome.EVEN and found["note"] == ""


def test_on_a_ladder_scratch_is_interpolated_in_log_cost_in_each_seed() -> None:
    runs = [each for seed in range(3) for each in scratch(seed, (0.4, 0.7, 1, 1.5))]
    source = {"source": 300.0}
    runs += [run("mine", seed, 900, law(900) + NOISE[seed] - 0.05 - seed / 1e3, cost=source) for seed in range(3)]
    found = rows(runs)
    assert found.loc[("mine", Ledger.REUSE), "difference"] == pytest.approx(-0.051)
    built = found.loc["mine", Ledger.BUILD]
    assert built["difference"] == pytest.approx(-0.051 + math.log(1200 / 900))
    assert built["budget"] == pytest.approx(1.2)
    assert (found.loc["mine"]["verdict"] == [Outcome.LOWER, Outcome.HIGHER]).all()


def test_a_power_law_is_read_almost_exactly_between_budgets() -> None:
    """Straight lines would be off by up to (k log r)^2 / 8 of a c^-k between budgets a factor r apart: five times as much."""

    def power(flops: float) -> float:
        return 3 + 20 * flops**-0.3

    runs = scratch(0, (0.4, 0.55, 0.7, 0.85, 1), power)
    for flops in (450.0, 620.0, 770.0, 920.0):
        found = rows([*runs, run("mine", 0, flops, power(flops) + NOISE[0])]).loc["mine", Ledger.REUSE]
        straight = (0.3 * math.log(0.55 / 0.4)) ** 2 / 8 * 20 * flops**-0.3
        assert abs(found["difference"]) < straight / 5


@pytest.mark.parametrize("cost", [300.0, 1310.0])
def test_beyond_scratchs_budgets_nothing_is_known(cost: float) -> None:
    runs = [each for seed in range(2) for each in scratch(seed, (0.4, 1))]
    found = rows([*runs, *(run("mine", seed, cost, 3.0) for seed in range(2))]).loc["mine", Ledger.REUSE]
    assert math.isnan(found["difference"]) and math.isnan(found["low"]) and found["verdict"] == Outcome.NONE
    assert found["note"] == f"not known: scratch has no run at {cost / FULL:.3g} of its budget"


def test_a_seed_without_scratch_has_no_part_in_it() -> None:
    """Nor one in which scratch broke off at the cost in question."""
    whole = [each for seed in range(2) for each in scratch(seed, (0.8, 1))]
    methods = [run("mine", seed, 800, law(800) + NOISE[seed] - 0.1 * (seed + 1)) for seed in range(3)]
    full = scratch(2, (1,))
    for third in ([], full, [*full, run("scratch", 2, 300, 3.0, 0.8, status="failed")]):
        found = rows([*whole, *third, *methods]).loc["mine", Ledger.REUSE]
        assert found["difference"] == pytest.approx(-0.15) and found["seeds"] == 2
    assert rows(methods).loc[("mine", "reuse"), "note"] == "not known: no finished scratch run has the same seed"


def test_over_how_many_seeds_it_is_stands_in_its_note() -> None:
    rungs = [*scratch(0, (0.8, 1)), *scratch(1, (0.8, 1)), *scratch(2, (1,))]
    found = rows([*rungs, *(run("mine", seed, 800, law(800) - 0.1 * (seed + 1)) for seed in range(3))]).loc["mine", Ledger.REUSE]
    assert found["note"] == "over 2 of 3 seeds: scratch has no run at the others' cost"


def test_a_method_that_broke_off_in_a_seed_is_not_judged_by_the_others() -> None:
    runs = [each for seed in range(3) for each in scratch(seed, (1,))]
    runs += [run("mine", seed, FULL, 0.5 + seed, status="failed" if seed == 1 else "finished") for seed in range(3)]
    found = rows(runs).loc["mine", Ledger.REUSE]
    assert math.isnan(found["difference"]) and found["note"] == "not known: mine-seed1 did not finish"


def test_a_run_that_ended_at_its_target_has_no_complete_schedule() -> None:
    early = run("mine", 0, FULL, 1.0, stop_at_loss=1.1)
    found = rows([*scratch(0, (1,)), early]).loc["mine", Ledger.REUSE]
    assert found["note"] == "not known: runs that end at the target do not complete their schedules"
    cut = run("scratch", 0, FULL, 1.0, stop_at_loss=1.1)
    assert rows([cut, run("mine", 0, FULL, 1.0)]).loc[("mine", "reuse"), "note"].startswith("not known: no finished scratch run")


def test_of_a_source_whose_cost_is_not_known_only_the_build_ledger_is_silent() -> None:
    runs = [*scratch(0, (1, 2)), run("mine", 0, FULL, 1.0, cost={"source": None})]
    found = rows(runs)
    assert found.loc[("mine", "reuse"), "difference"] == pytest.approx(1.0 - law(FULL) - NOISE[0])
    assert found.loc[("mine", "build"), "note"] == "not known: what its source cost is unknown"


def test_one_seed_and_equal_differences_have_no_interval() -> None:
    one = rows([*scratch(0, (1,)), run("mine", 0, FULL, 1.0)]).loc["mine", Ledger.REUSE]
    assert one["note"] == "no interval: one seed"
    runs = [each for seed in range(3) for each in scratch(seed, (1,))]
    same = [run("mine", seed, FULL, law(FULL) + NOISE[seed] - 0.1) for seed in range(3)]
    equal = rows(runs + same).loc["mine", Ledger.REUSE]
    assert equal["note"] == "no interval: no spread over seeds" and equal["difference"] == pytest.approx(-0.1)
    for found in (one, equal):
        assert math.isnan(found["low"]) and math.isnan(found["p"]) and found["verdict"] == Outcome.NONE


def test_p_values_are_corrected_in_families_and_what_has_no_test_is_a_member() -> None:
    runs = [each for seed in range(3) for each in scratch(seed, (1,))]
    spread = (0.001, 0.0, -0.001)
    for name in ("a", "b", "control"):
        runs += [run(name, seed, FULL, law(FULL) + NOISE[seed] - 0.02 + spread[seed]) for seed in range(3)]
    runs += [run("dear", seed, 2 * FULL, 1.0) for seed in range(3)]
    found = rows(runs, controls=["control"]).xs(Ledger.REUSE, level="ledger")
    single = found.loc["a", "p"]
    assert list(found["p"].dropna()) == pytest.approx([single] * 3)
    assert found["p_holm"].to_dict() == pytest.approx(
        {"a": 3 * single, "b": 3 * single, "control": single, "dear": math.nan}, nan_ok=True
    )


def test_what_equal_cost_does_not_bear_out_is_said() -> None:
    """By a method's verdict on savings, and where it ends beside scratch at the same cost."""
    runs = [each for seed in range(3) for each in scratch(seed, (1,))]
    for name, shift, spread in (("lower", -0.2, 0.001), ("higher", 0.2, 0.001), ("even", -0.001, 0.2)):
        runs += [run(name, seed, FULL, law(FULL) + NOISE[seed] + shift + spread * (seed - 1)) for seed in range(3)]
    found = at_equal_cost(runs)
    same = "scratch with a complete schedule at the same total cost"

    def said(name: str, saving: Verdict) -> list[str]:
        return notes(found, pd.DataFrame([{"method": name, "flops_verdict_reuse": saving, "flops_verdict_build": Verdict.NONE}]))

    assert said("higher", Verdict.SAVES) == [
        f"higher (reuse) meets scratch's loss with fewer FLOPs, but {same} ends lower: difference in loss "
        "+0.2000 (+0.1975 to +0.2025)."
    ]
    assert said("even", Verdict.SAVES) == [
        f"even (reuse) meets scratch's loss with fewer FLOPs, but is not told apart from {same}: difference in loss "
        "−0.0010 (−0.4978 to +0.4958)."
    ]
    assert said("lower", Verdict.COSTS_MORE) == [
        f"lower (reuse) needs more FLOPs to meet scratch's loss, but ends lower than {same}: difference in loss "
        "−0.2000 (−0.2025 to −0.1975)."
    ]
    for verdict in (Verdict.EVEN, Verdict.WORSE):
        assert said("lower", verdict) == [
            f"lower (reuse) is not shown to meet scratch's loss with fewer FLOPs, but ends lower than {same}: difference in loss "
            "−0.2000 (−0.2025 to −0.1975)."
        ]
    borne_out = ("lower", Verdict.SAVES), ("higher", Verdict.COSTS_MORE), ("even", Verdict.EVEN), ("lower", Verdict.NONE)
    assert not [line for name, saving in borne_out for line in said(name, saving)]
