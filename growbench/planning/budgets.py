"""At which shares of the experiment's budget runs are trained, each with a complete schedule of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from growbench.config.schema import Experiment
from growbench.costs.accounts import Ledger
from growbench.errors import UsageError
from growbench.planning.plan import PlannedPhase, Unplannable, plan, plan_source
from growbench.registry import SCRATCH, Found

LADDER = (0.4, 0.55, 0.7, 0.85, 1.0)  # of the ladder protocol


@dataclass(frozen=True)
class Budgets:
    """Shares of the budget. `shared`: of every method. `scratch_alone`: more of scratch's, each with whose cost it equals."""

    shared: tuple[float, ...] = (1.0,)
    scratch_alone: Mapping[float, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def ladder(cls, experiment: Experiment, shares: Iterable[float] = LADDER) -> Budgets:
        """Those above 1 are for scratch alone: they tell what it reaches at the cost of a method that costs more than it.

        Raises UsageError for a share that the experiment cannot be trained at, and for two that come to as many steps.
        """
        shares = tuple(shares)
        by_steps: dict[int, float] = {}
        for share in sorted(shares):
            try:
                steps = experiment.at(share, {}).train.steps
            except UsageError as error:
                raise UsageError(f"--budgets {share:g}: too little of {experiment.train.steps} steps: {error}") from error
            if (other := by_steps.setdefault(steps, share)) != share:
                raise UsageError(f"--budgets {other!r},{share!r}: both are {steps} of {experiment.train.steps} steps: give one")
        return cls.split(shares)

    @classmethod
    def split(cls, shares: Iterable[float]) -> Budgets:
        """Those up to 1 for every method, those above for scratch alone."""
        shares = tuple(shares)
        return cls(tuple(share for share in shares if share <= 1), {share: () for share in shares if share > 1})

    def of(self, method: str) -> list[float]:
        """A method's shares, the longest run first."""
        own = {*self.shared, *self.scratch_alone} if method == SCRATCH else {*self.shared}
        return sorted(own, reverse=True)


@dataclass(frozen=True)
class MethodCost:
    """What a method's run at the full budget is charged."""

    flops: float  # without its source
    uses_source: bool


def equal_cost(
    experiment: Experiment,
    methods: Sequence[Found],
    vocabulary: int,
    pretrained_flops: float | None,
    dp_degree: int = 1,
    planned: Mapping[str, MethodCost] | None = None,
) -> Budgets:
    """The full budget of every method, scratch among them, and for scratch the number of steps that each method's FLOPs pay for.

    In the build ledger a method's FLOPs include its source's: `pretrained_flops`, or those of the training planned here. Without
    a known cost of a pretrained source nothing equals it. `dp_degree`: the number of data-parallel processes. What each of them
    computes for itself, such as the weights that LiGO's operator makes, costs as many times as much. `planned`: the costs of
    further methods, by name. Raises UsageError for a method that cannot be planned, and where scratch cannot train for so few
    steps.
    """
    scratch = next(found for found in methods if found.name == SCRATCH)
    part = _part(experiment, dp_degree)
    step = dp_degree * plan(part.at(1.0, scratch.training), scratch, vocabulary)[-1].charged_per_step
    costs = {each.name: method_cost(experiment, each, vocabulary, dp_degree) for each in methods if each is not scratch}
    costs |= planned or {}
    source: float | None = 0.0
    if any(cost.uses_source for cost in costs.values()):
        source = pretrained_flops if experiment.pretrained else _total(plan_source(part, vocabulary), dp_degree)
    equals: dict[float, list[str]] = {}
    for name, cost in costs.items():
        charged = {name: cost.flops}
        if cost.uses_source:
            known = {} if source is None else {f"{name}, {Ledger.BUILD}": cost.flops + source}
            charged = {f"{name}, {Ledger.REUSE}": cost.flops} | known
        for whose, total in charged.items():
            share = share_of(round(total / step), experiment.train.steps)
            try:
                experiment.at(share, scratch.training)
            except UsageError as error:
                raise UsageError(f"scratch at the cost of {whose}: {error}") from error
            equals.setdefault(share, []).append(whose)
    return Budgets((1.0,), {share: tuple(names) for share, names in equals.items()})


def method_cost(experiment: Experiment, found: Found, vocabulary: int, dp_degree: int = 1) -> MethodCost:
    """What a method costs on so many data-parallel processes. Raises UsageError for one that cannot be planned."""
    part = _part(experiment, dp_degree)
    try:
        flops = _total(plan(part.at(1.0, found.training), found, vocabulary), dp_degree)
    except Unplannable as error:
        raise UsageError(f"--protocol equal-cost: needs the cost of every method before it is trained, but {error}") from error
    return MethodCost(flops, found.method.uses_source)


def _part(experiment: Experiment, dp_degree: int) -> Experiment:
    """The experiment as one of several data-parallel processes trains it: on its part of every batch."""
    trained = {key: getattr(experiment, key) for key in ("train", "source_train")}
    parts = {key: replace(training, batch=max(1, training.batch // dp_degree)) for key, training in trained.items()}
    return replace(experiment, **parts)


def _total(phases: Iterable[PlannedPhase], dp_degree: int) -> float:
    """What the processes are charged together: every step of each, and growth, which counts once."""
    return sum(dp_degree * (phase.flops - phase.growth_flops) + phase.growth_flops for phase in phases)


def share_of(steps: int, budget: int) -> float:
    """The share of a budget that comes to so many steps, in as few digits as say so."""
    shares = (float(f"{steps / budget:.{digits}g}") for digits in range(2, 18))
    return next(share for share in shares if round(share * budget) == steps)
