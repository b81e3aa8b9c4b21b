"""Claims: of several processes on one results folder, one does each piece of work, and the others wait for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from growbench.console import say
from growbench.training.parallel import Parallel


@dataclass(frozen=True)
class Claims:
    """The claims on the runs below one results folder. `parallel`: the processes that work together, under one claim."""

    folder: Path
    parallel: Parallel

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Claim the runs of that name until the end of the block. False if another living process has them."""
        lock = FileLock(self.folder / ".locks" / f"{name}.lock")
        with contextlib.suppress(Timeout):
            if self.parallel.is_main_process:
                lock.acquire(blocking=False)
        (mine,) = self.parallel.any_process(lock.is_locked)
        try:
            yield mine
        finally:
            lock.release()

    def wait(self, names: Collection[str]) -> None:
        """Wait a second for another process, and say which of its runs are waited for."""
        for name in sorted(names):
            say(f"{name:<18} is another process's work: waiting for it")
        time.sleep(1)
