"""What a person sees while a run trains: a bar in a terminal, one aligned line per evaluation elsewhere."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

from growbench.formatting import duration, quantity


def say(text: str) -> None:
    """A line for the person at the terminal; results go to files and stdout."""
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Follows one run of `label`, which trains at least `steps` steps, towards `target` (None: not known yet)."""

    def __init__(self, label: str, steps: int, target: float | None, shown: bool = True) -> None:
        self.label, self.steps, self.target, self.shown = label, steps, target, shown
        self.started = time.perf_counter()
        self.done = self.before = 0
        form = "{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{remaining} left]{postfix}"
        self.bar = tqdm(
            total=steps, desc=label, disable=None if shown else True, leave=False, bar_format=form, dynamic_ncols=True
        )

    def extend(self, phase: str, total: int) -> None:
        """A phase begins; the run is now expected to have `total` steps in all."""
        self.phase, self.steps = phase, total
        self.bar.total = total
        self.bar.set_description_str(f"{self.label} · {phase}")

    def step(self) -> None:
        """One step is done."""
        self.done += 1
        self.bar.update()

    def resume(self, steps: int) -> None:
        """So many steps were done before, in another time."""
        self.done += steps
        self.before += steps
        self.bar.update(steps)

    def evaluated(self, val_loss: float, flops: float) -> None:
        """Show an evaluation."""
        goal = "" if self.target is None else f" -> {self.target:.4f}"
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {val_loss:.4f}{goal}, {quantity(flops, 'FLOP')}")
            return
        if not self.shown:
            return
        spent = time.perf_counter() - self.started
        now = self.done - self.before
        left = duration(spent / now * (self.steps - self.done)) if now else "-"
        say(
            f"{self.label:<18} {self.phase:<16} step {self.done:>6}/{self.steps:<6} loss {val_loss:8.4f}{goal}"
            f"  {quantity(flops, 'FLOP'):>11}  {left:>8} left"
        )

    def close(self) -> None:
        self.bar.close()
