"""SIGINT and SIGTERM during training. The first ends the run after the present step, with a checkpoint; a second at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """Within `with Interruption() as asked:`, `asked()` says whether the program was asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()  # Python allows signal handlers only there
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM) if main}
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
