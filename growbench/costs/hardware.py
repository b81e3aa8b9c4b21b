"""The machine that a run is on: what its seconds depend on."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growbench.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run was trained on, and how. Two are equal where their seconds compare. What is not known has its default."""

    device: str = ""  # cpu or cuda
    name: str = ""  # of the processor, or of the GPU
    threads: int = 0
    precision: str = ""  # float32 or bf16
    processes: str = ""  # as "4 replicated x 2 tensor-parallel"; empty: one
    micro_batch: int = 0  # this field and the next two as in growbench.config.schema.Machine
    compile: str = "auto"
    workers: int = field(default=-1, compare=False)
    earlier: str = ""  # the other machines that the run was on before it was resumed here, separated by "; "

    def settings(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.settings().items())


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda as a device. Raises UsageError if there is no such device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no CUDA device; allowed here: auto, cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's, which Linux tells in /proc/cpuinfo."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
