"""Energy by account, as far as the machine's own counters tell it: GPUs by NVML, CPUs by RAPL.

A counter is that of a whole GPU or CPU package, whatever else runs on it. Nothing is estimated: a part whose counter cannot be
read is not measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from growbench.costs.accounts import Account, Part

JOULES_PER_KWH = 3.6e6
POWERCAP = Path("/sys/class/powercap")  # where Linux shows RAPL's counters


@dataclass(frozen=True)
class EnergyCounter:
    """One counter of joules. `read` raises OSError if it cannot be read."""

    part: Part
    read: Callable[[], float]
    wraps_at: float = math.inf  # joules at which it starts again from 0


class EnergyMeter:
    """Joules by part of the machine and account, between `start` and `charge`."""

    def __init__(self, counters: Sequence[EnergyCounter] = ()) -> None:
        self.counters = list(counters)
        self.joules: dict[str, dict[Account, float]] = {each.part: dict.fromkeys(Account, 0.0) for each in self.counters}
        self._begun: list[float] | None = None

    def start(self) -> None:
        """Begin an interval. What was begun and not charged is left out."""
        self._begun = self._read()

    def charge(self, account: Account) -> None:
        """End the interval, if one was begun, and charge it."""
        if self._begun is None:
            return
        for counter, before, now in zip(self.counters, self._begun, self._read(), strict=False):
            self.joules[counter.part][account] += now - before + (counter.wraps_at if now < before else 0)
        self._begun = None

    def resume(self, before: Mapping[str, Mapping[Account, float]]) -> None:
        """Continue what was measured before. A part that was not measured then is dropped."""
        self.counters = [each for each in self.counters if each.part in before]
        self.joules = {each.part: dict(before[each.part]) for each in self.counters}
        self._begun = None

    def kwh(self) -> dict[Part, dict[Account, float]]:
        """By part and account. Parts and accounts are missing if nothing was measured of them."""
        measured = {
            Part(part): {key: each / JOULES_PER_KWH for key, each in of.items() if each} for part, of in self.joules.items()
        }
        return {part: of for part, of in measured.items() if of}

    def _read(self) -> list[float]:
        """The counters' values. If one cannot be read any more, nothing is measured."""
        try:
            return [counter.read() for counter in self.counters]
        except OSError:
            self.counters, self.joules = [], {}
            return []


def counters(device: torch.device, processes: int = 1) -> list[EnergyCounter]:
    """Of the CPUs, and of the GPUs if the device is one. `processes`: of the run, one a device.

    None if the processes run on several machines, of which only one could be read.
    """
    if processes != int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        return []
    gpus = [device] if processes == 1 else [torch.device("cuda", number) for number in range(processes)]
    return [*cpu_counters(), *(gpu_counters(gpus) if device.type == "cuda" else [])]


def cpu_counters(folder: Path = POWERCAP) -> list[EnergyCounter]:
    """RAPL's. None if one of them cannot be read, as without the rights to: a sum would lack it."""
    found = []
    try:
        for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's too; a package's own zones are listed beside it
            if (zone / "name").read_text().strip().startswith(("package", "dram")):
                counter = EnergyCounter(Part.CPU, partial(_joules, zone / "energy_uj"), _joules(zone / "max_energy_range_uj"))
                counter.read()
                found.append(counter)
    except (OSError, ValueError):
        return []
    return found


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def gpu_counters(devices: Sequence[torch.device]) -> list[EnergyCounter]:
    """NVML's. None if one of the GPUs has no counter, as those before Volta: a sum would lack it."""
    import pynvml

    try:
        pynvml.nvmlInit()
        found = []
        for device in devices:
            uuid = torch.cuda.get_device_properties(device).uuid
            counter = EnergyCounter(Part.GPU, partial(_gpu_joules, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")))
            counter.read()
            found.append(counter)
    except (OSError, pynvml.NVMLError):
        return []
    return found


def _gpu_joules(handle: Any) -> float:
    import pynvml

    try:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error
