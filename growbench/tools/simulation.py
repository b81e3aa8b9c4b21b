"""Simulated runs with known savings, whose noise is that of stored scratch runs: what the estimator makes of them.

A method that saves the share r of scratch's cost has, at each cost c, the mean loss that scratch has at c / (1 - r). All costs
here are shares of scratch's full cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.linalg import toeplitz
from scipy.optimize import brentq
from scipy.signal import lfilter, savgol_filter

from growbench.analysis.estimator import Curve, Estimate, estimate
from growbench.analysis.savings import Judged, judged
from growbench.analysis.selection import is_scratch
from growbench.console import say
from growbench.costs.accounts import Ledger, Unit
from growbench.errors import UsageError
from growbench.registry import SCRATCH
from growbench.runs import store
from growbench.runs.store import Run
from growbench.tools.claims import outcome_row

Array = NDArray[np.float64]

SEEDS = (3, 5, 10)  # of a set
SAVINGS = (0.0, 0.1, 0.3)
NULLS = 6  # methods of a family that save nothing, compared with one set of scratch runs

WINDOW = 15  # evaluations over which a run's own trend is smoothed, to see the noise about it
LONGEST = 0.95  # correlation of two evaluations in a row; a longer one is no noise but trend
BEYOND = np.array([1.1, 1.25, 1.5, 1.75, 2.0])  # costs at which scratch's mean loss is extrapolated

SPIKE = 0.5  # mean height (nats)
DIVERGED = 1.7  # how far above the others a diverged run lies (nats)


@dataclass(frozen=True)
class Noise:
    """How the stored scratch runs of an experiment vary.

    `mean`: their mean loss, of a ladder the final ones. `best`: the loss of the run that ends lowest. A run lies above `mean` by
    a normal deviate of its own, with the standard deviation `deviations` at each of its points up to the full cost: larger
    budgets, which scratch alone has, only say how its loss goes on. Of its variance a ladder's runs of one seed have `shared` in
    common. Along a curve, noise of evaluations is added, with standard deviation `evaluation` and correlation `persistence` of
    two in a row.
    """

    experiment: str
    runs: int
    mean: Curve
    best: Curve
    deviations: Array
    shared: float = 1.0
    evaluation: float = 0.0
    persistence: float = 0.0

    @property
    def protocol(self) -> str:
        return "ladder" if self.mean.log else "single"


@dataclass(frozen=True)
class Case:
    """What makes a simulation harder than the stored runs. `protocols`: those to which it applies."""

    name: str = "as stored"
    protocols: tuple[str, ...] = ("single", "ladder")
    diverged: float = 0.0  # chance that one of scratch's seeds ends DIVERGED above the others
    spikes: float = 0.0  # chance of each evaluation to be a spike
    plateau: float = 0.0  # each run's descent begins later, by up to this cost
    start: float = 0.0  # what a method pays before its first step of training
    budget: float = 1.0  # what it pays for training


CASES = (
    Case(),
    Case("a scratch seed diverged", diverged=0.1),
    Case("spikes", ("single",), spikes=0.02),
    Case("plateau of random length", ("single",), plateau=0.5),
    Case("operator first", ("ladder",), start=0.1),
    Case("shorter run", ("ladder",), budget=0.85),
)


def noises(folder: Path) -> list[Noise]:
    """Of the experiments in a folder of results that have two scratch seeds or more. Raises UsageError if there is none."""
    found = []
    for place in sorted(path for path in folder.glob("*") if path.is_dir()):
        scratch = (run for folder in sorted(place.glob(f"{SCRATCH}-*")) if (run := store.load(folder)))
        runs = [run for run in scratch if is_scratch(run) and run.finished]
        if len({run.record.seed for run in runs if run.record.budget_share == 1}) > 1:
            found.append(noise(place.name, runs))
    if not found:
        raise UsageError(f"no experiment in {folder} with two finished scratch seeds, whose noise could be simulated")
    return found


def noise(experiment: str, runs: Sequence[Run]) -> Noise:
    """Of one experiment's finished scratch runs: as a ladder if every seed has the same two or more budgets."""
    seeds: dict[int, dict[float, Run]] = {}
    for run in sorted(runs, key=lambda run: run.record.budget_share):
        seeds.setdefault(run.record.seed, {})[run.record.budget_share] = run
    rungs = list(next(iter(seeds.values())))
    if len(rungs) > 1 and 1.0 in rungs and all(list(found) == rungs for found in seeds.values()):
        return _of_ladders(
            experiment, np.array(rungs), np.array([[run.final_loss for run in each.values()] for each in seeds.values()])
        )
    return _of_curves(experiment, [each[1.0] for each in seeds.values() if 1.0 in each])


def _of_ladders(experiment: str, costs: Array, losses: Array) -> Noise:
    """`losses`: final ones (seeds, budgets). The shared part of the variance is that of a one-way analysis of variance."""
    mean, best = losses.mean(axis=0), losses[losses[:, costs == 1].ravel().argmin()]
    rest = (losses - mean)[:, costs <= 1]
    deviations, (seeds, budgets) = rest.std(axis=0, ddof=1), rest.shape
    scores = rest / deviations
    between = budgets * scores.mean(axis=1).var(ddof=1)
    within = (scores - scores.mean(axis=1, keepdims=True)).var(axis=1).sum() * budgets / ((seeds - 1) * (budgets - 1))
    shared = float(np.clip((between - within) / (between + (budgets - 1) * within), 0, 1))
    return Noise(experiment, seeds, Curve.of_ladder(costs, mean), Curve.of_ladder(costs, best), deviations, shared)


def _of_curves(experiment: str, runs: Sequence[Run]) -> Noise:
    """The noise of evaluations is read off the second half of each curve, about the run's own smooth trend."""
    rows = min((run.curve for run in runs), key=len)
    if len(rows) < 2 * WINDOW:
        raise UsageError(f"{experiment}: {len(rows)} evaluations of a run are too few to see their noise; at least {2 * WINDOW}")
    costs = np.array([row["flops"] for row in rows]) / runs[0].cost(Unit.FLOPS, Ledger.REUSE)
    losses = np.array([[row["val_loss"] for row in run.curve[: len(rows)]] for run in runs])
    evaluation, persistence = _about_trend(losses[:, len(rows) // 2 :])
    curves = [Curve.of_run(costs, each) for each in losses]
    ends = np.array([curve.losses[-1] for curve in curves])
    return Noise(
        experiment,
        runs=len(runs),
        mean=Curve.of_run(costs, losses.mean(axis=0)),
        best=curves[ends.argmin()],
        deviations=np.full(len(rows), ends.std(ddof=1)),
        evaluation=evaluation,
        persistence=persistence,
    )


def _about_trend(losses: Array) -> tuple[float, float]:
    """Standard deviation and correlation of two in a row, of noise about each row's smooth trend (rows, evaluations).

    The trend takes some of the noise away. So both are those of an autoregressive process that, without its trend, looks alike.
    """
    rest = losses - savgol_filter(losses, WINDOW, polyorder=2, axis=1)
    variance, neighbours = (rest**2).mean(), (rest[:, 1:] * rest[:, :-1]).mean()
    without_trend = np.eye(losses.shape[1]) - savgol_filter(np.eye(losses.shape[1]), WINDOW, polyorder=2, axis=0)

    def left(persistence: float) -> Array:
        """The covariance without the trend, of a process of variance 1."""
        return without_trend @ toeplitz(persistence ** np.arange(losses.shape[1])) @ without_trend.T

    def excess(persistence: float) -> float:
        found = left(persistence)
        return float(np.diag(found, 1).mean() / np.diag(found).mean() - neighbours / variance)

    if excess(0.0) < 0 < excess(LONGEST):
        persistence = float(brentq(excess, 0.0, LONGEST))
    else:
        persistence = 0.0 if excess(0.0) >= 0 else LONGEST
    return float(math.sqrt(variance / np.diag(left(persistence)).mean())), persistence


def _smooth(curve: Curve) -> Callable[[Array], Array]:
    """A monotone smooth function of cost through a curve's points, or near a ladder's: on a parabola of log cost.

    Beyond the last of them it falls with log cost. The slope there is that between a ladder's last two rungs. Of one run it is
    the mean one of the second half: the slope of the last steps, where the learning rate decays, is steeper than what more
    training would bring.
    """
    points = curve.losses
    if curve.log and len(points) > 3:  # what makes the means of a few seeds uneven is noise, and not the truth
        places = np.log(curve.costs)
        points = np.polyval(np.polyfit(places, points, 2), places).astype(np.float64)
    curve = replace(curve, losses=points)
    end, before = float(curve.costs[-1]), float(curve.costs[-2]) if curve.log else 0.5
    slope = (curve.losses[-1] - curve.at(before)) / math.log(end / before)
    beyond = BEYOND[end < BEYOND]
    costs = np.concatenate([curve.costs, beyond])
    losses = np.concatenate([curve.losses, curve.losses[-1] + slope * np.log(beyond / end)])
    if not curve.log:
        return PchipInterpolator(costs, losses)
    first = (losses[1] - losses[0]) / math.log(costs[1] / costs[0])  # below the smallest budget, a line in log cost
    places = np.log(np.concatenate([costs[:1] / 2, costs]))
    smooth = PchipInterpolator(places, np.concatenate([losses[:1] - first * math.log(2), losses]))
    return lambda at: np.asarray(smooth(np.log(at)))


class World:
    """Runs as one case of one experiment has them. Scratch and a method of the same seed have no noise in common."""

    def __init__(self, noise: Noise, case: Case, rng: np.random.Generator) -> None:
        self.noise, self.case, self.rng = noise, case, rng
        shape = noise.best if case.plateau else noise.mean
        self.costs = shape.costs[: len(noise.deviations)]
        self._mean = _smooth(shape)

    def scratch(self, seeds: int) -> list[Curve]:
        losses = self._losses(seeds, self.costs)
        if self.rng.random() < self.case.diverged:
            losses[0] += DIVERGED
        return self._curves(self.costs, losses)

    def method(self, seeds: int, saving: float) -> list[Curve]:
        """Runs of a method that saves the share `saving` of scratch's cost, what it pays before its first step included."""
        paid = self.case.budget * self.costs
        losses = self._losses(seeds, paid / (1 - saving - self.case.start))
        return self._curves(self.case.start + paid, losses)

    def _losses(self, runs: int, costs: Array) -> Array:
        """(runs, costs). `costs`: those at which scratch has the same mean loss."""
        delays = self.rng.uniform(0, self.case.plateau, (runs, 1))
        mean = self._mean(np.maximum(costs - delays, costs[0]))
        noise = self.noise
        common, own = self.rng.standard_normal((runs, 1)), self.rng.standard_normal(mean.shape)
        deviates = math.sqrt(noise.shared) * common + math.sqrt(1 - noise.shared) * own
        losses = mean + (0 if self.case.plateau else noise.deviations * deviates) + self._evaluations(mean.shape)
        spikes = self.rng.random(mean.shape) < self.case.spikes
        return np.where(spikes, losses + self.rng.exponential(SPIKE, mean.shape), losses)

    def _evaluations(self, shape: tuple[int, ...]) -> Array | float:
        """A stationary autoregressive process of the first order."""
        if not self.noise.evaluation:
            return 0.0
        persistence = self.noise.persistence
        shocks = math.sqrt(1 - persistence**2) * self.rng.standard_normal(shape)
        first = persistence * self.rng.standard_normal((len(shocks), 1))
        return self.noise.evaluation * np.asarray(lfilter([1], [1, -persistence], shocks, axis=1, zi=first)[0])

    def _curves(self, costs: Array, losses: Array) -> list[Curve]:
        return [(Curve.of_ladder if self.noise.mean.log else Curve.of_run)(costs, each) for each in losses]


def simulate(noises: Iterable[Noise], repetitions: int) -> pd.DataFrame:
    """A row of `outcome_row` for each experiment, case, number of seeds and true saving. Hard cases: half the repetitions."""
    rows = []
    for noise in noises:
        for case in (case for case in CASES if noise.protocol in case.protocols):
            for seeds in SEEDS:
                world = World(noise, case, np.random.default_rng([seeds, CASES.index(case)]))
                hard = case is not CASES[0]
                found = [_comparison(world, seeds) for _ in range(repetitions // 2 if hard else repetitions)]
                head: dict[str, Any] = {"kind": "hard cases" if hard else "simulated", "experiment": noise.experiment}
                head |= {"protocol": noise.protocol, "case": case.name, "seeds": seeds}
                rows += [head | outcome_row(saving, [each[saving] for each in found]) for saving in SAVINGS]
            say(f"simulated {noise.experiment}, {case.name}")
    return pd.DataFrame(rows)


def _comparison(world: World, seeds: int) -> dict[float, list[Judged]]:
    """One set of scratch runs and methods by their true saving, each judged in a family of six: among nulls."""
    scratch = [curve.at(1.0) for curve in world.scratch(seeds)]

    def found(saving: float) -> Estimate:
        return estimate(world.method(seeds, saving), scratch, 1.0)

    nulls = {f"null {number}": found(0.0) for number in range(NULLS)}
    judged_alike: dict[float, list[Judged]] = {0.0: list(judged(nulls, ()).values())}
    for saving in SAVINGS[1:]:
        judged_alike[saving] = [judged({**nulls, "null 0": found(saving)}, ())["null 0"]]
    return judged_alike
