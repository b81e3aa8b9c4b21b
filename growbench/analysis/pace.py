"""The time that a phase's steps take for each counted FLOP, beside scratch's: work that is not counted takes time too."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from growbench.analysis.seconds import LARGEST_VARIATION, variation_of
from growbench.analysis.selection import is_scratch
from growbench.runs.store import Run
from growbench.training.records import PhaseRecord

OUT_OF_LINE = 1.5  # times scratch's time for a FLOP, from which on a phase is named


class Place(NamedTuple):
    """A phase of a method."""

    method: str
    number: int  # from 0


@dataclass(frozen=True)
class Pace:
    """The time of a phase for each FLOP, over that of scratch's steps. NaN: not known."""

    phase: str
    seconds: float  # NaN too where scratch's own seconds do not repeat
    cpu_seconds: float

    @property
    def out_of_line(self) -> bool:
        return self.seconds > OUT_OF_LINE or self.cpu_seconds > OUT_OF_LINE


@dataclass
class _Sums:
    """Of a phase and of scratch, over the seeds."""

    own_time: float = 0.0
    own_flops: float = 0.0
    time: float = 0.0
    flops: float = 0.0

    def add(self, own: PhaseRecord, scratch: Sequence[PhaseRecord], clock: str) -> None:
        spent, beside = getattr(own, clock), [getattr(phase, clock) for phase in scratch]
        if spent is not None and None not in beside:
            self.own_time += spent
            self.own_flops += _flops(own)
            self.time += sum(beside)
            self.flops += sum(map(_flops, scratch))

    @property
    def ratio(self) -> float:
        if not (self.own_flops and self.time and self.flops):
            return math.nan
        return self.own_time / self.own_flops / (self.time / self.flops)


def paces(runs: Sequence[Run]) -> Mapping[Place, Pace]:
    """Of each phase, from its method's finished runs and those of scratch of the same seed, budget and hardware.

    `runs`: with the seconds that they measured. Empty of runs that did not record their CPU time.
    """
    scratch = {
        (run.record.seed, run.record.budget_share, run.record.hardware): run.record.phases
        for run in runs
        if is_scratch(run) and run.finished
    }
    sums: dict[Place, dict[str, _Sums]] = defaultdict(lambda: {"seconds": _Sums(), "cpu_seconds": _Sums()})
    names: dict[Place, str] = {}
    for run in runs:
        beside = scratch.get((run.record.seed, run.record.budget_share, run.record.hardware))
        if beside and run.finished and not is_scratch(run):
            for number, phase in enumerate(run.record.phases):
                place = Place(run.record.method, number)
                names.setdefault(place, phase.name or "")
                for clock, each in sums[place].items():
                    each.add(phase, beside, clock)
    finished = [run for run in runs if is_scratch(run) and run.finished]
    repeat = variation_of(finished) < LARGEST_VARIATION and not any(run.record.hardware.shared for run in finished)
    found = {
        place: Pace(names[place], each["seconds"].ratio if repeat else math.nan, each["cpu_seconds"].ratio)
        for place, each in sums.items()
    }
    return {place: pace for place, pace in found.items() if not (math.isnan(pace.seconds) and math.isnan(pace.cpu_seconds))}


def note(runs: Sequence[Run]) -> list[str]:
    """Which phases are out of line; nothing if none is, or if no run recorded it."""
    named = [f"{place.method}, {pace.phase} ({_text(pace)})" for place, pace in paces(runs).items() if pace.out_of_line]
    if not named:
        return []
    return [
        f"Time for each counted FLOP, more than {OUT_OF_LINE:g} times scratch's on the same machine and seeds: "
        f"{'; '.join(named)}. Small models, frozen layers, learned operators and short phases have such steps by their nature. "
        "Work that is not counted has them too."
    ]


def _text(pace: Pace) -> str:
    parts = {"seconds": pace.seconds, "CPU time": pace.cpu_seconds}
    return ", ".join(f"{name} {ratio:.1f} times" for name, ratio in parts.items() if not math.isnan(ratio))


def _flops(phase: PhaseRecord) -> float:
    """All that its steps were counted with: stored outputs of teachers too, whose time is in its seconds."""
    return phase.steps * sum(phase.flops_per_step.values())
