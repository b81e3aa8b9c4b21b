"""Which seconds a report compares: measured ones, reference seconds, or none.

Measured seconds compare where scratch repeats its own and all its runs were alone on one kind of machine. Reference seconds are a
run's steps times the step times that `growbench bench` measured alone, plus the growth that it measured. Those of scratch's
machine come first. Those of another machine say how long the same steps take there, and the report names it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from growbench.analysis.selection import is_scratch
from growbench.console import say
from growbench.costs.accounts import CHARGED, Account, Ledger, Unit
from growbench.costs.hardware import Hardware
from growbench.formatting import percent
from growbench.registry import SCRATCH, SOURCE
from growbench.runs import step_seconds
from growbench.runs.records import Amount, PhaseRecord
from growbench.runs.step_seconds import LARGEST_ERROR, MethodSeconds, PhaseSeconds, StepSeconds
from growbench.runs.store import Run

LARGEST_VARIATION = 0.05  # of scratch's seconds a step over its seeds, with which measured seconds compare
REMEDY = "growbench bench EXPERIMENT --methods A,B measures step times on an idle machine"


class SecondsKind(StrEnum):
    """Where the seconds of a report come from."""

    MEASURED = "measured"  # by the runs themselves
    REFERENCE = "reference"  # steps x step times that were measured alone
    NONE = "none"


@dataclass(frozen=True)
class Seconds:
    """The seconds that a report compares, and what it says about them. `reference`: of the kind that is named so."""

    kind: SecondsKind
    note: str
    hardware: Hardware | None = None  # of the machine whose seconds they are; None: none
    reference: StepSeconds | None = None

    def timed(self, run: Run) -> Run:
        """The run with these seconds in its curve and in what it is charged; NaN and None where it has none."""
        if self.kind == SecondsKind.MEASURED and run.record.hardware == self.hardware:
            return run
        valid = self.reference is not None and not why_not(self.reference, run)
        return _with(run, self.reference if valid else None)


@dataclass(frozen=True)
class ReferenceClock:
    """Reference seconds of one run."""

    phases: Sequence[PhaseSeconds]
    steps: Sequence[int]  # of each phase that the run did to its end

    def at(self, step: int, phase: int) -> float:
        """Charged seconds up to a step of the run, which is in this phase (from 0). The source's are not included."""
        spent, begun = 0.0, 0
        for number, measured in enumerate(self.phases[: phase + 1]):
            done = step - begun if number == phase else self.steps[number]
            spent += measured.growth_seconds + done * measured.step_seconds
            begun += done
        return spent


def why_not(reference: StepSeconds, run: Run) -> str:
    """Why a run has no reference seconds of this machine; empty if it has."""
    record, found = run.record, reference.methods.get(run.record.method)
    if reference.experiment != step_seconds.digest_of_experiment(record.config.experiment):
        return "measured with another configuration of the experiment"
    if found is None:
        return "not measured"
    if found.origin != record.origin:
        return "measured with other code"
    if found.config != step_seconds.digest_of_method(record.config.method):
        return "measured with other hyperparameters"
    if [phase.name for phase in record.phases] != [phase.name for phase in found.phases][: len(record.phases)]:
        return "has other phases than were measured"
    return _unsteady(found)


def _unsteady(found: MethodSeconds) -> str:
    largest = max(phase.error for phase in found.phases)
    return f"measured on a busy machine: uncertain by {percent(largest)}" if largest > LARGEST_ERROR else ""


def source_seconds(reference: StepSeconds) -> float | None:
    """Reference seconds of the small model's training; None if they were not measured with the code that scratch has."""
    source, scratch = reference.methods.get(SOURCE), reference.methods[SCRATCH]
    if source is None or (source.origin, source.config) != (scratch.origin, scratch.config) or _unsteady(source):
        return None
    return sum(phase.growth_seconds + phase.steps * phase.step_seconds for phase in source.phases)


def _with(run: Run, reference: StepSeconds | None) -> Run:
    """The run with reference seconds, or with none."""
    record = run.record
    if reference is None:
        own: Mapping[Account, Amount] = dict.fromkeys(CHARGED)
        seconds = [math.nan] * len(run.curve)
    else:
        clock = ReferenceClock(reference.methods[record.method].phases, [phase.steps for phase in record.phases])
        own = {**_accounts(clock, record.phases), Account.SOURCE: _source(reference, run)}
        seconds = [clock.at(row["step"], place) for row, place in zip(run.curve, _places(run), strict=True)]
    cost = replace(record.cost, seconds={**record.cost.seconds, **own})
    inherited = record.inherited
    if inherited and run.curve:
        until = [row["flops"] for row in run.curve], seconds
        inherited = replace(inherited, seconds=float(np.interp(inherited.flops or 0, *until)))
    curve = [{**row, "seconds": each} for row, each in zip(run.curve, seconds, strict=True)]
    return replace(run, record=replace(record, cost=cost, inherited=inherited), curve=curve)


def _accounts(clock: ReferenceClock, phases: Sequence[PhaseRecord]) -> dict[Account, Amount]:
    """What is charged to each account. A teacher's time is in its phase's."""
    spent: dict[Account, float] = dict.fromkeys(CHARGED, 0.0)
    for measured, phase in zip(clock.phases, phases, strict=False):
        spent[Account.GROWTH] += measured.growth_seconds
        spent[Account.TRAIN if phase.scored else Account.OPERATOR] += phase.steps * measured.step_seconds
    return {**spent}


def _source(reference: StepSeconds, run: Run) -> Amount:
    """Seconds of the training of a run's source: as stated of a pretrained one. None: not known."""
    if run.source_cost(Unit.FLOPS) == 0:
        return 0
    stated = "pretrained" in run.record.config.experiment
    return run.record.cost.seconds.get(Account.SOURCE) if stated else source_seconds(reference)


def _places(run: Run) -> Iterator[int]:
    """The phase of each row of a run's curve, from 0. At a phase's first step the curve has a row of the one before, too."""
    place, ends = 0, list(itertools.accumulate(phase.steps for phase in run.record.phases))
    before: Mapping[str, Any] | None = None
    for row in run.curve:
        if before is not None and before["step"] == row["step"] and row["step"] in ends[place : place + 1]:
            place += 1
        before = row
        yield place


def references_of(folder: Path) -> list[StepSeconds]:
    """The step times that lie beside an experiment's runs. A file that cannot be read is named, and counts for nothing."""
    try:
        return step_seconds.read(folder)
    except ValueError as error:
        say(f"left out: {error}")
        return []


def choose(runs: Sequence[Run], references: Sequence[StepSeconds] = ()) -> Seconds:
    """The seconds that compare: measured, or else reference seconds, or else none.

    With one seed of scratch nothing shows that measured seconds repeat, so reference seconds come first.
    """
    scratch = [run for run in runs if is_scratch(run) and run.finished]
    base = scratch or runs
    machines = [machine for machine, _ in Counter(run.record.hardware for run in base).most_common()]
    wrong, variation = _why_not_measured(scratch), variation_of(scratch)
    if not wrong and not math.isnan(variation):
        return Seconds(
            SecondsKind.MEASURED, f"Seconds are as measured. {_varies(variation)}.{_foreign(runs, machines[0])}", machines[0]
        )
    reference, refused = _reference(base, machines, references)
    if reference:
        cause = wrong or "With one seed of scratch, nothing shows that measured seconds repeat"
        return Seconds(
            SecondsKind.REFERENCE, f"{cause}. So seconds are {_described(reference, runs)}", reference.hardware, reference
        )
    if not wrong:
        note = "Seconds are as measured, but with one seed of scratch nothing shows that they repeat."
        return Seconds(SecondsKind.MEASURED, note + _foreign(runs, machines[0]), machines[0])
    return Seconds(SecondsKind.NONE, f"{wrong}, so measured seconds do not compare, and {refused}. {REMEDY}.")


def variation_of(scratch: Iterable[Run]) -> float:
    """How much scratch's seconds a step vary over its seeds: standard deviation over mean. Of several budgets the largest.

    NaN where no budget has two seeds.
    """
    by_budget: dict[float, list[float]] = {}
    for run in scratch:
        by_budget.setdefault(run.record.budget_share, []).append(run.cost(Unit.SECONDS, Ledger.REUSE) / run.record.steps)
    found = [float(np.std(each, ddof=1) / np.mean(each)) for each in by_budget.values() if len(each) > 1]
    return max(found, default=math.nan)


def _varies(variation: float) -> str:
    return f"Scratch's measured seconds a step vary by {percent(variation)} over its seeds (standard deviation over mean)"


def _why_not_measured(scratch: Sequence[Run]) -> str:
    """Why measured seconds do not compare, as the beginning of a sentence; empty if they may."""
    if any(run.record.hardware.shared for run in scratch):
        return "Scratch ran beside other runs on the same machine (--workers)"
    if len({run.record.hardware for run in scratch}) > 1:
        return "Scratch ran on different hardware in different seeds"
    variation = variation_of(scratch)
    return f"{_varies(variation)}, {percent(LARGEST_VARIATION, 0)} or more" if variation >= LARGEST_VARIATION else ""


def _foreign(runs: Sequence[Run], hardware: Hardware) -> str:
    names = ", ".join(run.name for run in runs if run.record.hardware != hardware)
    return f" Ran on other hardware than scratch, hence no saving in seconds: {names}." if names else ""


def _reference(
    scratch: Sequence[Run], machines: Sequence[Hardware], references: Sequence[StepSeconds]
) -> tuple[StepSeconds | None, str]:
    """Reference seconds that hold for scratch, or why there are none. Those of the machine of most of its runs come first."""
    wrong = ["there are no reference seconds"]
    for reference in sorted(references, key=lambda each: _rank(each, machines)):
        reasons = [reason for run in scratch if (reason := why_not(reference, run))]
        if not reasons:
            return reference, ""
        wrong.append(f"the reference seconds are not used: {SCRATCH} {reasons[0]}")
    return None, wrong[:2][-1]


def _rank(reference: StepSeconds, machines: Sequence[Hardware]) -> int:
    """The place of a reference's machine among these; behind them all, if it is another."""
    threads = reference.hardware.threads
    return next((place for place, each in enumerate(machines) if _alone(each, threads) == reference.hardware), len(machines))


def _alone(machine: Hardware, threads: int) -> Hardware:
    """The machine with one run on it. A run beside others has a share of the threads, and would have all of them alone."""
    return replace(machine, earlier="", at_once=1, threads=threads if machine.at_once > 1 else machine.threads)


def _described(reference: StepSeconds, runs: Sequence[Run]) -> str:
    machine, dates = _machine(reference.hardware), sorted({method.date for method in reference.methods.values()})
    elsewhere = sorted({_machine(run.record.hardware) for run in runs} - {machine})
    where = f" The runs were trained on {' and '.join(elsewhere)}: there, the savings of time may be others." if elsewhere else ""
    reasons = {run.record.method: reason for run in runs if (reason := why_not(reference, run))}
    left_out = ", ".join(f"{method} ({reason})" for method, reason in reasons.items())
    return f"reference seconds: steps x the time of a step measured alone, on {machine} ({' and '.join(dates)}).{where}" + (
        f" There are none for {left_out}." if left_out else ""
    )


def _machine(hardware: Hardware) -> str:
    return f"{hardware.name} in {hardware.precision}"
