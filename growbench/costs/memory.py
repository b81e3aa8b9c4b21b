"""The process's memory: its peak, and how the C library treats freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch

LIBRARY: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed() -> None:
    """Keep freed memory in the process, if its C library is glibc.

    Every training step allocates tensors of the same sizes. By default glibc returns those above 32 MiB to the system, which
    clears the pages each time: a tenth of the time of a BERT-Base step on two cores.
    """
    if hasattr(LIBRARY, "mallopt"):
        LIBRARY.mallopt(M_MMAP_MAX, 0)
        LIBRARY.mallopt(M_TRIM_THRESHOLD, -1)


def return_freed() -> None:
    """Return freed memory to the system, if the C library is glibc."""
    if hasattr(LIBRARY, "malloc_trim"):
        LIBRARY.malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Start a new peak: of the device on CUDA, else of the process, if the system allows it (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        return_freed()  # memory freed before is not part of the new peak
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The peak in bytes: of the device on CUDA, else of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
