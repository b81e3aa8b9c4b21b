"""Worker processes that prepare data: they start fast, leave Ctrl-C to their parent, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from threading import Thread


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def context(*imports: str) -> ForkServerContext:
    """Workers are forks of a server that has done these imports, but has neither threads nor CUDA, which a fork breaks.

    Other people's libraries only: the server looks in the current folder first, where another growbench may lie.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(imports))
    resource_tracker.ensure_running()  # it changes the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the server, and by every worker
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return found


def begin(_: int = 0) -> None:
    """The first act of a worker: from now on it ends when the process that started it does, even by SIGKILL."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for every core
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
