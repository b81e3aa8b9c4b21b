"""The analysis on curves whose answers are known in closed form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from growbench.analysis import profiles, tables
from growbench.analysis.comparison import Comparison, analyse, compare
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError
from growbench.runs.store import Run
from growbench.training.records import PhaseRecord
from tests.analysis.stored import curve, row, run, scratch, straight

# Curves and costs


def test_a_run_without_a_curve_leaves_its_methods_others_in_the_figure() -> None:
    empty = Run(Path("ligo-seed1"), straight("ligo", 50, 1).record, [])
    curves = tables.mean_curves(compare([scratch(0), scratch(1), straight("ligo", 50), empty]))
    assert set(curves["method"]) == {"scratch", "ligo"}


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
    runs += [straight("grown", 50, seed, source=30.0) for seed in (0, 1)]
    runs += [straight("staged", 80, seed) for seed in (0, 1)]
    runs += [run("slow", curve((0, 6.0), (80, 2.5)), seed) for seed in (0, 1)]
    comparison = compare(runs)
    table = tables.amortised(comparison).set_index(["method", "targets"])
    assert set(table.index.get_level_values("method")) == {"grown", "staged"}
    for targets, ledger, saving in ((1, "build", 0.2), (math.inf, "reuse", 0.5)):
        assert table.loc[("grown", targets), "saving"] == pytest.approx(row(comparison, "grown")[f"flops_saving_{ledger}"])
        assert table.loc[("grown", targets), "saving"] == pytest.approx(saving)
    assert table.loc[("grown", 3), "saving"] == pytest.approx(0.4)  # 1 - (50 + 10) / 100
    assert table.loc["staged", "saving"].to_numpy() == pytest.approx(0.2)


def counted(name: str, steps: int, each: float | None, **changes: Any) -> dict[str, Any]:
    return phase(name, {"train": 10.0}, steps=steps, paper_flops_per_step=each, **changes)


def test_the_papers_counter_goes_along_the_run_to_its_crossing() -> None:
    """Scratch: 10 steps of 7. Grown: 4 small steps of 2, then steps of 7, of which it takes half a step to 2.0.

    What was counted at other shares of positions than scratch's outputs has no saving.
    """
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
    runs.append(run("masked", rows, phases=[{**each, "paper_output_share": 0.15625} for each in phases]))
    runs.append(run("causal", rows, phases=[{**each, "paper_output_share": 1.0} for each in phases]))
    comparison = compare(runs)
    assert row(comparison, "masked")["flops_saving_paper_counter"] == found["flops_saving_paper_counter"]
    assert row(comparison, "late")["flops_saving_paper_counter"] == found["flops_saving_paper_counter"]  # it crossed before
    assert all(
        math.isnan(row(comparison, method)["flops_saving_paper_counter"])
        for method in ("scratch", "unknown", "slow", "old", "causal")
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


def test_a_bound_has_no_mean_and_an_experiment_of_scratch_alone_has_no_part() -> None:
    found = {"e0": compare([scratch(), straight("even", 50)]), "e1": compare([scratch()])}
    means = profiles.mean_ratios(profiles.savings(found)).set_index("method")
    assert means.loc["even"].tolist() == pytest.approx([1, 0.5, 0.5])
    found["e2"] = compare([scratch(), run("even", curve((0, 1.9), (50, 1.0)))])  # below scratch from the start
    means = profiles.mean_ratios(profiles.savings(found)).set_index("method")
    assert means.loc["even"].isna().tolist() == [False, True, True]
    assert profiles.savings({"e1": found["e1"]}).empty


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


@pytest.mark.parametrize(("name", "message"), [(".", "no ended run"), ("absent", "there is no such folder")])
def test_a_folder_without_runs_is_a_usage_error(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        analyse(tmp_path / name)


def test_without_scratch_a_target_must_be_given(tmp_path: Path) -> None:
    store(tmp_path, scratch(status="failed"))
    store(tmp_path, run("ligo", curve((0, 4.0), (50, 2.0))))
    with pytest.raises(UsageError, match="--target-loss"):
        analyse(tmp_path)
    comparison = analyse(tmp_path, target_loss=3.0)
    assert row(comparison, "ligo")["reached"] == 1 and math.isnan(row(comparison, "ligo")["flops_saving_reuse"])
    assert comparison.outcomes.set_index("method").loc["ligo", "flops_to_target_reuse"] == 25
