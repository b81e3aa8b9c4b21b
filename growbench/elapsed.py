"""Where the time of a command goes: seconds and CPU seconds by part. Each second is in one part."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Part(StrEnum):
    """What a command does, in the order of the table."""

    START = "start"  # imports, and all else before the work
    DATA = "data"  # tokenizer, token files
    PLAN = "plan"
    GROWTH = "growth"
    STEPS = "training steps"
    EVALUATION = "evaluation"
    COMPILATION = "compilation"
    COUNTING = "counting FLOPs"
    CHECKPOINTS = "checkpoints"
    RECORDS = "records"  # run.json and what lies beside it
    REPORT = "report"
    OTHER = "other"
    WAITING = "waiting for other processes"  # whose own time counts


@dataclass(frozen=True)
class Spent:
    """Time. CPU seconds are those of all threads, and of child processes that have ended."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


class Elapsed:
    """The time of this process, by part."""

    def __init__(self) -> None:
        self.begin(since_start=True)

    def begin(self, since_start: bool = False) -> None:
        """Count from now on, or from the start of the process."""
        self._now = _clock()
        age = Spent(_age(), self._now.cpu_seconds) if since_start else Spent()
        self._spent, self._within = {Part.START: age}, [Part.START]

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Within it, time is of this part, apart from that of parts within it. What planning counts and grows is the plan's."""
        self._read()
        self._within.append(Part.PLAN if self._within[-1] == Part.PLAN else part)
        try:
            yield
        finally:
            self._read()
            self._within.pop()

    def move(self, part: Part, spent: Spent) -> None:
        """Time of the present part was of another one, which had a clock of its own."""
        self._add(part, spent)
        self._add(self._within[-1], Spent() - spent)

    def add(self, parts: Mapping[Part, Spent]) -> None:
        """Add what another process has spent."""
        for part, spent in parts.items():
            self._add(part, spent)

    def parts(self) -> dict[Part, Spent]:
        """In the order of the table. Waiting for other processes is left out."""
        self._read()
        return {part: self._spent[part] for part in Part if part in self._spent and part != Part.WAITING}

    def _read(self) -> None:
        before, self._now = self._now, _clock()
        self._add(self._within[-1], self._now - before)

    def _add(self, part: Part, spent: Spent) -> None:
        self._spent[part] = self._spent.get(part, Spent()) + spent


def table(parts: Mapping[Part, Spent]) -> str:
    """The parts with their shares of the seconds."""
    total = sum(parts.values(), Spent())
    rows = [(f"{part}", spent) for part, spent in parts.items()]
    lines = [f"{'where the time went':<22}{'seconds':>9}{'share':>9}{'CPU seconds':>14}"]
    lines += [
        f"  {name:<20}{spent.seconds:>9.1f}{spent.seconds / total.seconds:>8.1%} {spent.cpu_seconds:>13.1f}"
        for name, spent in [*rows, ("all", total)]
    ]
    return "\n".join(lines)


def _clock() -> Spent:
    times = os.times()
    return Spent(time.perf_counter(), times.user + times.system + times.children_user + times.children_system)


def _age() -> float:
    """Seconds since the process was started, as far as Linux tells it."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():
        return 0.0
    started = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


elapsed = Elapsed()
