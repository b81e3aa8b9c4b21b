"""The machine that a run is on: what its seconds depend on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from growbench.errors import UsageError

# Seconds compare only where these are equal.
HARDWARE = ("device", "name", "threads", "precision", "processes", "micro_batch", "compile", "elsewhere")


def _decisive(hardware: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(hardware.get(key) for key in HARDWARE)


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda as a device. Raises UsageError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is there; allowed here: auto, cpu")
    return torch.device(name)


def hardware(device: torch.device) -> dict[str, Any]:
    """The device by name, and the threads that work on it."""
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device), "threads": torch.get_num_threads()}
    return {"device": "cpu", "name": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    """The processor's model name; Linux tells it in /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
