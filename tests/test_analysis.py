"""The analysis on curves whose answers are known in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growbench import analysis
from growbench.analysis import compare, cost_to_loss
from growbench.config import UsageError
from growbench.results import Run

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
        "status": "finished", "experiment": "e", "title": "An experiment", "method": method, "seed": seed, "published": None,
        "config": {"experiment": {"train": {"steps": 10}}, "method": {}}, "cost": spent, "final_val_loss": rows[-1]["val_loss"],
        "steps": 10, "tokens": 2000, "parameters": 100, "hardware": CPU, "error": None,
        "phases": [{"steps": 10, "median_step_seconds": 0.5}, {"steps": 0, "median_step_seconds": None}],
    }  # fmt: skip
    return Run(Path(f"{method}-seed{seed}"), {**record, **changes}, rows)


def scratch(seed: int = 0, budget: float = 100.0, final: float = 2.0, **changes: Any) -> Run:
    return run("scratch", curve((0, 6.0), (budget, final)), seed, **changes)


def row(comparison: analysis.Comparison, method: str) -> dict[str, Any]:
    return next(row for row in analysis.records(comparison.savings) if row["method"] == method)


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
    assert (found["flops_saving_reuse_low"], found["flops_saving_reuse_high"]) == pytest.approx((0.25, 0.5))


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
    assert analysis.savings_curve(comparison).empty


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
    experiment = scratch().record["config"]["experiment"]
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


@given(st.lists(st.floats(-2, 1), min_size=2, max_size=5))
def test_the_interval_holds_the_mean_and_stays_inside_the_seeds(values: list[float]) -> None:
    low, high = analysis.interval(values)
    mean = sum(values) / len(values)
    assert min(values) - 1e-9 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= max(values) + 1e-9


# Curves and costs


def test_savings_curve_of_a_method_twice_as_fast_is_one_half() -> None:
    ligo = run("ligo", curve((0, 6.0), (25, 4.0), (50, 2.0)), source=10.0)
    found = analysis.savings_curve(compare([run("scratch", curve((0, 6.0), (50, 4.0), (100, 2.0))), ligo]))
    reuse, build = (found[found["ledger"] == ledger] for ledger in ("reuse", "build"))
    assert len(reuse) == analysis.LEVELS
    assert reuse["saving"].to_numpy() == pytest.approx(0.5)
    assert build["saving"].iloc[-1] == pytest.approx(0.4) and build["saving"].is_monotonic_increasing


def test_mean_curve_keeps_both_evaluations_of_a_growth_step() -> None:
    rows = [{**row, "phase": phase} for row, phase in zip(curve((0, 6.0), (10, 4.0), (10, 5.0)), "aab", strict=True)]
    rows[2]["step"] = rows[1]["step"]
    shifted = [{**row, "val_loss": row["val_loss"] + 1} for row in rows]
    found = analysis.mean_curves(compare([run("scratch", rows, 0), run("scratch", shifted, 1)]))
    assert found["val_loss"].tolist() == [6.5, 4.5, 5.5]
    assert found["val_loss_low"].tolist() == [6.0, 4.0, 5.0]
    assert found["seeds"].unique().tolist() == ["0 1"]


def test_breakdown_averages_the_finished_seeds() -> None:
    runs = [scratch(0, 100), scratch(1, 300), scratch(2, 1e6, status="failed")]
    table = analysis.cost_breakdown(compare(runs)).set_index(["unit", "account"])["cost"]
    assert table["flops", "train"] == 200 and table["flops", "teacher"] == 0
    assert "evaluation" not in table["flops"].index


def test_a_teacher_is_charged_unless_its_outputs_count_as_stored() -> None:
    costs = {"source": 20.0, "teacher": 30.0, "train": 100.0, "overhead": 5.0, "evaluation": 9.0}
    stored = {**costs, "teacher": 0.0, "overhead": 35.0}
    runs = [scratch()]
    for name, spent in (("online", costs), ("precomputed", stored)):
        runs.append(run(name, curve((0, 6.0), (100, 2.0)), cost={unit: spent for unit in analysis.UNITS}))
    table = analysis.cost_breakdown(compare(runs)).set_index(["method", "unit", "account"])["cost"].sort_index()
    assert table["online", "flops"].to_dict() == {"source": 20, "growth": 0, "operator": 0, "teacher": 30, "train": 100}
    assert table["precomputed", "seconds"].to_dict() == {"source": 20, "growth": 0, "operator": 0, "teacher": 0, "train": 100}
    for found, charged in ((runs[1], 130), (runs[2], 100)):
        assert analysis.full_cost(found, "flops", "reuse") == charged
        assert analysis.full_cost(found, "flops", "build") == charged + 20


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
    table = analysis.phases(compare(runs))
    assert table["method"].tolist() == ["scratch"] + ["grown"] * 4 and set(table["seed"]) == {0}
    assert table["phase"].tolist() == ["train", "learn", "frozen", "inherit", "stored"]
    assert table["flops_per_step"].tolist() == [10, 12, 4, 12, 10]
    assert table["share_of_scratch"].tolist() == pytest.approx([1, 1.2, 0.4, 1.2, 1])
    assert table["teacher"].tolist()[3] == 2 and table["overhead"].tolist()[4] == 2 and table["teacher"].isna().sum() == 4
    assert table["output_change"].isna().tolist() == [True, False, False, True, False]


def test_phases_are_those_of_the_first_seed_that_finished() -> None:
    whole = [phase("small", {"train": 4.0}), phase("train", {"train": 10.0})]
    broken = run("grown", curve((0, 4.0), (50, 3.0)), 0, status="failed", final_val_loss=None, phases=whole[:1])
    table = analysis.phases(compare([scratch(0), scratch(1), broken, run("grown", curve((0, 4.0), (50, 2.0)), 1, phases=whole)]))
    grown = table[table["method"] == "grown"]
    assert grown["seed"].tolist() == [1, 1] and grown["phase"].tolist() == ["small", "train"]


def test_phases_of_older_runs_are_blank() -> None:
    table = analysis.phases(compare([scratch()]))
    assert table["steps"].tolist() == [10, 0]
    assert table[["phase", "flops_per_step", "share_of_scratch", "train", "output_change"]].isna().all(axis=None)


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
    found = analysis.mean_curves(comparison)
    found = found[found["method"] == "scratch"]
    assert found["val_accuracy"].tolist() == pytest.approx([0.5, 0.6])
    assert found["val_accuracy_low"].tolist() == pytest.approx([0.4, 0.5])
    assert found["val_accuracy_high"].tolist() == pytest.approx([0.6, 0.7])
    assert not compare([scratch()]).has_accuracy and "val_accuracy" not in analysis.mean_curves(compare([scratch()]))


# The results folder


def store(folder: Path, stored: Run, tail: str = "") -> None:
    path = folder / stored.folder.name
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(stored.record))
    (path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stored.curve) + tail)


def test_a_truncated_last_line_is_left_out(tmp_path: Path) -> None:
    store(tmp_path, scratch())
    store(tmp_path, run("ligo", curve((0, 4.0), (50, 2.0))), tail='{"step": 2, "val_lo')
    store(tmp_path, run("source", curve((0, 4.0), (50, 1.0))))
    comparison = analysis.analyse(tmp_path)
    assert comparison.methods == ["scratch", "ligo"]
    assert row(comparison, "ligo")["flops_saving_reuse"] == 0.5


@pytest.mark.parametrize("name", [".", "absent"])
def test_a_folder_without_runs_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no ended run"):
        analysis.analyse(tmp_path / name)


def test_without_scratch_a_target_must_be_given(tmp_path: Path) -> None:
    store(tmp_path, scratch(status="failed"))
    store(tmp_path, run("ligo", curve((0, 4.0), (50, 2.0))))
    with pytest.raises(UsageError, match="--target-loss"):
        analysis.analyse(tmp_path)
    found = row(analysis.analyse(tmp_path, target_loss=3.0), "ligo")
    assert (found["reached"], found["flops_to_target_reuse"]) == (1, 25) and math.isnan(found["flops_saving_reuse"])
