"""What a run costs: a clock, and a ledger of FLOPs and seconds by account."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from growbench.costs import memory
from growbench.costs.accounts import CHARGED, UNCHARGED
from growbench.costs.flops import T, count, counting


class Stopwatch:
    """Times laps without making the host wait for the device: events on CUDA, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """End a lap; the first mark starts the first one."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def read(self) -> list[float]:
        """Seconds of the laps since the last reading. Waits for the device."""
        marks, self.marks = self.marks, []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
        return [b - a for a, b in itertools.pairwise(marks)]


def charged(ledger: Mapping[str, float]) -> float:
    """What of a ledger's accounts is charged, without the source."""
    return sum(ledger[account] for account in CHARGED)


class Costs:
    """One run's ledger: FLOPs and seconds by account, filled by measuring what the runner does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flops = {account: 0 for account in ("source", *CHARGED, *UNCHARGED)}
        self.seconds = {account: 0.0 for account in ("source", *CHARGED, *UNCHARGED)}
        self._counter: FlopCounterMode | None = None
        self._taught: Counter[str] = Counter()  # FLOPs of teachers in the step that is probed, by account
        self._teacher_watches = {account: Stopwatch(device) for account in ("teacher", "overhead")}
        self._peak = 0  # bytes, before the latest counting

    def total(self, kind: str) -> float:
        """What is charged so far without the source: `kind` is "flops" or "seconds"."""
        return charged(getattr(self, kind))

    def spent(self) -> float:
        """Seconds of this run in every account but overhead, which is all the rest."""
        return sum(seconds for account, seconds in self.seconds.items() if account not in ("source", "overhead"))

    @contextmanager
    def clocked(self, account: str) -> Iterator[None]:
        """Charge the seconds of what runs inside."""
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds[account] += time.perf_counter() - start

    def peak_memory(self) -> int:
        """The bytes taken at most, but for what only counting takes on CUDA: attention by the math path keeps its weights."""
        return max(self._peak, memory.peak(self.device))

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Memory that is taken inside is not the run's."""
        if self.device.type != "cuda":  # elsewhere a new peak takes long to begin, and the path is the math one anyway
            yield
            return
        self._peak = self.peak_memory()
        yield
        memory.reset_peak(self.device)

    def charged(self, account: str, function: Callable[[], T]) -> T:
        """Run `function`, charge its FLOPs and seconds."""
        with self.clocked(account), self._apart() if account in UNCHARGED else nullcontext():
            flops, result = count(function)
        self.flops[account] += flops
        return result

    @contextmanager
    def teacher(self, precomputed: bool = False) -> Iterator[None]:
        """A teacher's forward pass: no gradients, its FLOPs and seconds apart.

        `precomputed`: as if its outputs had been stored before; recorded as overhead, and not charged.
        """
        account = "overhead" if precomputed else "teacher"
        before = self._counted()
        self._teacher_watches[account].mark()
        with torch.no_grad():
            yield
        self._teacher_watches[account].mark()
        self._taught[account] += self._counted() - before

    def _counted(self) -> int:
        """FLOPs so far in the step that is probed; 0 outside of one."""
        return self._counter.get_total_flops() if self._counter else 0

    def teacher_seconds(self) -> dict[str, float]:
        """Seconds inside `teacher()` since the last reading, by account."""
        return {account: sum(watch.read()[::2]) for account, watch in self._teacher_watches.items()}

    def probe(self, step: Callable[[], Any], account: str) -> dict[str, int]:
        """FLOPs of one training step by account; afterwards the random state is as before, the time is overhead."""
        cuda = [self.device] if self.device.type == "cuda" else []
        self._taught.clear()
        with torch.random.fork_rng(devices=cuda), self.clocked("overhead"), self._apart(), counting() as self._counter:
            step()
        flops = self._counted()
        self._counter = None
        self.teacher_seconds()
        self.flops["overhead"] += flops
        return self._by_account(account, flops)

    def _by_account(self, account: str, flops: int) -> dict[str, int]:
        """The FLOPs of a step, those of teachers apart."""
        return {account: flops - self._taught.total()} | {key: each for key, each in self._taught.items() if each}

    def compiling(self, step: Callable[[], Any]) -> None:
        """Run a training step for the sake of what is compiled at its first call; afterwards the random state is as before."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), self.clocked("compilation"):
            step()
        self.teacher_seconds()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
