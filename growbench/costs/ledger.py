"""What a run costs: a clock, and a ledger of FLOPs and seconds by account."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from growbench.costs import memory
from growbench.costs.accounts import CHARGED, UNCHARGED, Account, Unit
from growbench.costs.energy import EnergyCounter, EnergyMeter
from growbench.costs.flops import T, count, counting
from growbench.costs.gradients import GradientWatch
from growbench.costs.teaching import StoredOutputs, heard_by
from growbench.elapsed import Part, elapsed
from growbench.errors import UsageError

PARTS = {
    Account.GROWTH: Part.GROWTH,
    Account.EVALUATION: Part.EVALUATION,
    Account.COMPILATION: Part.COMPILATION,
    Account.OVERHEAD: Part.COUNTING,
}


class Stopwatch:
    """Measures the seconds between marks. On CUDA it records events, so that the host need not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """End one interval and begin the next. The first mark only begins one."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def read(self) -> list[float]:
        """Seconds of each interval since the last reading. Waits for the device."""
        marks, self.marks = self.marks, []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
        return [b - a for a, b in itertools.pairwise(marks)]


class CpuClock:
    """Measures CPU time of this process, of all its threads, and of its child processes that have ended."""

    def __init__(self) -> None:
        self._started = 0.0

    def start(self) -> None:
        """Begin an interval."""
        self._started = _cpu_seconds()

    def read(self) -> float:
        """CPU seconds since the start."""
        return _cpu_seconds() - self._started


def _cpu_seconds() -> float:
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


def charged(ledger: Mapping[Account, float]) -> float:
    """The sum of a ledger's charged accounts, without the source."""
    return sum(ledger[account] for account in CHARGED)


class Costs:
    """One run's ledger: measured FLOPs, seconds and energy by account. `counters`: what tells the energy."""

    def __init__(self, device: torch.device, counters: Sequence[EnergyCounter] = ()) -> None:
        self.device = device
        self.energy = EnergyMeter(counters)
        self.flops: dict[Account, int] = dict.fromkeys(Account, 0)
        self.seconds: dict[Account, float] = dict.fromkeys(Account, 0.0)
        self._counter: FlopCounterMode | None = None
        self.gradients = GradientWatch()
        self.taught: Counter[Account] = Counter()  # FLOPs of teachers in the probed step, by account
        self.teaching = False  # whether a teacher is running
        self._trained: Iterable[Tensor] | None = None  # parameters in training, in a probe
        self._teacher_watches = {account: Stopwatch(device) for account in (Account.TEACHER, Account.OVERHEAD)}
        self._peak = 0  # bytes, before the last counting

    def total(self, unit: Unit) -> float:
        """The charged total so far, without the source."""
        return charged(getattr(self, unit))

    def spent(self) -> float:
        """Seconds of this run in all accounts but overhead, which is the rest of the run."""
        return sum(seconds for account, seconds in self.seconds.items() if account not in (Account.SOURCE, Account.OVERHEAD))

    @contextmanager
    def clocked(self, account: Account) -> Iterator[None]:
        """Charge the seconds spent inside the `with` block to `account`."""
        self._synchronize()
        self.energy.start()
        start = time.perf_counter()
        try:
            with elapsed.part(PARTS.get(account, Part.STEPS)):
                yield
        finally:
            self._synchronize()
            self.seconds[account] += time.perf_counter() - start
            self.energy.charge(account)

    def peak_memory(self) -> int:
        """Bytes at the run's peak. On CUDA without FLOP counting, whose math path keeps the attention weights."""
        return max(self._peak, memory.peak(self.device))

    @contextmanager
    def _without_peak(self) -> Iterator[None]:
        """Leave memory used inside the `with` block out of the run's peak."""
        if self.device.type != "cuda":  # elsewhere resetting the peak is slow, and steps take the math path too
            yield
            return
        self._peak = self.peak_memory()
        yield
        memory.reset_peak(self.device)

    def charged(self, account: Account, function: Callable[[], T]) -> T:
        """Run `function` and charge its FLOPs and seconds to `account`."""
        within = self._without_peak() if account in UNCHARGED else self.gradients.allowed()
        with self.clocked(account), within:
            flops, result = count(function)
        self.flops[account] += flops
        return result

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Within, hear of the teachers of a method, and watch for gradients that are charged to no account."""
        with heard_by(self.teaches), self.gradients.watching():
            yield

    @contextmanager
    def teaches(self, precomputed: bool) -> Iterator[None]:
        """Charge the FLOPs and seconds of the `with` block to the teacher, or to overhead. Raises UsageError within another."""
        if self.teaching:
            raise UsageError("task.teacher() within task.teacher(): its costs would count twice; use one after the other")
        account = Account.OVERHEAD if precomputed else Account.TEACHER
        refused = nullcontext() if self._trained is None or not precomputed else StoredOutputs(self._trained)
        before, self.teaching = self.counted(), True
        self._teacher_watches[account].mark()
        try:
            with refused:
                yield
        finally:
            self._teacher_watches[account].mark()
            self.teaching = False
        self.taught[account] += self.counted() - before

    def counted(self) -> int:
        """FLOPs so far in the probed step; 0 outside a probe. A ledger that counts in another way overrides this."""
        return self._counter.get_total_flops() if self._counter else 0

    def teacher_seconds(self) -> dict[Account, float]:
        """Seconds inside `teacher()` since the last reading, by account."""
        return {account: sum(watch.read()[::2]) for account, watch in self._teacher_watches.items()}

    def charge_steps(self, account: Account, seconds: float) -> None:
        """Charge the seconds and the energy of training steps. Those of teachers within them are of their own accounts."""
        taught = self.teacher_seconds()
        self.energy.charge(account)
        for teachers, spent in taught.items():
            self.seconds[teachers] += spent
        self.seconds[account] += seconds - sum(taught.values())

    def probe(self, step: Callable[[], Any], account: Account, trained: Iterable[Tensor] = ()) -> dict[Account, int]:
        """FLOPs of one training step by account. Its time is overhead. The random state is restored.

        `trained`: the parameters in training. Raises UsageError if a teacher depends on them, and counts as computed before.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        self.taught.clear()
        self._trained = trained
        with (
            torch.random.fork_rng(devices=cuda),
            self.clocked(Account.OVERHEAD),
            self._without_peak(),
            self.gradients.allowed(),
            counting() as self._counter,
        ):
            step()
        flops = self.counted()
        self._counter = self._trained = None
        self.teacher_seconds()
        self.flops[Account.OVERHEAD] += flops
        return self.by_account(account, flops)

    def by_account(self, account: Account, flops: int) -> dict[Account, int]:
        """The FLOPs of a step of `account`, with those of teachers in their own accounts."""
        return {account: flops - self.taught.total()} | {key: each for key, each in self.taught.items() if each}

    def compiling(self, step: Callable[[], T]) -> T:
        """Run a training step so that it is compiled or captured. Its time is compilation. The random state is restored."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), self.clocked(Account.COMPILATION), self.gradients.allowed():
            result = step()
        self.teacher_seconds()
        return result

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
