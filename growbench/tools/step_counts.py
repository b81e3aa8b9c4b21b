"""Counts the FLOPs of every step of a miniature run, with all that runs in it: schedule, batch, loss, backward and optimizer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from growbench.costs.accounts import Account
from growbench.costs.flops import counting
from growbench.costs.gradients import GradientWatch
from growbench.training.phases import PhaseObserver, PhaseStart

SAME_WORK = "all steps must do the same work, or workload= must tell them apart"


class StepCounts(PhaseObserver):
    """Compares the FLOPs of each step with what is charged for it.

    An optimizer's own products are not charged, by the protocol. Those of torch's Muon are recorded; of others a warning tells. A
    forward or backward pass in its step is no such product.
    """

    def __init__(self, gradients: GradientWatch, counts: bool, compares: bool) -> None:
        """`counts` without `compares`: as in another run, since counting decomposes operations, which may change last bits."""
        self.gradients, self.counts, self.compares = gradients, counts, compares
        self.broken: dict[str, str] = {}  # what is wrong -> where it was seen first
        self.warnings: list[str] = []
        self.children = _children()

    @contextmanager
    def step(self, start: PhaseStart, number: int, flops: Mapping[Account, int]) -> Iterator[None]:
        if not self.counts:
            yield
            return
        with counting() as counter, _Optimizing(counter, self.gradients) as optimizing:
            yield
        place = f"phase {start.phase.name!r}"
        if _children() - self.children:
            self.broken.setdefault("a process that the method has started runs during training, and is not charged", place)
        products = flops.get(Account.OPTIMIZER, 0)
        found, expected = counter.get_total_flops() - optimizing.flops, sum(flops.values()) - products
        if self.compares and found != expected and not self.broken:
            self.broken[f"step {number} takes {found:,} FLOPs, while {expected:,} are charged: {SAME_WORK}"] = place
        if optimizing.calls_modules:
            self.broken.setdefault("the optimizer calls a module in its step: what it computes there is not charged", place)
        elif optimizing.flops != products:
            kind, unknown = type(start.optimizer).__name__, optimizing.flops - products
            text = f"{place}: a step of {kind} takes {unknown:,} FLOPs of its own, which are neither charged nor recorded"
            self.warnings += [text] if not self.warnings else []


def _children() -> set[str]:
    """The ids of the processes that the main thread has started and that have not ended; none on systems without such a list."""
    found = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(found.read_text().split()) if found.exists() else set()


class _Optimizing(ExitStack):
    """Tells what an optimizer does in its step from what a training step does beside it."""

    def __init__(self, counter: FlopCounterMode, gradients: GradientWatch) -> None:
        super().__init__()
        self.counter, self.gradients = counter, gradients
        self.flops = 0
        self.thread = threading.get_ident()
        self.watching = ExitStack()
        self.callback(self.watching.close)
        self.calls_modules = False
        self.depth = 0  # of steps within a step, as of optimizers that another one wraps
        for handle in (register_optimizer_step_pre_hook(self._begins), register_optimizer_step_post_hook(self._ends)):
            self.callback(handle.remove)

    def _begins(self, *_: Any) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        self.flops -= self.counter.get_total_flops()
        self.watching.callback(register_module_forward_pre_hook(self._called).remove)
        self.watching.enter_context(self.gradients.no_backward())

    def _ends(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth:
            return
        self.watching.close()
        self.flops += self.counter.get_total_flops()

    def _called(self, *_: Any) -> None:
        self.calls_modules |= threading.get_ident() == self.thread
