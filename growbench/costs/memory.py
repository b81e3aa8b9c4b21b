"""The process's memory: how much it took at most, and that what was freed is kept for the next step."""

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
    """Let freed memory stay with the process, where its C library is glibc.

    A training step allocates the same tensors as the one before. By default glibc hands those above 32 MiB back to the system
    each time, which then has to clear new pages: a tenth of a step of BERT-Base on two cores.
    """
    if hasattr(LIBRARY, "mallopt"):
        LIBRARY.mallopt(M_MMAP_MAX, 0)
        LIBRARY.mallopt(M_TRIM_THRESHOLD, -1)


def reset_peak(device: torch.device) -> None:
    """Start a new peak: of the device on CUDA, of the process where the system allows it (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        if hasattr(LIBRARY, "malloc_trim"):
            LIBRARY.malloc_trim(0)  # what others freed is not ours
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes: the device's on CUDA, else the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
