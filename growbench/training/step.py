"""One training step: forward and backward by micro-batches, in the precision and with the compilation that is asked for."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from growbench.config.schema import Machine, Training
from growbench.data import Batch
from growbench.method import Phase
from growbench.training.replicas import Replica

WORTH_COMPILING = 1000  # steps: compiling a model takes as long as hundreds of them


def autocast(training: Training, device: torch.device) -> torch.autocast:
    """The precision of a training's forward passes on this device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision_on(device.type) == "bf16")


@dataclass(frozen=True)
class Step:
    """How the steps of a phase are done."""

    phase: Phase
    live: Replica
    module: nn.Module  # what is called: the live one's module, or that compiled
    training: Training
    machine: Machine
    device: torch.device

    @classmethod
    def of(cls, phase: Phase, live: Replica, training: Training, machine: Machine, device: torch.device, steps: int = 0) -> Step:
        """`steps`: how many there will be; many are worth compiling for."""
        worth = device.type == "cuda" and steps >= WORTH_COMPILING if machine.compile == "auto" else machine.compile == "on"
        if not (worth and steps and live.compiles):
            return cls(phase, live, live.module, training, machine, device)
        torch.compiler.reset()  # Dynamo keeps eight graphs of one `forward`, of all phases together, and then runs it uncompiled
        module = torch.compile(live.module, dynamic=False)
        return cls(phase, live, cast(nn.Module, module), training, machine, device)

    @property
    def compiled(self) -> bool:
        return self.module is not self.live.module

    def backward(self, batch: Batch, step: int) -> Tensor:
        """Add the gradients of the mean loss over `batch`, this process's share, micro-batch by micro-batch. The loss."""
        parts = len(batch.inputs) // self.machine.rows(len(batch.inputs))
        losses = []
        for number in range(parts):
            with nullcontext() if number == parts - 1 else self.live.accumulating():
                with autocast(self.training, self.device):
                    loss = self.phase.loss(self.module, batch.part(number, parts), step)
                (loss / parts).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def update(self) -> None:
        """Clip the gradients, let the optimizer use them, and drop them."""
        self.live.update(self.training.clip)
