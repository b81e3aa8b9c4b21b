"""Which runs of a ladder may branch off its longest one, and what they share with it."""

from __future__ import annotations

from collections.abc import Sequence

from growbench.config.schema import Experiment
from growbench.costs.ledger import Costs
from growbench.method import Method
from growbench.method.schedule import stable_steps
from growbench.planning.plan import META, PlannedPhase, walk


def branching_step(longer: Experiment, shorter: Experiment, method: Method, vocabulary: int) -> int | None:
    """After how many scored steps a method's run at the shorter budget leaves the longer one: where its own decay begins (wsd).

    None if they have no such trunk: they have it where their phases, losses and schedules are the same, and only the last
    phase's length follows from the budget.
    """
    if longer.train.schedule != "wsd":
        return None
    try:
        walks = [list(walk(experiment, method, vocabulary, Costs(META))) for experiment in (longer, shorter)]
    except Exception:  # a method that cannot be planned: nothing is known of it
        return None
    same = len(walks[0]) == len(walks[1]) and all(
        (a.phase.name, a.phase.scored, a.phase.loss, a.phase.schedule, a.phase.workload, *a.phase.group_schedules)
        == (b.phase.name, b.phase.scored, b.phase.loss, b.phase.schedule, b.phase.workload, *b.phase.group_schedules)
        and (a.steps == b.steps or (a.phase.steps, a.phase.share) == (b.phase.steps, b.phase.share) == (None, None))
        for a, b in zip(*walks, strict=True)
    )
    return stable_steps(shorter.train, shorter.train.steps) if same else None


def shared(phases: Sequence[PlannedPhase], scored_steps: int) -> float:
    """FLOPs of a plan until so many scored steps are done."""
    total = 0.0
    for phase in phases:
        steps = min(phase.steps, scored_steps) if phase.scored else phase.steps
        total += phase.flops - (phase.steps - steps) * phase.charged_per_step
        scored_steps -= steps if phase.scored else 0
        if not scored_steps:
            return total
    return total
