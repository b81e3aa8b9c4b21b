"""The machine that a run is on: what its seconds depend on."""

from __future__ import annotations

import dataclasses
import platform
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from growbench.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run was trained on, and how. Seconds are comparable if these are equal. An unknown field has its default."""

    device: str = ""  # cpu or cuda
    name: str = ""  # of the processor, or of the GPU
    threads: int = 0
    precision: str = ""  # float32 or bf16
    processes: str = ""  # as "4 replicated x 2 tensor-parallel"; empty: one
    micro_batch: int = 0  # this field and the next three as in growbench.config.schema.Machine
    compile: str = "auto"
    workers: int = field(default=-1, compare=False)
    graphs: bool = False
    stepping: str = field(default="", compare=False)  # of the CPU, as "25.17.1": results of equal ones are bit-identical
    at_once: int = 1  # runs on this machine at the same time, as `growbench run --workers` trains them
    earlier: str = ""  # the other machines that the run was on before it was resumed here, separated by "; "

    def settings(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def shared(self) -> bool:
        """Whether other runs took a part of the machine, so that seconds say little about one run."""
        return self.at_once > 1 or "at_once" in self.earlier

    @property
    def precisions(self) -> set[str]:
        """What the run was trained in, on the earlier machines too."""
        return {self.precision, *re.findall(r"\bprecision (\w+)", self.earlier)} - {""}

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
    """The GPU's name, or the processor's, which Linux lists in /proc/cpuinfo."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def fast_precision(device: str) -> Literal["float32", "bf16"]:
    """bf16 on a type of device that multiplies matrices in it: a GPU, or a CPU with AVX512-BF16 or AMX; float32 on others."""
    in_bf16 = device == "cuda" or not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo().get("flags", "").split())
    return "bf16" if in_bf16 else "float32"


def cpu_stepping() -> str:
    """The CPU's family, model and stepping. The name may leave them out, but libraries choose their code by them."""
    return ".".join(filter(None, map(_cpuinfo().get, ("cpu family", "model", "stepping"))))


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo."""
    file = Path("/proc/cpuinfo")
    first = file.read_text().partition("\n\n")[0] if file.is_file() else ""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
