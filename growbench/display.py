"""One progress display of several runs at once, each in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

from growbench.console import Progress, say, time_left
from growbench.formatting import quantity

INTERVAL = 0.5  # seconds between two moments that a process tells of, apart from evaluations


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, as Progress.show has it."""

    val_loss: float
    goal: str  # the target, in words
    flops: float


@dataclass(frozen=True)
class Moment:
    """Where a run is."""

    label: str
    phase: str
    steps: int  # of the whole run, as far as is known
    done: int
    resumed: int  # of those done: before the run was resumed
    evaluated: Evaluated | None = None


class Told(Progress):
    """The progress of a run, told to the process that shows it."""

    def __init__(self, tell: Callable[[Moment], object], label: str, steps: int, target_loss: float | None, shown: bool) -> None:
        super().__init__(label, steps, target_loss, shown=False)
        self.tell, self.phase = tell, ""
        self._told = -INTERVAL

    def step(self) -> None:
        super().step()
        if time.monotonic() - self._told > INTERVAL:
            self._tell()

    def resume(self, steps: int) -> None:
        super().resume(steps)
        self._tell()

    def show(self, val_loss: float, flops: float) -> None:
        goal = "" if self.target_loss is None else f" (target {self.target_loss:.4f})"
        self._tell(Evaluated(val_loss, goal, flops))

    def _tell(self, evaluated: Evaluated | None = None) -> None:
        self._told = time.monotonic()
        self.tell(Moment(self.label, self.phase, self.steps, self.done, self.resumed, evaluated))


class Overall:
    """The progress of all runs of a request: a bar in a terminal; elsewhere one aligned line for each evaluation.

    `steps`: of each run to do, by name.
    """

    def __init__(self, steps: Mapping[str, int]) -> None:
        self.steps, self.done, self.resumed = dict(steps), dict.fromkeys(steps, 0), dict.fromkeys(steps, 0)
        self.ended: set[str] = set()
        self._said: set[str] = set()
        self.started: float | None = None  # when the first run began to train
        form = "{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{remaining} left]{postfix}"
        self.bar = tqdm(total=sum(steps.values()), disable=None, leave=False, bar_format=form, dynamic_ncols=True)
        self._draw()

    def update(self, moment: Moment) -> None:
        self.started = self.started or time.perf_counter()
        self.steps[moment.label], self.done[moment.label] = moment.steps, moment.done
        self.resumed[moment.label] = moment.resumed
        if evaluated := moment.evaluated:
            self.bar.set_postfix_str(f"{moment.label} loss {evaluated.val_loss:.4f}{evaluated.goal}", refresh=False)
            if self.bar.disable:
                self._line(moment, evaluated, time.perf_counter() - self.started)
        self._draw()

    def end(self, run: str) -> None:
        """A run has ended, in whatever way."""
        self.ended.add(run)
        self.done[run] = self.steps.get(run, 0)
        self._draw()

    def say(self, text: str) -> None:
        """Print what a process says, above the bar; once, as each process says that it found a source done."""
        if text in self._said:
            return
        self._said.add(text)
        if self.bar.disable:
            say(text)
        else:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()

    def _draw(self) -> None:
        self.bar.total = sum(self.steps.values())
        self.bar.set_description_str(f"{len(self.ended)}/{len(self.steps)} runs", refresh=False)
        self.bar.update(sum(self.done.values()) - self.bar.n)

    def _line(self, moment: Moment, evaluated: Evaluated, seconds: float) -> None:
        done, earlier = sum(self.done.values()), sum(self.resumed.values())
        left = time_left(seconds, done - earlier, sum(self.steps.values()) - done)
        say(
            f"{moment.label:<18} {moment.phase:<16} step {moment.done:>6}/{moment.steps:<6} loss {evaluated.val_loss:8.4f}"
            f"{evaluated.goal}  {quantity(evaluated.flops, 'FLOP'):>11}  {len(self.ended)}/{len(self.steps)} runs, {left:>8} left"
        )
