"""What a comparison of stored runs says of savings: against answers in closed form, and against scipy's tests."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from growbench.analysis import notes
from growbench.analysis.comparison import Comparison, compare
from growbench.analysis.outliers import outlying_seeds
from growbench.analysis.protocols import Protocol, Question, Reading
from growbench.analysis.statistics import smallest_detectable
from growbench.costs.accounts import Ledger, Unit
from growbench.runs.store import Run
from tests.analysis.stored import CPU, curve, row, run, scratch, straight

REUSE = Question.of(Unit.FLOPS, Ledger.REUSE)


def a_note(comparison: Comparison, beginning: str) -> str:
    (found,) = (note for note in comparison.notes if note.startswith(beginning))
    return found


def whole(cost: float, losses: float, seed: int = 0) -> Run:
    """A run of the method m that costs as much as scratch and ends at `losses`."""
    return run("m", curve((0, 6.0), (cost, losses)), seed)


# How runs are read


def single_curve(*rows: dict[str, Any]) -> Any:
    return Reading(Protocol.SINGLE, [run("m", list(rows))]).curve("m", 0, REUSE)


def test_only_evaluations_after_the_last_unscored_one_count() -> None:
    """A small model's losses, and those while an operator is learned, neither meet scratch nor carry a line."""
    small = curve((0, 6.0), (10, 1.0), scored=False)
    assert single_curve(*small).meets(3.0) == math.inf
    assert single_curve(*small, *curve((12, 2.5), (20, 2.0))).meets(3.0) == 12
    assert single_curve(*curve((0, 2.0)), *small, *curve((12, 2.5))).costs.tolist() == [12]


def test_a_run_meets_a_loss_where_its_line_falls_to_it_for_good() -> None:
    assert single_curve(*curve((0, 6.0), (10, 4.0), (20, 2.0))).meets(3.5) == 12.5
    assert single_curve(*curve((0, 6.0), (10, 4.0))).meets(3.9) == math.inf
    assert single_curve(*curve((7, 3.0), (10, 2.0))).meets(3.5) == 7  # at once
    assert single_curve(*curve((0, 6.0), (10, math.nan), (20, 2.0))).meets(4.0) == 10


losses = st.lists(st.floats(0.5, 8), min_size=1, max_size=12)


@given(losses, st.floats(0.5, 8), st.floats(0, 2))
def test_an_easier_loss_never_costs_more(values: list[float], level: float, easier: float) -> None:
    found = single_curve(*curve(*((10.0 * step, loss) for step, loss in enumerate(values, start=1))))
    assert found.meets(level + easier) <= found.meets(level)
    assert (np.diff(found.losses[:-1]) <= 1e-9).all() and found.losses.min() >= min(values) - 1e-9


# Savings


def test_saving_and_both_ledgers_in_closed_form() -> None:
    method = straight("ligo", 50, source=20.0, published={"flops": 44.7, "seconds": None})
    comparison = compare([scratch(), method])
    found = row(comparison, "ligo")
    assert comparison.target_loss == 2.0
    assert comparison.methods == ["scratch", "ligo"]
    assert (found["flops_to_target_reuse"], found["flops_to_target_build"]) == pytest.approx((50, 70))
    assert found["flops_saving_reuse"] == pytest.approx(0.5)
    assert found["flops_saving_build"] == pytest.approx(0.3)
    assert found["seconds_saving_reuse"] == pytest.approx(0.5)
    assert found["seconds_saving_build"] == pytest.approx(0.4)  # the source took 20 s, scratch 200 s
    assert found["published_flops_saving"] == pytest.approx(0.447) and math.isnan(found["published_seconds_saving"])
    assert (found["nominal_seconds"], found["tokens_per_parameter"]) == (5.0, 20.0)


def test_scratch_is_the_reference() -> None:
    found = row(compare([scratch(0, final=1.9), scratch(1, final=2.1)]), "scratch")
    assert (found["seeds"], found["reached"], found["flops_saving_reuse"]) == (2, 2, 0.0)
    assert math.isnan(found["flops_saving_reuse_low"]) and found["flops_verdict_reuse"] == "reference"
    assert found["flops_to_target_reuse"] == 100


def test_each_seed_is_held_against_its_own_scratch() -> None:
    """Scratch ends at 1.6, 2.0 and 2.4, the method exactly there after half the cost: each seed saves one half."""
    finals = (1.6, 2.0, 2.4)
    runs = [scratch(seed, final=final) for seed, final in enumerate(finals)]
    runs += [run("m", curve((0, 6.0), (50, final), (100, final - 1)), seed) for seed, final in enumerate(finals)]
    comparison = compare(runs)
    assert comparison.outcomes.query("method == 'm'")["flops_saving_reuse"].tolist() == pytest.approx([0.5] * 3)
    assert row(comparison, "m")["flops_saving_reuse"] == pytest.approx(0.5)
    assert row(comparison, "m")["reached"] == 3


def test_curves_are_held_against_curves_and_not_against_final_losses_on_other_data() -> None:
    """The whole validation split is harder by 0.3 than the part that is evaluated on the way, for all alike."""
    runs = [run("scratch", curve((0, 6.0), (100, 2.0)), final_val_loss=2.3)]
    runs.append(run("m", curve((0, 6.0), (50, 2.0), (100, 1.0)), final_val_loss=1.3))
    comparison = compare(runs)
    assert (comparison.target_loss, comparison.ladder_loss) == (2.0, 2.3)
    assert row(comparison, "m")["flops_saving_reuse"] == pytest.approx(0.5)
    assert row(comparison, "m")["loss_difference_reuse"] == -1


def test_one_seed_has_no_interval_and_says_so() -> None:
    comparison = compare([scratch(), straight("ligo", 50)])
    found = row(comparison, "ligo")
    assert found["flops_saving_reuse"] == pytest.approx(0.5)
    assert math.isnan(found["flops_saving_reuse_low"]) and math.isnan(found["flops_p_reuse"])
    assert found["flops_verdict_reuse"] == "one seed"
    assert a_note(comparison, "One seed")


def test_settings_that_scratch_does_not_have_are_named() -> None:
    phases = [{"steps": 10, "settings": {"norm_eps": 8e-6}}]
    comparison = compare([scratch(), straight("lemon", 50, phases=phases), straight("ligo", 50)])
    assert a_note(comparison, "Trained with") == "Trained with settings that scratch does not have: lemon (norm_eps = 8e-06)."


def test_a_seed_that_failed_leaves_no_saving_and_is_named() -> None:
    runs = [scratch(seed) for seed in range(3)] + [straight("ligo", 50 + seed, seed) for seed in range(2)]
    broken = run("ligo", curve((0, 4.0), (50, 1.0)), 2, status="failed", final_val_loss=None)
    comparison = compare([*runs, broken])
    found = row(comparison, "ligo")
    assert (found["seeds"], found["finished"], found["reached"]) == (3, 2, 2)
    assert math.isnan(found["flops_saving_reuse"]) and math.isinf(found["flops_to_target_reuse"])
    assert found["flops_verdict_reuse"] == "did not finish in 1 of 3 seeds"
    assert "ligo-seed2" in a_note(comparison, "Did not finish")


def test_a_method_that_ends_above_scratch_is_a_bound_and_costs_more() -> None:
    runs = [scratch(seed) for seed in range(3)]
    runs += [run("slow", curve((0, 6.0), (100, 2.5 + 0.01 * seed)), seed) for seed in range(3)]
    found = row(compare(runs), "slow")
    assert found["reached"] == 0 and math.isinf(found["flops_to_target_reuse"])
    assert (found["flops_saving_reuse"], found["flops_saving_reuse_relation"]) == (0, "<")
    assert (found["flops_saving_reuse_low"], found["flops_saving_reuse_high"]) == (-math.inf, 0)
    assert found["flops_verdict_reuse"] == "costs more" and found["loss_difference_reuse"] == pytest.approx(0.51)


def test_all_seeds_may_miss_without_a_verdict() -> None:
    runs = [scratch(seed) for seed in range(3)]
    runs += [whole(100, final, seed) for seed, final in enumerate((2.01, 2.3, 2.02))]
    found = row(compare(runs), "m")
    assert found["reached"] == 0 and found["flops_saving_reuse_relation"] == "<"
    assert found["flops_verdict_reuse"] == "not told apart from scratch" and 0 < found["flops_saving_reuse_high"] < 0.2


def test_a_miss_is_a_value_like_any_other() -> None:
    """Two seeds end well below their scratch and one just above it: the mean counts, not the miss."""
    runs = [scratch(seed) for seed in range(3)] + [whole(100, final, seed) for seed, final in enumerate((1.6, 1.7, 2.05))]
    found = row(compare(runs), "m")
    assert found["reached"] == 2 and found["flops_saving_reuse_relation"] == "="
    assert found["flops_saving_reuse"] == pytest.approx(1 - 4 / (6 - np.mean([1.6, 1.7, 2.05])))


def test_a_dearer_method_has_a_negative_saving() -> None:
    assert row(compare([scratch(), straight("slow", 300, end=300)]), "slow")["flops_saving_reuse"] == pytest.approx(-2)


def test_target_by_hand_is_measured_against_scratchs_own_way_to_it() -> None:
    comparison = compare([scratch(), straight("ligo", 50)], target_loss=4.0)  # half-way for both
    found = row(comparison, "ligo")
    assert comparison.target_loss_given and comparison.target_loss == 4
    assert found["flops_to_target_reuse"] == pytest.approx(25) and found["flops_saving_reuse"] == pytest.approx(0.5)
    assert found["tested_at_reuse"] == 1 and "50.0\N{NO-BREAK SPACE}% of its full cost" in a_note(comparison, "The target")


def test_a_target_that_scratch_never_meets_gives_lower_bounds() -> None:
    comparison = compare([scratch(), run("ligo", curve((0, 6.0), (50, 1.0)))], target_loss=1.0)
    assert row(comparison, "scratch")["reached"] == 0
    assert row(comparison, "ligo")["flops_saving_reuse"] == pytest.approx(0.5)  # of all that scratch spent
    assert "lower bounds" in a_note(comparison, "The target")


def test_of_a_target_that_neither_meets_nothing_is_said() -> None:
    """A method that ends far below scratch does not cost more because it misses a low target too."""
    runs = [*(scratch(seed, final=2.0 + 0.01 * seed) for seed in range(3))]
    runs += [run("ahead", curve((0, 6.0), (100, 1.2 + 0.01 * seed**2)), seed) for seed in range(3)]
    runs += [run("there", curve((0, 6.0), (100, 0.8 + 0.01 * seed**2)), seed) for seed in range(3)]
    comparison = compare(runs, target_loss=1.0)
    ahead, there = row(comparison, "ahead"), row(comparison, "there")
    assert ahead["flops_verdict_reuse"] == "scratch never meets the target loss" and math.isnan(ahead["flops_saving_reuse"])
    assert math.isnan(ahead["flops_p_reuse"]) and there["flops_verdict_reuse"] == "saves"
    assert there["flops_p_holm_reuse"] == pytest.approx(2 * there["flops_p_reuse"])  # both are members of the family
    assert there["flops_saving_reuse_relation"] == ">" and there["flops_saving_reuse_high"] == math.inf
    assert 0 < there["flops_saving_reuse_low"] < there["flops_saving_reuse"]
    assert row(comparison, "scratch")["flops_to_target_reuse"] == math.inf
    own = comparison.own_savings(Protocol.SINGLE).set_index("method")
    assert own.loc["ahead", "flops_saving_reuse"].isna().all() and set(own.loc["there", "flops_saving_reuse_relation"]) == {">"}


def test_a_target_without_a_finished_scratch_gives_no_saving_and_says_so() -> None:
    broken = run("scratch", curve((0, 6.0)), status="failed", final_val_loss=None)
    comparison = compare([broken, straight("ligo", 50)], target_loss=2.0)
    assert a_note(comparison, "The target").endswith("No run of scratch finished, so there are no savings.")
    assert a_note(comparison, "Did not finish") == "Did not finish, hence nothing is compared with them: scratch-seed0."
    assert "scratch" not in a_note(comparison, "Without a finished scratch run").split(": ")[1]


def test_a_target_that_scratch_meets_at_once_gives_no_saving() -> None:
    comparison = compare([scratch(), straight("ligo", 50)], target_loss=7.0)
    assert math.isnan(row(comparison, "ligo")["flops_saving_reuse"])
    assert row(comparison, "ligo")["flops_verdict_reuse"] == "scratch meets the target loss at its smallest cost already"
    assert "there are no savings" in a_note(comparison, "The target")


def test_a_seed_without_scratch_has_no_part_in_the_saving_and_is_named() -> None:
    comparison = compare([scratch(0), straight("ligo", 50, 0), straight("ligo", 90, 1)])
    assert row(comparison, "ligo")["flops_saving_reuse"] == pytest.approx(0.5)
    assert "ligo-seed1" in a_note(comparison, "Without a finished scratch run")
    alone = compare([scratch(0), straight("ligo", 90, 1)])
    assert row(alone, "ligo")["flops_verdict_reuse"] == "no seed in common with a finished scratch run"


def test_runs_of_another_experiment_are_left_out_and_named() -> None:
    other = straight("ligo", 50, config={"experiment": {"train": {"steps": 99}}, "method": {}})
    comparison = compare([scratch(), other])
    assert comparison.methods == ["scratch"]
    assert comparison.left_out == [other]
    assert "ligo-seed0" in a_note(comparison, "Left out")


def test_other_hardware_has_no_saving_in_seconds() -> None:
    comparison = compare([scratch(), straight("ligo", 50, hardware={**CPU, "threads": 4})])
    found = row(comparison, "ligo")
    assert found["flops_saving_reuse"] == pytest.approx(0.5) and math.isnan(found["seconds_saving_reuse"])
    assert any("other hardware" in note for note in comparison.notes)


def test_seconds_that_do_not_repeat_are_not_compared() -> None:
    """Scratch's seconds differ by half over its seeds: no column has any, and what was measured is kept."""
    slow = [{**each, "seconds": 1.5 * each["seconds"]} for each in curve((0, 6.0), (100, 2.1))]
    runs = [scratch(0), run("scratch", slow, 1), *(straight("ligo", 50 + seed, seed) for seed in (0, 1))]
    comparison = compare(runs)
    assert comparison.units == [Unit.FLOPS] and math.isnan(row(comparison, "ligo")["seconds_saving_reuse"])
    assert [each.cost(Unit.SECONDS, Ledger.REUSE) for each in comparison.measured[-2:]] == [200, 300]
    assert any("do not compare" in note for note in comparison.notes)


def test_a_curve_that_was_cut_is_named() -> None:
    cut = replace(straight("ligo", 50), cut=11)
    assert "ligo-seed0 (11)" in a_note(compare([scratch(), cut]), "Evaluations that were made again")


def test_an_unknown_cost_of_the_source_leaves_the_build_ledger_empty() -> None:
    runs = [scratch(seed) for seed in range(3)]
    runs += [straight("ligo", 50 + seed, seed, source=None) for seed in range(3)]
    found = row(compare(runs), "ligo")
    assert found["flops_saving_reuse"] == pytest.approx(0.49, abs=0.001) and math.isnan(found["flops_saving_build"])
    assert found["flops_verdict_reuse"] == "saves" and found["flops_verdict_build"] == "the cost of the source is not known"


def test_seeds_with_other_hyperparameters_than_the_first_are_left_out_and_named() -> None:
    experiment = scratch().record.config.experiment
    configs = [{"experiment": experiment, "method": {"steps": steps}} for steps in (10, 20)]
    runs = [straight("ligo", cost, seed, config=configs[seed]) for seed, cost in enumerate((50, 80))]
    comparison = compare([scratch(0), scratch(1), *runs])
    assert comparison.left_out == [runs[1]]
    assert row(comparison, "ligo")["seeds"] == 1 and row(comparison, "ligo")["flops_saving_reuse"] == pytest.approx(0.5)
    found = a_note(comparison, "Left out")
    assert "hyperparameters" in found and "ligo-seed1" in found


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 500), st.floats(1, 500))
def test_savings_are_below_one_and_fall_with_cost(cost: float, other: float) -> None:
    runs = [scratch(), *(straight(name, spent, end=spent) for name, spent in (("a", cost), ("b", other)))]
    comparison = compare(runs)
    first, second = (row(comparison, name)["flops_saving_reuse"] for name in ("a", "b"))
    assert first < 1 and second < 1
    assert (first >= second) == (cost <= other) or first == pytest.approx(second)


# Tests and verdicts


def noisy(method: str, finals: tuple[float, ...], **changes: Any) -> list[Run]:
    """Runs of scratch's cost that end at these losses, a seed each."""
    return [run(method, curve((0, 6.0), (100, final)), seed, **changes) for seed, final in enumerate(finals)]


SCRATCH = (1.98, 2.03, 2.0)


def test_p_values_are_scipys_of_paired_losses_corrected_by_hand() -> None:
    finals = {"good": (1.50, 1.56, 1.51), "fair": (1.9, 1.96, 1.91), "vain": (2.0, 1.9, 2.1)}
    comparison = compare([*noisy("scratch", SCRATCH), *(each for name in finals for each in noisy(name, finals[name]))])
    raw = {method: float(ttest_rel(values, SCRATCH).pvalue) for method, values in finals.items()}
    assert raw["good"] < raw["fair"] < 0.025 < 0.05 < raw["vain"]
    adjusted = {"good": 3 * raw["good"], "fair": 2 * raw["fair"], "vain": raw["vain"]}
    for method in finals:
        found = row(comparison, method)
        assert found["flops_p_reuse"] == pytest.approx(raw[method])
        assert found["flops_p_holm_reuse"] == pytest.approx(adjusted[method])
        assert found["loss_difference_reuse"] == pytest.approx(np.mean(finals[method]) - np.mean(SCRATCH))
    verdicts = [row(comparison, method)["flops_verdict_reuse"] for method in finals]
    assert verdicts == ["saves", "saves", "not told apart from scratch"]
    assert math.isnan(row(comparison, "scratch")["flops_p_reuse"])


def test_misses_and_what_did_not_finish_are_members_of_the_family() -> None:
    good = (1.50, 1.56, 1.51)
    runs = [*noisy("scratch", SCRATCH), *noisy("good", good)]
    broken = noisy("broken", (1.0, 1.1, 1.2))
    broken[0] = run("broken", curve((0, 6.0)), status="failed", final_val_loss=None)
    p = row(compare(runs), "good")["flops_p_reuse"]
    for others, members in (([], 1), (noisy("miss", (2.4, 2.5, 2.6)), 2), (broken, 2)):
        assert row(compare([*runs, *others]), "good")["flops_p_holm_reuse"] == pytest.approx(members * p, rel=0.3)
    assert math.isnan(row(compare([*runs, *broken]), "broken")["flops_p_holm_reuse"])


def test_controls_are_a_family_of_their_own() -> None:
    phase = {"name": "train", "scored": True, "target_sized": True, "steps": 5, "median_step_seconds": 0.5}
    runs = [*noisy("scratch", SCRATCH), *noisy("good", (1.50, 1.56, 1.51), source=10.0)]
    controls = [*noisy("one", (1.7, 1.9, 1.8), phases=[phase]), *noisy("two", (1.7, 1.8, 1.9), phases=[phase])]
    alone, beside = compare(runs), compare([*runs, *controls])
    assert beside.where("control") == ["one", "two"]
    assert row(beside, "good")["flops_p_holm_reuse"] == row(alone, "good")["flops_p_holm_reuse"]
    assert row(beside, "one")["flops_p_holm_reuse"] == pytest.approx(2 * row(beside, "one")["flops_p_reuse"])


def test_equal_differences_in_all_seeds_have_no_p_value() -> None:
    """What is deterministic has no spread to test by, however large the difference."""
    comparison = compare([*noisy("scratch", (2.0, 2.0, 2.0)), *noisy("m", (1.5, 1.5, 1.5))])
    found = row(comparison, "m")
    assert math.isnan(found["flops_p_reuse"]) and math.isnan(found["flops_saving_reuse_low"])
    assert found["flops_saving_reuse"] == pytest.approx(1 - 4 / 4.5) and found["flops_verdict_reuse"] == "no spread over seeds"


# Outlying seeds of scratch, and power


def test_a_method_equal_to_scratch_under_a_diverged_scratch_seed_is_not_claimed() -> None:
    """The seed is named, and the saving without it stands beside."""
    runs = [*noisy("scratch", (1.98, 2.03, 4.0)), *noisy("twin", (2.0, 1.99, 2.02)), *noisy("other", (1.8, 1.83, 1.79))]
    comparison = compare(runs)
    found = row(comparison, "twin")
    assert found["flops_saving_reuse"] > 0.1 and found["flops_verdict_reuse"] == "not told apart from scratch"
    note = a_note(comparison, "Outlying scratch seed: seed 2 ends at 4.000")
    assert "others end at 2.005" in note
    without = row(compare([each for each in runs if each.record.seed != 2]), "other")["flops_saving_reuse"]
    assert f"without it {100 * without:.1f}\N{NO-BREAK SPACE}%" in note


def test_seeds_of_one_kind_are_seldom_named_and_a_far_one_always() -> None:
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(150):
        finals = {method: tuple(2 + rng.normal(0, 0.02, 5)) for method in ("scratch", "a", "b", "c")}
        runs = [each for method, values in finals.items() for each in noisy(method, values)]
        named += bool(outlying_seeds(runs))
    assert named <= 8
    runs[1] = noisy("scratch", (2.0, 2.3))[1]
    assert outlying_seeds(runs) == [1]
    assert outlying_seeds(noisy("scratch", (2.0, 9.0))) == []  # of two, neither is the outlier


def test_power_in_closed_form() -> None:
    """Scratch falls by 0.8 over the last fifth of its cost, in every seed."""
    finals = (1.94, 2.0, 2.06)
    comparison = compare([*noisy("scratch", (2.0, 2.0, 2.0)), *noisy("m", finals)])
    slope = 0.8 / math.log(1 / 0.8)
    least = 1 - math.exp(-smallest_detectable(0.06, 3) / slope)
    found = notes.detectable_saving(comparison.single, comparison.methods)
    assert found is not None
    assert (found.saving, found.slope, found.deviation) == pytest.approx((least, slope, 0.06))
    text = a_note(comparison, "Power")
    assert f"a true saving of about {100 * least:.1f}\N{NO-BREAK SPACE}% or more" in text and "0.0600 nats" in text


def test_power_is_that_of_the_methods_seeds() -> None:
    """Of a method with fewer seeds than scratch too; and where no saving would be found, no figure of 100 % is given."""
    comparison = compare([*noisy("scratch", (2.0, 2.0, 2.0)), *noisy("m", (1.94, 2.06))])
    found = notes.detectable_saving(comparison.single, comparison.methods)
    assert found is not None and found.seeds == 2
    diverged = compare([*noisy("scratch", (2.0, 2.0, 8.0)), *noisy("m", (2.0, 2.01, 2.0))])
    assert "with 3 seeds no true saving below 99\N{NO-BREAK SPACE}% is found" in a_note(diverged, "Power")


def test_where_nothing_is_tested_no_power_is_said() -> None:
    assert not any(note.startswith("Power") for note in compare([scratch(), straight("ligo", 50)]).notes)
    assert not any(note.startswith("Power") for note in compare([scratch(0), scratch(1)]).notes)


def test_a_run_that_ends_early_is_said_to_be_tested_there() -> None:
    runs = [*noisy("scratch", SCRATCH)]
    runs += [run("short", curve((0, 6.0), (80, final)), seed) for seed, final in enumerate((1.5, 1.6, 1.55))]
    assert "short (80.0\N{NO-BREAK SPACE}%)" in a_note(compare(runs), "Tested")


# Which runs are compared


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
    notes = compare([*runs[:3], straight("ligo", 50), broken]).notes
    assert any("Did not finish" in note and "ligo-seed0-budget0.7" in note for note in notes)


def test_longer_runs_of_scratch_leave_the_comparison_as_it_is() -> None:
    """Those that are trained at the cost of dearer methods: one of them broke off."""
    config = {"experiment": {"train": {"steps": 10}}, "method": {}}
    runs = [scratch(0), scratch(1, final=1.97), straight("ligo", 50, 0), straight("ligo", 55, 1)]
    longer = scratch(0, budget=120.0, final=1.5, config={**config, "budget_share": 1.2})
    broken = scratch(1, budget=130.0, config={**config, "budget_share": 1.3}, status="failed", final_val_loss=None)
    alone, beside = compare(runs), compare([*runs, longer, broken])
    assert beside.runs == alone.runs and beside.ladder.empty
    assert row(beside, "ligo") == pytest.approx(row(alone, "ligo"), nan_ok=True)


def test_runs_in_another_precision_are_named() -> None:
    """Also those that were trained partly in it, before they were resumed elsewhere."""
    bf16 = {**CPU, "precision": "bf16"}
    partly = {**CPU, "earlier": "device cuda, name A GPU, precision bf16"}

    def said(*of_methods: dict[str, Any]) -> list[str]:
        runs = [scratch(), *(straight(f"m{number}", 50, hardware=hardware) for number, hardware in enumerate(of_methods))]
        return [note for note in compare(runs).notes if "rounding" in note]

    assert said(CPU) == said({**CPU, "precision": ""}) == []
    assert said(bf16, CPU) == ["Trained in bf16: m0-seed0; all others in float32. So their losses differ by rounding too."]
    assert said(bf16, bf16) == ["Trained in float32: scratch-seed0; all others in bf16. So their losses differ by rounding too."]
    assert said(partly, bf16, bf16)[0].startswith(
        "Trained in float32: scratch-seed0; in both, as they were resumed elsewhere: m0-seed0; all others in bf16."
    )
