"""The analysis on curves whose answers are known in closed form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_rel

from growbench.analysis import notes, profiles, tables
from growbench.analysis.comparison import Comparison, analyse, compare
from growbench.analysis.crossing import cost_to_loss
from growbench.analysis.statistics import interval, smallest_detectable
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError
from growbench.runs.records import RunRecord
from growbench.runs.store import Run
from growbench.training.records import PhaseRecord

CPU = {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"}


def curve(*points: tuple[float, float], scored: bool = True) -> list[dict[str, Any]]:
    """Rows from (flops, loss); a FLOP takes two seconds."""
    return [
        {"step": step, "phase": "train", "val_loss": loss, "flops": flops, "seconds": 2 * flops, "scored": scored}
        for step, (flops, loss) in enumerate(points)
    ]


def run(method: str, rows: list[dict[str, Any]], seed: int = 0, source: float = 0.0, **changes: Any) -> Run:
    """A finished run whose costs are those of its last row."""
    spent = {unit: {"source": source, "train": rows[-1][unit], "evaluation": 1e9} for unit in ("flops", "seconds")}
    record = {
        "schema_version": 2, "status": "finished", "experiment": "e", "title": "An experiment", "method": method, "seed": seed,
        "config": {"experiment": {"train": {"steps": 10}}, "method": {}}, "cost": spent, "final_val_loss": rows[-1]["val_loss"],
        "steps": 10, "tokens": 2000, "parameters": 100, "hardware": CPU,
        "phases": [{"steps": 10, "median_step_seconds": 0.5}, {"steps": 0, "median_step_seconds": None}],
    }  # fmt: skip
    return Run(Path(f"{method}-seed{seed}"), RunRecord.read(json.dumps({**record, **changes})), rows)


def scratch(seed: int = 0, budget: float = 100.0, final: float = 2.0, **changes: Any) -> Run:
    return run("scratch", curve((0, 6.0), (budget, final)), seed, **changes)


def row(comparison: Comparison, method: str) -> dict[str, Any]:
    return next(row for row in tables.records(comparison.savings) if row["method"] == method)


# Cost to a loss


def test_crossing_is_interpolated() -> None:
    assert cost_to_loss(curve((0, 6.0), (10, 4.0), (20, 2.0)), 3.5, "flops") == 12.5
    assert cost_to_loss(curve((0, 6.0), (10, 4.0), (20, 2.0)), 3.5, "seconds") == 25


def test_never_crossing_costs_infinity() -> None:
    assert cost_to_loss(curve((0, 6.0), (10, 4.0)), 3.9, "flops") == math.inf
    assert cost_to_loss([], 3.9, "flops") == math.inf


def test_crossing_at_the_start_costs_what_the_start_cost() -> None:
    assert cost_to_loss(curve((0, 3.0), (10, 2.0)), 3.5, "flops") == 0
    assert cost_to_loss(curve((7, 3.0), (10, 2.0)), 3.5, "flops") == 7


def test_a_tie_is_a_crossing_and_the_first_one_counts() -> None:
    assert cost_to_loss(curve((0, 6.0), (10, 4.0), (20, 4.0), (30, 5.0), (40, 3.0)), 4.0, "flops") == 10


def test_unscored_rows_cannot_reach_nor_carry_a_line() -> None:
    small = curve((0, 6.0), (10, 1.0), scored=False)
    assert cost_to_loss(small, 3.0, "flops") == math.inf
    assert cost_to_loss([*small, *curve((12, 2.5), (20, 2.0))], 3.0, "flops") == 12
    assert cost_to_loss([*curve((0, 6.0)), *small, *curve((12, 2.5))], 3.0, "flops") == 12


def test_growth_at_the_same_step_is_interpolated_like_any_other_row() -> None:
    rows = curve((0, 6.0), (10, 4.0), (10, 2.0))
    assert cost_to_loss(rows, 3.0, "flops") == 10


def test_nan_and_infinite_losses_never_cross() -> None:
    assert cost_to_loss(curve((0, 6.0), (10, math.nan), (20, 2.0)), 3.0, "flops") == 20
    assert cost_to_loss(curve((0, math.inf), (10, 2.0)), 3.0, "flops") == 10
    assert cost_to_loss(curve((0, 6.0), (10, math.nan)), 3.0, "flops") == math.inf


losses = st.lists(st.floats(0.5, 8), min_size=1, max_size=12)


@given(losses, st.floats(0.5, 8), st.floats(0, 2))
def test_an_easier_level_never_costs_more(values: list[float], level: float, easier: float) -> None:
    rows = curve(*((10.0 * step, loss) for step, loss in enumerate(values)))
    assert cost_to_loss(rows, level + easier, "flops") <= cost_to_loss(rows, level, "flops")


@given(losses, st.floats(0.5, 8))
def test_the_crossing_lies_between_its_two_evaluations(values: list[float], level: float) -> None:
    rows = curve(*((10.0 * step, loss) for step, loss in enumerate(values)))
    first = next((step for step, loss in enumerate(values) if loss <= level), math.inf)
    cost = cost_to_loss(rows, level, "flops")
    assert max(0, 10 * (first - 1)) <= cost <= 10 * first


# Savings


def test_saving_and_both_ledgers_in_closed_form() -> None:
    method = run("ligo", curve((10, 4.0), (50, 2.0), (100, 1.0)), source=20.0, published={"flops": 44.7, "seconds": None})
    comparison = compare([scratch(), method])
    found = row(comparison, "ligo")
    assert comparison.target == 2.0
    assert comparison.methods == ["scratch", "ligo"]
    assert (found["flops_to_target_reuse"], found["flops_to_target_build"]) == (50, 70)
    assert found["flops_saving_reuse"] == pytest.approx(0.5)
    assert found["flops_saving_build"] == pytest.approx(0.3)
    assert found["seconds_saving_reuse"] == pytest.approx(0.5)
    assert found["seconds_saving_build"] == pytest.approx(0.4)  # the source took 20 s, scratch 200 s
    assert found["published_flops_saving"] == pytest.approx(0.447) and math.isnan(found["published_seconds_saving"])
    assert (found["nominal_seconds"], found["tokens_per_parameter"]) == (5.0, 20.0)


def test_scratch_is_the_reference_though_a_seed_ends_above_the_mean() -> None:
    found = row(compare([scratch(0, final=1.9), scratch(1, final=2.1)]), "scratch")
    assert (found["seeds"], found["reached"], found["flops_saving_reuse"]) == (2, 2, 0.0)
    assert (found["flops_saving_reuse_low"], found["flops_saving_reuse_high"]) == (0.0, 0.0)


def test_seeds_are_paired() -> None:
    runs = [scratch(0, 100), scratch(1, 200)]
    runs += [run("ligo", curve((0, 4.0), (cost, 2.0)), seed) for seed, cost in ((0, 50), (1, 150))]
    found = row(compare(runs), "ligo")
    assert found["flops_saving_reuse"] == pytest.approx((0.5 + 0.25) / 2)
    assert (found["flops_saving_reuse_low"], found["flops_saving_reuse_high"]) == interval([0.25, 0.5], most=1)


def test_one_seed_has_no_interval_and_says_so() -> None:
    comparison = compare([scratch(), run("ligo", curve((0, 4.0), (50, 2.0)))])
    found = row(comparison, "ligo")
    assert found["flops_saving_reuse"] == 0.5
    assert math.isnan(found["flops_saving_reuse_low"]) and math.isnan(found["flops_saving_reuse_high"])
    assert any("One seed" in note for note in comparison.notes)


def test_a_failed_seed_counts_as_not_reached() -> None:
    runs = [scratch(seed) for seed in range(3)] + [run("ligo", curve((0, 4.0), (50, 2.0)), seed) for seed in range(2)]
    broken = run("ligo", curve((0, 4.0), (50, 1.0)), 2, status="failed", final_val_loss=None)
    comparison = compare([*runs, broken])
    found = row(comparison, "ligo")
    assert (found["seeds"], found["reached"]) == (3, 2)
    assert math.isnan(found["flops_saving_reuse"]) and math.isinf(found["flops_to_target_reuse"])
    assert any("ligo-seed2" in note for note in comparison.notes)
    assert tables.savings_curve(comparison).empty


def test_a_method_that_never_arrives_has_no_saving() -> None:
    found = row(compare([scratch(), run("slow", curve((0, 6.0), (300, 2.5)))]), "slow")
    assert found["reached"] == 0 and math.isnan(found["flops_saving_reuse"])


def test_a_dearer_method_has_a_negative_saving() -> None:
    assert row(compare([scratch(), run("slow", curve((0, 6.0), (300, 2.0)))]), "slow")["flops_saving_reuse"] == -2


def test_target_by_hand_is_measured_against_scratchs_own_way_to_it() -> None:
    runs = [scratch(), run("ligo", curve((0, 6.0), (50, 2.0)))]
    found = row(compare(runs, target_loss=4.0), "ligo")  # half-way for both
    assert found["flops_to_target_reuse"] == 25 and found["flops_saving_reuse"] == 0.5
    lower = compare([scratch(), run("ligo", curve((0, 6.0), (50, 1.0)))], target_loss=1.0)
    assert row(lower, "scratch")["reached"] == 0
    assert row(lower, "ligo")["flops_saving_reuse"] == 0.5  # at least: scratch's whole budget was not enough


def test_a_seed_without_scratch_is_left_out_of_the_mean_and_named() -> None:
    comparison = compare([scratch(0), *(run("ligo", curve((0, 4.0), (50, 2.0)), seed) for seed in (0, 1))])
    assert row(comparison, "ligo")["flops_saving_reuse"] == 0.5
    assert any("Without a finished scratch run" in note and "ligo-seed1" in note for note in comparison.notes)


def test_runs_of_another_experiment_are_left_out_and_named() -> None:
    other = run("ligo", curve((0, 4.0), (50, 2.0)), config={"experiment": {"train": {"steps": 99}}, "method": {}})
    comparison = compare([scratch(), other])
    assert comparison.methods == ["scratch"]
    assert comparison.left_out == [other]
    assert any("Left out" in note and "ligo-seed0" in note for note in comparison.notes)


def test_other_hardware_has_no_saving_in_seconds() -> None:
    comparison = compare([scratch(), run("ligo", curve((0, 4.0), (50, 2.0)), hardware={**CPU, "threads": 4})])
    found = row(comparison, "ligo")
    assert found["flops_saving_reuse"] == 0.5 and math.isnan(found["seconds_saving_reuse"])
    assert any("other hardware" in note for note in comparison.notes)


def test_seeds_with_other_hyperparameters_than_the_first_are_left_out_and_named() -> None:
    experiment = scratch().record.config.experiment
    configs = [{"experiment": experiment, "method": {"steps": steps}} for steps in (10, 20)]
    ends = (50, 80)
    runs = [run("ligo", curve((0, 6.0), (ends[seed], 2.0)), seed, config=config) for seed, config in enumerate(configs)]
    comparison = compare([scratch(0), scratch(1), *runs])
    assert comparison.left_out == [runs[1]]
    assert row(comparison, "ligo")["seeds"] == 1 and row(comparison, "ligo")["flops_saving_reuse"] == 0.5
    assert any("hyperparameters" in note and "ligo-seed1" in note for note in comparison.notes)


@settings(max_examples=30)
@given(st.floats(1, 500), st.floats(1, 500))
def test_savings_are_below_one_and_fall_with_cost(cost: float, other: float) -> None:
    runs = [scratch(), *(run(name, curve((0, 6.0), (spent, 2.0))) for name, spent in (("a", cost), ("b", other)))]
    comparison = compare(runs)
    first, second = (row(comparison, name)["flops_saving_reuse"] for name in ("a", "b"))
    assert first < 1 and second < 1
    assert (first >= second) == (cost <= other) or first == pytest.approx(second)


def test_noise_around_a_known_saving_is_inside_the_interval() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(60):
        costs = 100 * rng.normal([[1.0], [0.6]], 0.03, size=(2, 3))
        runs = [scratch(seed, cost) for seed, cost in enumerate(costs[0])]
        found = row(compare([*runs, *(ligo(cost, seed) for seed, cost in enumerate(costs[1]))]), "ligo")
        inside.append(found["flops_saving_reuse_low"] <= 0.4 <= found["flops_saving_reuse_high"])
    assert np.mean(inside) >= 0.9


# Tests and the noise floor


def ligo(cost: float, seed: int = 0, method: str = "ligo", **changes: Any) -> Run:
    return run(method, curve((0, 6.0), (cost, 2.0)), seed, **changes)


def test_p_values_are_paired_and_corrected_by_hand() -> None:
    costs = {"good": (40, 50, 45), "fair": (60, 80, 70), "vain": (90, 120, 95)}
    runs = [scratch(seed) for seed in range(3)]
    runs += [ligo(cost, seed, method, source=10.0) for method in costs for seed, cost in enumerate(costs[method])]
    comparison = compare(runs)
    saved = {method: 1 - np.array(spent) / 100 for method, spent in costs.items()}
    against = {"good": "fair", "fair": "good", "vain": "good"}
    for column, raw in {
        "flops_p_scratch_reuse": {method: ttest_1samp(saved[method], 0).pvalue for method in costs},
        "flops_p_scratch_build": {method: ttest_1samp(saved[method] - 0.1, 0).pvalue for method in costs},
        "flops_p_best_reuse": {method: ttest_rel(saved[method], saved[against[method]]).pvalue for method in costs},
        "flops_p_best_build": {method: ttest_rel(saved[method], saved[against[method]]).pvalue for method in costs},
    }.items():
        smallest, middle, largest = sorted(raw, key=lambda method: raw[method])
        expected = {smallest: 3 * raw[smallest]}
        expected[middle] = max(2 * raw[middle], expected[smallest])
        expected[largest] = max(raw[largest], expected[middle])
        assert {method: row(comparison, method)[column] for method in costs} == pytest.approx(
            {method: min(p, 1) for method, p in expected.items()}
        )
        assert math.isnan(row(comparison, "scratch")[column])


def test_a_rival_with_one_seed_hides_no_other() -> None:
    """Only rivals that share two seeds or more can be tested against."""
    costs = {"good": (40, 50, 45), "fair": (60, 80, 70)}
    runs = [scratch(seed) for seed in range(3)]
    runs += [ligo(cost, seed, method) for method in costs for seed, cost in enumerate(costs[method])]
    alone, beside = compare(runs), compare([*runs, ligo(1, 0, "lucky")])
    assert row(beside, "good")["flops_p_best_reuse"] == row(alone, "good")["flops_p_best_reuse"] < 1
    assert math.isnan(row(beside, "lucky")["flops_p_best_reuse"])


def test_the_ladders_runs_have_no_vote_and_are_named_by_their_budget() -> None:
    """Four rungs of an older experiment do not outvote three full runs of another; a rung that broke off is said."""
    old = {"experiment": {"train": {"steps": 20}}, "method": {}}
    rungs = [scratch(0, budget=100 * share, config=old | {"budget_share": share}) for share in (0.4, 0.55, 0.7, 0.85)]
    runs = [*(scratch(seed) for seed in range(3)), *rungs]
    comparison = compare(runs)
    assert [each.name for each in comparison.runs] == [f"scratch-seed{seed}" for seed in range(3)]
    assert any("scratch-seed0-budget0.4, scratch-seed0-budget0.55" in note for note in comparison.notes)
    config = {"experiment": {"train": {"steps": 10}}, "method": {}, "budget_share": 0.7}
    broken = run("ligo", curve((0, 6.0)), config=config, status="interrupted")
    notes = compare([*runs[:3], ligo(50, 0), broken]).notes
    assert any("Did not finish" in note and "ligo-seed0-budget0.7" in note for note in notes)


def test_a_run_without_a_curve_leaves_its_methods_others_in_the_figure() -> None:
    empty = Run(Path("ligo-seed1"), ligo(50, 1).record, [])
    curves = tables.mean_curves(compare([scratch(0), scratch(1), ligo(50, 0), empty]))
    assert set(curves["method"]) == {"scratch", "ligo"}


def test_what_missed_the_target_in_a_seed_is_neither_tested_nor_a_rival() -> None:
    runs = [scratch(seed) for seed in range(3)]
    runs += [ligo(cost, seed, "sure") for seed, cost in enumerate((50, 60, 55))]
    runs += [ligo(cost, seed, "lucky") for seed, cost in enumerate((10, 11, 12))]
    runs[-1] = ligo(12, 2, "lucky", status="failed", final_val_loss=None)
    comparison = compare(runs)
    for against in ("scratch", "best"):
        assert math.isnan(row(comparison, "lucky")[f"flops_p_{against}_reuse"])
    found = row(comparison, "sure")
    assert math.isnan(found["flops_p_best_reuse"])
    assert found["flops_p_scratch_reuse"] == pytest.approx(ttest_1samp([0.5, 0.4, 0.45], 0).pvalue)  # alone: no correction


def test_a_control_is_tested_but_no_rival() -> None:
    runs = [scratch(seed) for seed in range(3)]
    whole = [phase("train", {"train": 10.0})]
    for name, costs, changes in (
        ("control", (20, 30, 25), {"phases": whole}),
        ("best", (50, 60, 55), {"source": 10.0}),
        ("other", (70, 90, 75), {"source": 10.0}),
    ):
        runs += [ligo(cost, seed, name, **changes) for seed, cost in enumerate(costs)]
    comparison = compare(runs)
    assert comparison.where("control") == ["control"]
    beyond = {"control": (30, 30, 30), "best": (20, 30, 20), "other": (-20, -30, -20)}  # control: over best, always as much
    assert row(comparison, "control")["flops_p_best_reuse"] == 0
    raw = ttest_1samp(beyond["best"], 0).pvalue
    assert row(comparison, "best")["flops_p_best_reuse"] == row(comparison, "other")["flops_p_best_reuse"]
    assert row(comparison, "best")["flops_p_best_reuse"] == pytest.approx(2 * raw)


def test_one_seed_has_no_p_value_and_no_noise_floor() -> None:
    comparison = compare([scratch(), ligo(50), ligo(60, method="other")])
    assert comparison.savings.filter(like="flops_p_").isna().all(axis=None)
    assert not any("Noise floor" in note for note in comparison.notes)


def test_the_noise_floor_in_closed_form() -> None:
    # linear from 6, so that the worst final loss, 2.2, is passed after (6 - 2.2) / (6 - final) of the budget
    finals = (1.8, 2.0, 2.2)
    runs = [scratch(seed, final=final) for seed, final in enumerate(finals)]
    costs = np.array([3.8 / (6 - final) for final in finals])
    deviation = math.sqrt(2) * np.std(costs / costs.mean(), ddof=1)
    assert notes.detectable_saving(runs) == pytest.approx(smallest_detectable(deviation, 3))
    (note,) = (note for note in compare(runs).notes if "Noise floor" in note)
    assert "varies by 0.2000 (standard deviation over 3 seeds)" in note
    assert f"would find only a saving of about {100 * smallest_detectable(deviation, 3):.1f}\N{NO-BREAK SPACE}% or more" in note


def test_noise_that_hides_every_saving_is_said_to() -> None:
    assert any("would find no saving" in note for note in compare([scratch(0, final=1.0), scratch(1)]).notes)


# Curves and costs


def test_savings_curve_of_a_method_twice_as_fast_is_one_half() -> None:
    ligo = run("ligo", curve((0, 6.0), (25, 4.0), (50, 2.0)), source=10.0)
    found = tables.savings_curve(compare([run("scratch", curve((0, 6.0), (50, 4.0), (100, 2.0))), ligo]))
    reuse, build = (found[found["ledger"] == ledger] for ledger in ("reuse", "build"))
    assert len(reuse) == tables.LEVELS
    assert reuse["saving"].to_numpy() == pytest.approx(0.5)
    assert build["saving"].iloc[-1] == pytest.approx(0.4) and build["saving"].is_monotonic_increasing


def test_mean_curve_keeps_both_evaluations_of_a_growth_step() -> None:
    rows = [{**row, "phase": phase} for row, phase in zip(curve((0, 6.0), (10, 4.0), (10, 5.0)), "aab", strict=True)]
    rows[2]["step"] = rows[1]["step"]
    shifted = [{**row, "val_loss": row["val_loss"] + 1} for row in rows]
    found = tables.mean_curves(compare([run("scratch", rows, 0), run("scratch", shifted, 1)]))
    assert found["val_loss"].tolist() == [6.5, 4.5, 5.5]
    assert found["val_loss_low"].tolist() == [6.0, 4.0, 5.0]
    assert found["seeds"].unique().tolist() == ["0 1"]


def test_breakdown_averages_the_finished_seeds() -> None:
    runs = [scratch(0, 100), scratch(1, 300), scratch(2, 1e6, status="failed")]
    table = tables.cost_breakdown(compare(runs)).set_index(["unit", "account"])["cost"]
    assert table["flops", "train"] == 200 and table["flops", "teacher"] == 0
    assert "evaluation" not in table["flops"].index


def test_a_teacher_is_charged_unless_its_outputs_count_as_stored() -> None:
    costs = {"source": 20.0, "teacher": 30.0, "train": 100.0, "overhead": 5.0, "evaluation": 9.0}
    stored = {**costs, "teacher": 0.0, "overhead": 35.0}
    runs = [scratch()]
    for name, spent in (("online", costs), ("precomputed", stored)):
        runs.append(run(name, curve((0, 6.0), (100, 2.0)), cost={unit: spent for unit in Unit}))
    table = tables.cost_breakdown(compare(runs)).set_index(["method", "unit", "account"])["cost"].sort_index()
    assert table["online", "flops"].to_dict() == {"source": 20, "growth": 0, "operator": 0, "teacher": 30, "train": 100}
    assert table["precomputed", "seconds"].to_dict() == {"source": 20, "growth": 0, "operator": 0, "teacher": 0, "train": 100}
    for found, charged in ((runs[1], 130), (runs[2], 100)):
        assert found.cost(Unit.FLOPS, Ledger.REUSE) == charged
        assert found.cost(Unit.FLOPS, Ledger.BUILD) == charged + 20


def phase(name: str, work: dict[str, float], change: float | None = None, **changes: Any) -> dict[str, Any]:
    found = {"name": name, "scored": True, "target_sized": True, "steps": 5, "median_step_seconds": 0.5}
    return {**found, "flops_per_step": work, "output_change": change, "growth_flops": 0, **changes}


def test_phases_in_order_beside_a_step_of_scratch() -> None:
    phases = [
        phase("learn", {"operator": 12.0}, 0.8, scored=False, target_sized=False),
        phase("frozen", {"train": 4.0}, 0.25),
        phase("inherit", {"train": 10.0, "teacher": 2.0}),
        phase("stored", {"train": 10.0, "overhead": 2.0}, 0.0),
    ]
    runs = [scratch(phases=[phase("train", {"train": 10.0})])]
    runs += [run("grown", curve((0, 4.0), (50, 2.0)), seed, phases=phases[: 4 - seed]) for seed in (0, 1)]
    table = tables.phases(compare(runs))
    assert table["method"].tolist() == ["scratch"] + ["grown"] * 4 and set(table["seed"]) == {0}
    assert table["phase"].tolist() == ["train", "learn", "frozen", "inherit", "stored"]
    assert table["flops_per_step"].tolist() == [10, 12, 4, 12, 10]
    assert table["share_of_scratch"].tolist() == pytest.approx([1, 1.2, 0.4, 1.2, 1])
    assert table["teacher"].tolist()[3] == 2 and table["overhead"].tolist()[4] == 2 and table["teacher"].isna().sum() == 4


def test_phases_are_those_of_the_first_seed_that_finished() -> None:
    whole = [phase("small", {"train": 4.0}), phase("train", {"train": 10.0})]
    broken = run("grown", curve((0, 4.0), (50, 3.0)), 0, status="failed", final_val_loss=None, phases=whole[:1])
    table = tables.phases(compare([scratch(0), scratch(1), broken, run("grown", curve((0, 4.0), (50, 2.0)), 1, phases=whole)]))
    grown = table[table["method"] == "grown"]
    assert grown["seed"].tolist() == [1, 1] and grown["phase"].tolist() == ["small", "train"]


def test_phases_of_older_runs_are_blank() -> None:
    table = tables.phases(compare([scratch()]))
    assert table["steps"].tolist() == [10, 0]
    assert table[["phase", "flops_per_step", "share_of_scratch", "train"]].isna().all(axis=None)


def test_growth_of_every_finished_seed() -> None:
    taken = {
        "loss_before": 4.0,
        "loss_after": 5.0,
        "first_step": 1,
        "duplicates": 0.5,
        "duplicates_end": 0.0,
        "optimizer": "kept",
    }
    phases = [phase("small", {"train": 4.0}, loss_before=None), phase("large", {"train": 10.0}, 0.25, **taken)]
    rows = curve((0, 6.0), (10, 4.0), (10, 5.0), (20, 4.5), (30, 4.0), (50, 2.0))
    runs = [run("grown", rows, seed, phases=phases) for seed in (0, 1)]
    runs.append(run("grown", rows, 2, phases=phases, status="failed", final_val_loss=None))
    old = run("old", rows, phases=[phase("small", {"train": 4.0}), phase("large", {"train": 10.0}, 0.5)])
    table = tables.growth(compare([*(scratch(seed) for seed in range(3)), *runs, old]))
    assert table[["method", "seed", "phase"]].to_numpy().tolist() == [
        ["grown", 0, "large"],
        ["grown", 1, "large"],
        ["old", 0, "large"],
    ]
    found = table.iloc[0].to_dict()
    assert found == {"method": "grown", "seed": 0, "phase": "large", "output_change": 0.25, "steps_to_recover": 3} | {
        key: value for key, value in taken.items() if key != "first_step"
    }
    assert table.iloc[2][["loss_before", "loss_after", "steps_to_recover", "duplicates", "optimizer"]].isna().all()


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        (4.0, 4.0, 0),  # at once
        (4.5, 5.0, 2),  # at step 5, from step 3
        (3.0, 5.0, 3),  # in the next phase
        (1.0, 5.0, math.inf),  # never
        (None, None, math.nan),  # not recorded
    ],
)
def test_steps_to_recover(before: float | None, after: float | None, steps: float) -> None:
    steps_and_losses = [(0, 6.0), (3, 4.0), (3, after or 5.0), (4, 4.8), (5, 4.5), (5, 4.9), (6, 2.5)]
    rows = [{"step": step, "val_loss": loss} for step, loss in steps_and_losses]
    grown = replace(scratch(), curve=rows)
    found = tables.steps_to_recover(grown, PhaseRecord(steps=1, loss_before=before, loss_after=after, first_step=3))
    assert found == pytest.approx(steps, nan_ok=True)


def test_amortised_savings_go_from_the_build_to_the_reuse_value() -> None:
    runs = [scratch(0), scratch(1)]
    runs += [run("grown", curve((0, 4.0), (cost, 2.0)), seed, source=30.0) for seed, cost in ((0, 40), (1, 60))]
    runs += [run("staged", curve((0, 6.0), (80, 2.0)), seed) for seed in (0, 1)]
    runs += [run("slow", curve((0, 6.0), (80, 2.5)), seed) for seed in (0, 1)]
    comparison = compare(runs)
    table = tables.amortised(comparison).set_index(["method", "targets"])
    assert set(table.index.get_level_values("method")) == {"grown", "staged"}
    assert table.loc[("grown", 1), "saving"] == pytest.approx(row(comparison, "grown")["flops_saving_build"]) == 0.2
    assert table.loc[("grown", math.inf), "saving"] == pytest.approx(row(comparison, "grown")["flops_saving_reuse"]) == 0.5
    assert table.loc[("grown", 3), ["saving", "low", "high"]].tolist() == pytest.approx([0.4, 0.3, 0.5])  # 1 - (cost + 10) / 100
    assert table.loc["staged", "saving"].to_numpy() == pytest.approx(0.2)


def counted(name: str, steps: int, each: float | None, **changes: Any) -> dict[str, Any]:
    return phase(name, {"train": 10.0}, steps=steps, paper_flops_per_step=each, **changes)


def test_the_papers_counter_goes_along_the_run_to_its_crossing() -> None:
    """Scratch: 10 steps of 7. Grown: 4 small steps of 2, then steps of 7, of which it takes half a step to 2.0."""
    rows = [
        {**entry, "step": step}
        for entry, step in zip(curve((0, 6.0), (8, 4.0), (8, 3.0), (18, 1.0), (60, 0.5)), (0, 4, 4, 5, 9), strict=True)
    ]
    phases = [counted("small", 4, 2), counted("large", 5, 7)]
    runs = [scratch(phases=[counted("train", 10, 7)]), run("grown", rows, phases=phases)]
    found = row(compare(runs), "grown")
    assert found["flops_saving_reuse"] == pytest.approx(1 - 13 / 100)
    assert found["flops_saving_paper_counter"] == pytest.approx(1 - (4 * 2 + 0.5 * 7) / 70)
    runs.append(run("late", rows, phases=[*phases, counted("unknown", 5, None)]))
    runs.append(run("unknown", rows, phases=[counted("small", 4, None), phases[1]]))
    runs.append(run("slow", curve((0, 6.0), (300, 2.5)), phases=phases))
    runs.append(run("old", rows))
    comparison = compare(runs)
    assert row(comparison, "late")["flops_saving_paper_counter"] == found["flops_saving_paper_counter"]  # it crossed before
    assert all(
        math.isnan(row(comparison, method)["flops_saving_paper_counter"]) for method in ("scratch", "unknown", "slow", "old")
    )


def test_the_papers_counter_of_a_target_by_hand_is_measured_against_scratchs_way_to_it() -> None:
    """Scratch is there after one of its two steps, grown after two thirds of its one step."""
    runs = [
        run("scratch", curve((0, 6.0), (50, 4.0), (100, 2.0)), phases=[counted("train", 2, 7)]),
        run("grown", curve((0, 6.0), (50, 3.0)), phases=[counted("train", 1, 7)]),
    ]
    assert row(compare(runs, target_loss=4.0), "grown")["flops_saving_paper_counter"] == pytest.approx(1 / 3)


def test_what_has_no_trained_small_model_behind_it_is_a_control() -> None:
    whole = [phase("train", {"train": 10.0})]
    small = [phase("small", {"train": 4.0}, target_sized=False), *whole]
    operator = [phase("learn", {"operator": 12.0}, scored=False, target_sized=False), *whole]
    rows = curve((0, 4.0), (50, 2.0))
    comparison = compare(
        [
            scratch(phases=whole),
            run("short", rows, phases=whole),
            run("random", rows, phases=operator),
            run("given", rows, source=20.0, phases=whole),
            run("staged", rows, phases=small),
            run("kept", rows, source=20.0, phases=whole, keeps_source=True),
            run("old", rows),
            run("broken", rows, phases=whole, status="failed", final_val_loss=None),
        ]
    )
    assert comparison.where("control") == ["random", "short"]
    assert comparison.where("keeps_source") == ["kept"]
    assert (comparison.label("kept"), comparison.label("old")) == ("kept†", "old")


def test_accuracy_is_averaged_over_the_finished_seeds() -> None:
    runs = []
    for seed, final in enumerate((0.5, 0.7)):
        rows = [{**row, "val_accuracy": final - 0.1 * (1 - step)} for step, row in enumerate(curve((0, 6.0), (100, 2.0)))]
        runs.append(run("scratch", rows, seed, final_val_accuracy=final))
    broken = run("ligo", rows, 0, status="failed", final_val_loss=None, final_val_accuracy=0.9)
    comparison = compare([*runs, broken])
    assert comparison.has_accuracy
    assert row(comparison, "scratch")["final_val_accuracy"] == pytest.approx(0.6)
    assert math.isnan(row(comparison, "ligo")["final_val_accuracy"])
    found = tables.mean_curves(comparison)
    found = found[found["method"] == "scratch"]
    assert found["val_accuracy"].tolist() == pytest.approx([0.5, 0.6])
    assert found["val_accuracy_low"].tolist() == pytest.approx([0.4, 0.5])
    assert found["val_accuracy_high"].tolist() == pytest.approx([0.6, 0.7])
    assert not compare([scratch()]).has_accuracy and "val_accuracy" not in tables.mean_curves(compare([scratch()]))


# Several experiments


def cheap(cost: float) -> Run:
    return run("cheap", curve((0, 6.0), (cost, 2.0)), source=10.0)


def experiments() -> dict[str, Comparison]:
    """Cost to target: scratch 100 throughout; cheap 50, 25, missed; even 60, 100, 80. The source, of cheap alone, costs 10."""
    missed = run("cheap", curve((0, 6.0), (300, 2.5)), source=10.0)
    cheaps, evens = (cheap(50), cheap(25), missed), (60, 100, 80)
    return {
        f"e{number}": compare([scratch(), found, run("even", curve((0, 6.0), (cost, 2.0)))])
        for number, (found, cost) in enumerate(zip(cheaps, evens, strict=True))
    }


def test_profiles_by_hand() -> None:
    table = profiles.savings(experiments())
    assert table["experiment"].tolist() == ["e0"] * 3 + ["e1"] * 3 + ["e2"] * 3
    ratios = table.pivot(index="method", columns="experiment", values="to_best_reuse")
    assert ratios.loc["cheap"].tolist() == [1, 1, math.inf]
    assert ratios.loc["even"].tolist() == pytest.approx([1.2, 4, 1])
    assert ratios.loc["scratch"].tolist() == pytest.approx([2, 4, 1.25])
    found = profiles.profiles(table).set_index(["method", "ledger"])
    thirds = {
        ("cheap", "reuse"): [(1, 2), (4, 2)],
        ("even", "reuse"): [(1, 1), (1.2, 2), (4, 3)],
        ("scratch", "reuse"): [(1, 0), (1.25, 1), (2, 2), (4, 3)],
        ("even", "build"): [(1, 2), (100 / 35, 3), (4, 3)],  # cheap now costs 60 and 35
    }
    for key, steps in thirds.items():
        rows = found.loc[[key]]
        assert rows["tau"].tolist() == pytest.approx([tau for tau, _ in steps])
        assert rows["share"].tolist() == pytest.approx([count / 3 for _, count in steps])


def test_the_geometric_mean_of_costs_over_scratchs() -> None:
    means = profiles.mean_ratios(profiles.savings(experiments())).set_index("method")
    assert means.loc["even", "to_scratch_reuse"] == pytest.approx((0.6 * 1 * 0.8) ** (1 / 3))
    assert means.loc["scratch"].tolist() == [3, 1, 1]
    assert means.loc["cheap", ["to_scratch_reuse", "to_scratch_build"]].isna().all()
    reached = {name: found for name, found in experiments().items() if name != "e2"}
    means = profiles.mean_ratios(profiles.savings(reached)).set_index("method")
    assert means.loc["cheap"].tolist() == pytest.approx([2, math.sqrt(0.5 * 0.25), math.sqrt(0.6 * 0.35)])


def test_shares_are_those_of_methods_that_were_run_everywhere() -> None:
    comparisons = experiments() | {"e3": compare([scratch(), run("even", curve((0, 6.0), (50, 2.0)))])}
    table = profiles.savings(comparisons)
    assert profiles.everywhere(table) == ["scratch", "even"]
    assert set(profiles.profiles(table)["method"]) == {"scratch", "even"}


def test_a_model_that_meets_the_target_as_it_is_grown_costs_nothing_and_is_the_best() -> None:
    table = profiles.savings({"e": compare([scratch(), run("free", curve((0, 1.0), (50, 0.5)))])}).set_index("method")
    assert table["to_best_reuse"].to_dict() == {"scratch": math.inf, "free": 1}


# The results folder


def store(folder: Path, stored: Run, tail: str = "") -> None:
    path = folder / stored.folder.name
    path.mkdir(parents=True)
    (path / "run.json").write_text(stored.record.text())
    (path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stored.curve) + tail)


def test_a_truncated_last_line_is_left_out(tmp_path: Path) -> None:
    store(tmp_path, scratch())
    store(tmp_path, run("ligo", curve((0, 4.0), (50, 2.0))), tail='{"step": 2, "val_lo')
    store(tmp_path, run("source", curve((0, 4.0), (50, 1.0))))
    comparison = analyse(tmp_path)
    assert comparison.methods == ["scratch", "ligo"]
    assert row(comparison, "ligo")["flops_saving_reuse"] == 0.5


@pytest.mark.parametrize("name", [".", "absent"])
def test_a_folder_without_runs_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no ended run"):
        analyse(tmp_path / name)


def test_without_scratch_a_target_must_be_given(tmp_path: Path) -> None:
    store(tmp_path, scratch(status="failed"))
    store(tmp_path, run("ligo", curve((0, 4.0), (50, 2.0))))
    with pytest.raises(UsageError, match="--target-loss"):
        analyse(tmp_path)
    found = row(analyse(tmp_path, target_loss=3.0), "ligo")
    assert (found["reached"], found["flops_to_target_reuse"]) == (1, 25) and math.isnan(found["flops_saving_reuse"])
