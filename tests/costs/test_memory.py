"""What growbench asks of the system's memory. Each test in a process of its own: what is asked for holds for a process."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import pytest
import torch

from growbench.costs import memory
from tests.processes import FORKED

Result = TypeVar("Result")
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def alone(function: Callable[..., Result], *arguments: bool) -> Result:
    with ProcessPoolExecutor(1, FORKED) as process:
        return process.submit(function, *arguments).result()


def faults_of_fresh_tensors(keep_freed: bool) -> int:
    """Pages that the system had to give when a process allocates 64 MiB anew 20 times, after as many."""
    if keep_freed:
        memory.keep_freed()
    for _ in range(20):
        torch.empty(2**24).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(2**24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_kept_for_the_next_step() -> None:
    assert alone(faults_of_fresh_tensors, False) > 300  # a page each 4 KiB, or, where they are huge, each 2 MiB
    assert alone(faults_of_fresh_tensors, True) < 100


def peaks() -> tuple[int, int]:
    """Bytes above what was taken before: while 256 MiB are allocated, and once they are freed and a new peak is started."""
    memory.keep_freed()
    memory.reset_peak(CPU)
    base = memory.peak(CPU)
    torch.empty(2**26).fill_(1)
    with_it = memory.peak(CPU) - base
    memory.reset_peak(CPU)
    return with_it, memory.peak(CPU) - base


def test_a_new_peak_does_not_hold_what_was_freed_before() -> None:
    with_it, after_it = alone(peaks)
    assert 0.95 * 2**28 < with_it < 1.05 * 2**28
    assert after_it < 2**26
