"""Worker processes that prepare data. They start fast, leave Ctrl-C to their parent, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from threading import Thread


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def context(*imports: str) -> ForkServerContext:
    """Workers fork from a server that has imported these modules. It has no threads and no CUDA, which do not survive a fork.

    `imports` must not name growbench: the server searches the current folder first, which may hold another copy of it.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(imports))
    resource_tracker.ensure_running()  # it changes the signal mask itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # server and workers inherit the mask
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return found


def end_if_starting() -> None:
    """End this process if it is a worker that is not ready yet: it runs a script again that is not made for that.

    Python does so in each worker with what the script has outside of `if __name__ == "__main__":`.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)


def begin(_: int = 0) -> None:
    """Called first in every worker: from then on it ends when its parent process ends, even by SIGKILL."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a worker already
    Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
