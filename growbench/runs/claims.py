"""Claims: several processes may share a results folder. One of them does each piece of work, and the others wait for it."""

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
    """Locks on the runs in a results folder. `parallel`: the processes of one distributed run, which hold a lock together."""

    folder: Path
    parallel: Parallel

    @contextmanager
    def claimed(self, *names: str) -> Iterator[bool]:
        """Lock the runs of these names until the end of the `with` block. Yields False if another process holds one."""
        locks = [FileLock(self.folder / ".locks" / f"{name}.lock") for name in names]
        with contextlib.suppress(Timeout):
            for lock in locks if self.parallel.is_main_process else []:
                lock.acquire(blocking=False)
        (mine,) = self.parallel.any_process(all(lock.is_locked for lock in locks))
        try:
            yield mine
        finally:
            for lock in locks:
                lock.release()

    def wait(self, names: Collection[str]) -> None:
        """Wait for one second. `names`: the runs to name as waited for."""
        for name in sorted(names):
            say(f"{name:<18} is being trained by another process: waiting for it")
        time.sleep(1)
