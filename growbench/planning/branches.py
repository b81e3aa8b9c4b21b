"""Which runs of a ladder can branch off the trunk, its longest run, and what they share with it."""

from __future__ import annotations

from collections.abc import Sequence

from growbench.config.schema import Experiment
from growbench.costs.ledger import Costs
from growbench.method import Method, constant
from growbench.method.schedule import stable_steps
from growbench.planning.plan import META, PlannedPhase, walk
from growbench.training.phases import PhaseStart


def branching_steps(longer: Experiment, shorter: Sequence[Experiment], method: Method, vocabulary: int) -> list[int | None]:
    """The scored step at which a method's run at each shorter budget branches off the longer one: where its decay begins (wsd).

    None if it cannot branch off. It can if both runs have the same phases, losses and schedules, and only the last phase's
    length depends on the budget.
    """
    trunk = _phases(longer, method, vocabulary) if shorter and longer.train.schedule == "wsd" else []
    return [
        stable_steps(each.train, each.train.steps) if trunk and _same(trunk, _phases(each, method, vocabulary)) else None
        for each in shorter
    ]


def _phases(experiment: Experiment, method: Method, vocabulary: int) -> list[PhaseStart]:
    """Empty if the method cannot be planned: nothing is known about it."""
    try:
        return list(walk(experiment, method, vocabulary, Costs(META)))
    except Exception:
        return []


def _same(trunk: Sequence[PhaseStart], phases: Sequence[PhaseStart]) -> bool:
    return len(trunk) == len(phases) and all(map(_alike, trunk, phases))


def _alike(a: PhaseStart, b: PhaseStart) -> bool:
    """Whether all steps of the shorter phase are the same as in the longer one."""
    one, other = a.phase, b.phase
    if any(phase.group_schedules or phase.entry_schedules or phase.view for phase in (one, other)):
        return False  # these may depend on the phase's length
    same = (one.name, one.scored, one.loss, one.workload) == (other.name, other.scored, other.loss, other.workload)
    same &= one.schedule == other.schedule
    if a.steps == b.steps:
        return same
    takes_the_rest = {one.steps, one.share, other.steps, other.share} == {None}
    return same and takes_the_rest and one.schedule in (None, constant)  # another schedule may depend on the phase's length


def shared(phases: Sequence[PlannedPhase], scored_steps: int) -> float:
    """FLOPs of a plan up to this number of scored steps."""
    total = 0.0
    for phase in phases:
        steps = min(phase.steps, scored_steps) if phase.scored else phase.steps
        total += phase.flops - (phase.steps - steps) * phase.charged_per_step
        scored_steps -= steps if phase.scored else 0
        if not scored_steps:
            return total
    return total
