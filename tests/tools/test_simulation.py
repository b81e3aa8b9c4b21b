"""Simulated runs have the savings and the noise that they are said to have, and a wrong estimator is found out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from growbench.analysis.estimator import Curve, Estimate, estimate
from growbench.errors import UsageError
from growbench.tools import simulation
from growbench.tools.claims import promises
from growbench.tools.simulation import CASES, Case, Noise, World, noise, noises, simulate

MINI = Path(__file__).parents[2] / "results" / "mini"
NOTHING_PLANTED = pd.DataFrame()
NAMED = {case.name: case for case in CASES}
BUDGETS = np.array([0.4, 0.55, 0.7, 0.85, 1.0])
STEPS = np.linspace(0, 1, 101)


def ladder(deviation: float = 0.02) -> Noise:
    curve = Curve.of_ladder(BUDGETS, 4 - 0.6 * np.log(BUDGETS))
    return Noise("a ladder", 3, curve, curve, np.full(5, deviation), shared=0.8)


def single(deviation: float = 0.02, evaluation: float = 0.0) -> Noise:
    curve = Curve.of_run(STEPS, 3 + np.exp(-4 * STEPS))
    return Noise("a run", 3, curve, curve, np.full(101, deviation), evaluation=evaluation, persistence=0.5)


def world(noise: Noise, case: Case = CASES[0]) -> World:
    return World(noise, case, np.random.default_rng(0))


@pytest.mark.parametrize("saving", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("quiet", "case"), [
    (single(0), "as stored"), (ladder(0), "as stored"), (ladder(0), "operator first"), (single(0), "operator first"),
])  # fmt: skip
def test_a_method_meets_scratch_at_the_cost_that_it_saves(quiet: Noise, case: str, saving: float) -> None:
    runs = world(quiet, NAMED[case])
    found = estimate(runs.method(2, saving), [curve.at(1.0) for curve in runs.scratch(2)], 1.0)
    assert found.saving.mean == pytest.approx(saving, abs=0.002)


def test_a_shorter_run_ends_before_scratch() -> None:
    runs = world(ladder(0), NAMED["shorter run"])
    (method,) = runs.method(1, 0.3)
    assert method.costs[-1] == pytest.approx(0.85)
    assert estimate([method], 4.0, 1.0).saving.mean == pytest.approx(0.3, abs=0.002)


def test_hard_cases_are_as_said() -> None:
    diverged = world(ladder(), replace(NAMED["a scratch seed diverged"], diverged=1.0)).scratch(3)
    assert [curve.losses[-1] > 5 for curve in diverged] == [True, False, False]
    assert len(set(np.round(diverged[0].losses - ladder().mean.losses, 1))) == 1  # the whole run
    spiked = world(single(), replace(NAMED["spikes"], spikes=1.0)).method(200, 0.0)
    assert np.mean([curve.losses[-1] for curve in spiked]) == pytest.approx(3 + math.exp(-4) + simulation.SPIKE, abs=0.15)
    delayed = world(single(), NAMED["plateau of random length"]).scratch(200)
    starts = [np.flatnonzero(curve.losses < curve.losses[0])[0] / 100 for curve in delayed]
    assert min(starts) < 0.05 and 0.45 < max(starts) <= 0.52 and np.mean(starts) == pytest.approx(0.26, abs=0.04)


def test_noise_is_as_said() -> None:
    """Along a curve correlated; between the rungs of a ladder too, as far as it is shared."""
    losses = world(single(0.3, 0.05))._losses(4000, STEPS) - single().mean.losses
    assert losses[:, 50].std() == pytest.approx(math.hypot(0.3, 0.05), rel=0.05)
    steps = losses[:, 51] - losses[:, 50]  # what a run adds cancels
    assert steps.std() == pytest.approx(0.05 * math.sqrt(2 * (1 - 0.5)), rel=0.05)
    rungs = world(ladder())._losses(4000, BUDGETS) - ladder().mean.losses
    assert rungs.std(axis=0) == pytest.approx(0.02, rel=0.05)
    assert np.corrcoef(rungs[:, 0], rungs[:, 4])[0, 1] == pytest.approx(0.8, abs=0.03)


def runs(losses: np.ndarray, budgets: Sequence[float]) -> list[Any]:
    """Stored runs, as much of them as is read. `losses`: final ones (seeds, budgets)."""
    return [
        SimpleNamespace(record=SimpleNamespace(seed=seed, budget_share=budget), final_loss=loss)
        for seed, row in enumerate(losses)
        for budget, loss in zip(budgets, row, strict=True)
    ]


def test_the_noise_of_a_ladder_is_found_again() -> None:
    """A larger budget, which scratch alone has, tells how the loss goes on, and is no rung of the ladder."""
    losses = world(ladder())._losses(2000, BUDGETS)
    larger = np.column_stack([losses, losses[:, -1] - 0.2])
    for found in (noise("again", runs(losses, [*BUDGETS])), noise("again", runs(larger, [*BUDGETS, 1.3]))):
        assert found.protocol == "ladder" and found.runs == 2000
        assert found.deviations == pytest.approx(np.full(5, 0.02), rel=0.05) and found.shared == pytest.approx(0.8, abs=0.02)
        assert found.mean.losses[:5] == pytest.approx(ladder().mean.losses, abs=0.005)
        assert [curve.costs.tolist() for curve in world(found).scratch(2)] == [[*BUDGETS]] * 2
    assert world(found)._mean(np.array([1.3])) == pytest.approx(found.mean.losses[4] - 0.2, abs=0.01)


def test_the_noise_of_curves_is_found_again() -> None:
    losses = world(single(0.3, 0.02))._losses(400, STEPS)
    stored = [
        SimpleNamespace(
            record=SimpleNamespace(seed=seed, budget_share=1.0),
            curve=[{"flops": 7 * step, "val_loss": loss} for step, loss in zip(STEPS, row, strict=True)],
            cost=lambda unit, ledger: 7.0,
        )
        for seed, row in enumerate(losses)
    ]
    found: Noise = noise("again", stored)  # type: ignore[arg-type]
    assert found.protocol == "single" and found.mean.costs == pytest.approx(STEPS)
    assert found.deviations == pytest.approx(0.3, rel=0.1)
    assert found.evaluation == pytest.approx(0.02, rel=0.03) and found.persistence == pytest.approx(0.5, abs=0.03)


def test_what_has_no_noise_to_be_seen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="with two finished scratch seeds"):
        noises(tmp_path)
    short = [SimpleNamespace(record=SimpleNamespace(seed=seed, budget_share=1.0), curve=[{}] * 29) for seed in range(2)]
    with pytest.raises(UsageError, match="29 evaluations of a run are too few"):
        noise("short", short)  # type: ignore[arg-type]


# A wrong estimator


def drops_seeds_that_miss(curves: Sequence[Curve], losses: Any, references: Any) -> Estimate:
    reached = [place for place, curve in enumerate(curves) if curve.losses[-1] <= losses[place]]
    return estimate([curves[place] for place in reached], [losses[place] for place in reached], references)


def half_as_wide(curves: Sequence[Curve], losses: Any, references: Any) -> Estimate:
    found = estimate(curves, losses, references)
    saved = found.saving
    low, high = (saved.mean + (end - saved.mean) / 2 for end in (saved.low, saved.high))
    return replace(found, saving=replace(saved, low=low, high=high))


def without_holm(p: Sequence[float]) -> Sequence[float]:
    return p


def kept(monkeypatch: pytest.MonkeyPatch, noise: Noise, repetitions: int) -> list[bool]:
    """Claimed to save, claimed to cost more, claimed in a family, covered."""
    monkeypatch.setattr(simulation, "SEEDS", (5,))
    monkeypatch.setattr(simulation, "CASES", CASES[:1])
    monkeypatch.setattr(simulation, "NULLS", 4)
    return [promise.kept for promise in promises(simulate([noise], repetitions), NOTHING_PLANTED)]


@pytest.mark.parametrize("noise", [ladder(), single()])
def test_the_estimator_keeps_its_promises(monkeypatch: pytest.MonkeyPatch, noise: Noise) -> None:
    assert kept(monkeypatch, noise, 100) == [True] * 4


@pytest.mark.parametrize(("broken", "repetitions", "expected"), [
    (drops_seeds_that_miss, 250, [False, True, False, False]), (half_as_wide, 120, [True, True, True, False]),
])  # fmt: skip
def test_a_wrong_estimator_breaks_them(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Estimate], repetitions: int, expected: list[bool]
) -> None:
    monkeypatch.setattr(simulation, "estimate", broken)
    assert kept(monkeypatch, single(), repetitions) == expected


def test_a_family_without_correction_breaks_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    from growbench.analysis import savings

    monkeypatch.setattr(savings, "holm", without_holm)
    assert kept(monkeypatch, single(), 100) == [True, True, False, True]


def test_every_mini_experiment_is_simulated_by_its_protocol() -> None:
    found = {each.experiment: each.protocol for each in noises(MINI)}
    assert {"gpt2-mini": "ladder", "modernbert-mini": "single", "cait-mini": "single"}.items() <= found.items()
