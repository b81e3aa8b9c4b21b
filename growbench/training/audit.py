"""Finds work that no account is charged for: in steps that are not probed, beside the losses, and in other threads."""

from __future__ import annotations

import itertools
import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from growbench.costs.accounts import Account
from growbench.costs.flops import count
from growbench.costs.ledger import Costs
from growbench.method import Method
from growbench.method.interface import MethodError
from growbench.method.schedule import Schedule
from growbench.training.phases import PhaseStart
from growbench.training.records import PhaseRecord

STEPS_PER_PROBE = 500  # of each stretch of so many steps of a phase, one is probed


def hidden_steps(seed: int, phase: int, steps: int) -> frozenset[int]:
    """The steps of a phase (its number, from 0) that are probed beside its first and its last one, whatever the method does.

    They are spread over the phase, and the same in every process. None in a phase of one or two steps.
    """
    draw = random.Random(f"{seed} {phase}")
    stretches = math.ceil((steps - 2) / STEPS_PER_PROBE)
    ends = [1 + (steps - 2) * number // stretches for number in range(stretches + 1)] if stretches > 0 else []
    return frozenset(draw.randrange(begin, end) for begin, end in itertools.pairwise(ends))


@dataclass(frozen=True)
class Timetable:
    """What a phase's functions of the step give for all its steps. They are called before the first step, and never again."""

    workloads: Sequence[int]
    lr_multipliers: Sequence[float]
    group_lr_multipliers: Sequence[Sequence[float] | None]  # of each param group; None: the phase's
    entry_factors: Sequence[Sequence[float]] = ()  # of each entry schedule

    @classmethod
    def of(cls, start: PhaseStart, schedule: Schedule, budget: int) -> Timetable:
        """`schedule`: the run's, of `budget` steps. Raises MethodError if the functions compute products of matrices."""
        phase, steps = start.phase, range(start.steps)

        def default(step: int, steps: int) -> float:
            return schedule(start.first_scored_step + step, budget) if phase.scored else 1.0

        def multipliers(schedule: Schedule) -> list[float]:
            factor = start.lr_factor
            return [schedule(step, start.steps) * (factor(step) if factor else 1) for step in steps]

        def asked() -> Timetable:
            return cls(
                [phase.workload_of(step) for step in steps],
                multipliers(default if phase.schedule is None else phase.schedule),
                [None if each is None else multipliers(each) for each in phase.group_schedules],
                [[each.schedule(step, start.steps) for step in steps] for each in phase.entry_schedules],
            )

        flops, table = count(asked)
        if flops:
            raise MethodError(
                f"phase {phase.name!r}: its schedules or its workload compute {flops:,} FLOPs, which nothing is charged for: "
                "they must depend on the step alone"
            )
        return table

    def of_group(self, place: int) -> Sequence[float]:
        """The multipliers of a param group, by its place."""
        own = self.group_lr_multipliers[place] if place < len(self.group_lr_multipliers) else None
        return self.lr_multipliers if own is None else own

    def first_steps(self) -> dict[int, int]:
        """The first step of each workload."""
        return {workload: step for step, workload in reversed(list(enumerate(self.workloads)))}

    def count(self, steps: range) -> Counter[int]:
        """The number of these steps that have each workload."""
        return Counter(self.workloads[steps.start : steps.stop])


class Audit:
    """Watches one method while it is trained."""

    def __init__(self, method: Method, costs: Costs) -> None:
        self.costs = costs
        self.earlier = set(sys._current_frames())  # threads, perhaps of other methods in the same folder
        file = getattr(sys.modules.get(type(method).__module__), "__file__", None)
        self.file = Path(file) if file else None  # of the method's code; None: it was typed in

    def step_done(self, phase: str) -> None:
        """Raise MethodError if a step, or what came since the step before it, did work that nothing is charged for."""
        if self.costs.teaching:
            raise MethodError(f"phase {phase!r}: task.teacher() is open at the end of a step: close it in the loss")
        if self.costs.gradients.found is not None:
            place = self.costs.gradients.found or "the method"
            raise MethodError(
                f"phase {phase!r}: {place}: gradients are computed outside of the phase's loss, where nothing is charged: "
                "compute them in the loss or in phases(), or write `with torch.no_grad():` where none are needed"
            )

    def run_ended(self, phases: Sequence[PhaseRecord], stopped: bool) -> None:
        """Raise MethodError as `step_done` does, or, unless the run was `stopped` within a phase, if its ledger was changed."""
        self.step_done(phases[-1].name or "" if phases else "")
        if not stopped:
            check_sum(self.costs, phases)

    def refuse_threads(self, phase: str) -> None:
        """Raise MethodError if another thread runs code of the method's file, or a new thread code of its folder."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        loop = {threading.get_ident(), threading.main_thread().ident}
        for ident, frame in sys._current_frames().items():
            if ident not in loop and self._is_its_own(frame, ident not in self.earlier):
                raise MethodError(
                    f"phase {phase!r}: {names.get(ident, 'a thread')} runs code of the method, and nothing is charged for it: "
                    "end it before the phase"
                )

    def _is_its_own(self, frame: FrameType | None, new: bool) -> bool:
        """Whether a thread's call, or one that led to it, is of the method's code."""
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if self.file and (file == self.file or (new and file.parent == self.file.parent)):
                return True
            frame = frame.f_back
        return False


@contextmanager
def untouched(model: nn.Module, rng: torch.Generator) -> Iterator[None]:
    """Restore the model's buffers and the random generator after the `with` block."""
    state, buffers = rng.get_state(), [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    yield
    rng.set_state(state)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def check_sum(costs: Costs, phases: Sequence[PhaseRecord]) -> None:
    """Raise MethodError unless the FLOPs charged for steps are those of all phases, each its steps times the FLOPs of one."""
    for account in (Account.TRAIN, Account.OPERATOR, Account.TEACHER, Account.OPTIMIZER):
        expected = sum(phase.steps * phase.flops_per_step.get(account, 0) for phase in phases)
        if not math.isclose(costs.flops[account], expected, rel_tol=1e-9):
            raise MethodError(
                f"the ledger was changed: {costs.flops[account]:,} FLOPs of {account}, while the phases took {round(expected):,}"
            )
