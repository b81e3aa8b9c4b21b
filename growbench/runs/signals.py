"""SIGINT, SIGTERM and SIGHUP. Training ends after the present step, with a checkpoint. A second one ends it at once.

Other work is ended by the first.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from growbench.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last when a terminal or an ssh connection is closed
TOGETHER = 0.5  # seconds; signals that come together are one: Ctrl-C reaches all processes, and is passed on to them as well


class Interruption:
    """Within `with Interruption() as asked:`, `asked()` says whether the program was asked to stop."""

    patience = 1  # signals that only ask; the next one raises Interrupted

    def __init__(self) -> None:
        self._asked = 0
        self._last = -TOGETHER

    def __call__(self) -> bool:
        return self._asked > 0

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()  # Python allows signal handlers only there
        heeded = [number for number in SIGNALS if main and not _ignored_on_purpose(number)]
        self._before = {number: signal.signal(number, self._ask) for number in heeded}
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._last < TOGETHER:
            return
        self._last = time.monotonic()
        self._asked += 1
        if self._asked > self.patience:
            raise Interrupted


def _ignored_on_purpose(number: signal.Signals) -> bool:
    """Whether a command was started by nohup, and so is to go on when its terminal is closed."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


class _AtOnce(Interruption):
    patience = 0


@contextmanager
def raising() -> Iterator[None]:
    """Within it, SIGINT, SIGTERM and SIGHUP raise Interrupted. So a KeyboardInterrupt that is not one was raised by a method."""
    with _AtOnce():
        yield
