"""What a command says, and the progress of a run: a bar in a terminal; elsewhere one aligned line for each evaluation."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from growbench.formatting import duration, quantity


def say(text: str) -> None:
    """Print a message to stderr; results go to files and stdout."""
    if os.environ.get("RANK", "0") == "0":  # of several processes, only the first prints
        print(text, file=sys.stderr, flush=True)


class Lasting:
    """A standard stream that outlives its reader: once it cannot be written, what is written is dropped. No work fails for it.

    What its encoding lacks is written as an escape, such as \\udcff.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: OSError | None = None  # why it could not be written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            return self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # of libraries and worker processes too
        os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[Lasting]:
    """Inside, stdout and stderr may be closed by their readers, as `| head` does, or be closed from the start. Gives stdout."""
    before = sys.stdout, sys.stderr
    out, err = (Lasting(stream or open(os.devnull, "w", encoding="utf-8")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def byte_bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """The progress of writing so many bytes, in a terminal. Gives the function that is told how many more were written."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None, leave=False, dynamic_ncols=True) as bar:
        yield bar.update


def time_left(spent: float, done: int, left: int) -> str:
    """How long the steps that are left take, after `done` steps in `spent` seconds."""
    return duration(spent / done * left) if done else "-"


class Progress:
    """The progress of the run `label`, of at least `steps` steps, towards a target loss (nats; None: not known)."""

    def __init__(self, label: str, steps: int, target_loss: float | None, shown: bool = True) -> None:
        self.label, self.steps, self.target_loss, self.shown = label, steps, target_loss, shown
        self.started = time.perf_counter()
        self.done = self.resumed = 0  # steps done, and those of them before the run was resumed
        from tqdm import tqdm  # --help does without it

        form = "{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{remaining} left]{postfix}"
        self.bar = tqdm(
            total=steps, desc=label, disable=None if shown else True, leave=False, bar_format=form, dynamic_ncols=True
        )

    def extend(self, phase: str, total: int) -> None:
        """A phase begins; the whole run is now expected to have `total` steps."""
        self.phase, self.steps = phase, total
        self.bar.total = total
        self.bar.set_description_str(f"{self.label} · {phase}")

    def step(self) -> None:
        """One step is done."""
        self.done += 1
        self.bar.update()

    def resume(self, steps: int) -> None:
        """The run is resumed: this number of steps was done earlier."""
        self.done += steps
        self.resumed += steps
        self.bar.update(steps)

    def show(self, val_loss: float, flops: float) -> None:
        """Show an evaluation: validation loss (nats), and the FLOPs charged so far."""
        goal = "" if self.target_loss is None else f" (target {self.target_loss:.4f})"
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {val_loss:.4f}{goal}, {quantity(flops, 'FLOP')}")
            return
        if not self.shown:
            return
        left = time_left(time.perf_counter() - self.started, self.done - self.resumed, self.steps - self.done)
        say(
            f"{self.label:<18} {self.phase:<16} step {self.done:>6}/{self.steps:<6} loss {val_loss:8.4f}{goal}"
            f"  {quantity(flops, 'FLOP'):>11}  {left:>8} left"
        )

    def close(self) -> None:
        self.bar.close()
