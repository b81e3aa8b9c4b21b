"""Which runs of a ladder can branch off the trunk, its longest run, and what they share with it."""

from __future__ import annotations

from collections.abc import Sequence

from growbench.config.schema import Experiment
from growbench.costs.ledger import Costs
from growbench.method import Method, constant
from growbench.method.schedule import stable_steps
from growbench.planning.plan import META, PlannedPhase, walk
from growbench.training.phases import PhaseStart


def branching_step(longer: Experiment, shorter: Experiment, method: Method, vocabulary: int) -> int | None:
    """The scored step at which a method's run at the shorter budget branches off the longer one: where its decay begins (wsd).

    None if it cannot branch off. It can if both runs have the same phases, losses and schedules, and only the last phase's
    length depends on the budget.
    """
    if longer.train.schedule != "wsd":
        return None
    try:
        walks = [list(walk(experiment, method, vocabulary, Costs(META))) for experiment in (longer, shorter)]
    except Exception:  # the method cannot be planned, so nothing is known about it
        return None
    same = len(walks[0]) == len(walks[1]) and all(map(_alike, *walks))
    return stable_steps(shorter.train, shorter.train.steps) if same else None


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
