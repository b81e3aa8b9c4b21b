"""The runs of a request as units of work for several machines, and which of them --only selects."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from growbench import registry
from growbench.config.schema import Experiment
from growbench.errors import UsageError, did_you_mean
from growbench.planning.budgets import Budgets
from growbench.runs import store


@dataclass(frozen=True)
class Unit:
    """Runs that one process trains: a method on a seed, at one share of the budget or at several that branch off one run."""

    method: str
    seed: int
    shares: tuple[float, ...]

    @property
    def runs(self) -> list[str]:
        """The names of its runs."""
        return [store.name(self.method, self.seed, share) for share in self.shares]

    def within(self, only: Collection[str] | None) -> Unit:
        """The part of it that is to be trained; None: all."""
        kept = (share for share, run in zip(self.shares, self.runs, strict=True) if only is None or run in only)
        return replace(self, shares=tuple(kept))


def units(experiment: Experiment, methods: Iterable[str], seeds: Sequence[int], budgets: Budgets) -> list[Unit]:
    """All runs of methods, those of the first method first.

    With the schedule wsd shorter runs of a method branch off its longest one, so that they are one unit.
    """
    found = []
    for method in methods:
        shares = budgets.of(method)
        together = [tuple(shares)] if experiment.train.schedule == "wsd" else [(share,) for share in shares]
        found += [Unit(method, seed, each) for seed in seeds for each in together]
    return found


def selected(text: str, request: Sequence[Unit], sources: Sequence[str], any_budget: bool) -> frozenset[str]:
    """The names of the runs that `--only text` selects: those of the i-th of n parts ("i/n"), or the named ones.

    `sources`: names of runs that may be selected too. `any_budget`: scratch may be named at further budgets. Raises UsageError
    for what is no part of the request.
    """
    if part := re.fullmatch(r"(\d+)/(\d+)", text):
        number, count = map(int, part.groups())
        return _part(number, count, request, any_budget)
    asked = [name.strip() for name in text.split(",") if name.strip()]
    known = [*sources, *(run for unit in request for run in unit.runs)]
    further = tuple(f"{run}-budget" for run in known if any_budget and run.startswith(f"{registry.SCRATCH}-"))
    for name in asked:
        if name not in known and not (further and name.startswith(further)):
            raise UsageError(f"--only {name}: is no run of this request: {did_you_mean(name, known)}")
    if not asked:
        raise UsageError(f"--only {text!r}: must be a part, such as 1/4, or names of runs, such as {known[-1]}")
    return frozenset(asked)


def _part(number: int, count: int, request: Sequence[Unit], any_budget: bool) -> frozenset[str]:
    """Every `count`-th unit, so that the seeds of a method fall to different parts."""
    if not 1 <= number <= count:
        raise UsageError(f"--only {number}/{count}: the part must be from 1 to {count}")
    if any_budget:
        follows = "budgets follow from what methods cost: give names of runs, as growbench jobs prints them"
        raise UsageError(f"--only {number}/{count}: not with --protocol equal-cost, whose {follows}")
    return frozenset(run for unit in request[number - 1 :: count] for run in unit.runs)
