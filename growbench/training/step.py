"""One training step: forward and backward by micro-batches, in the chosen precision, compiled or not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from growbench.config.schema import Machine, Training
from growbench.data import Batch
from growbench.method import Phase
from growbench.method.interface import MethodError
from growbench.method.loss import compiled_loss
from growbench.training.precision import autocast, casting_once
from growbench.training.replicas import Replica

# torch's compiler raises the recursion limit to this and leaves it so: done here, before methods are watched for such changes.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 2000))

WORTH_COMPILING = 1000  # steps; compiling a model takes as long as hundreds of them


@dataclass(frozen=True)
class Step:
    """Does the steps of a phase."""

    phase: Phase
    live: Replica
    training: Training
    machine: Machine
    device: torch.device
    compiled_call: Callable[..., Any] | None = None  # of the model; None: not compiled

    @classmethod
    def of(cls, phase: Phase, live: Replica, training: Training, machine: Machine, device: torch.device, steps: int = 0) -> Step:
        """`steps`: the number of steps to come, which decides whether compiling pays off; 0: do not compile.

        A model that is seen through a view is not compiled: its parameters change places in every step.
        """
        worth = device.type == "cuda" and steps >= WORTH_COMPILING and not machine.graphs
        worth = worth if machine.compile == "auto" else machine.compile == "on"
        if not (worth and steps and live.compiles and phase.view is None):
            return cls(phase, live, training, machine, device)
        torch.compiler.reset()  # Dynamo keeps at most eight graphs of a `forward`, over all phases, and then stops compiling
        return cls(phase, live, training, machine, device, torch.compile(live.model._call_impl, dynamic=False))

    @property
    def compiled(self) -> bool:
        return self.compiled_call is not None

    def backward(self, batch: Batch, step: int) -> Tensor:
        """Add the gradients of the mean loss over `batch`, this process's part of it, by micro-batches. Returns the loss."""
        parts = len(batch.inputs) // self.machine.micro_batch_size(len(batch.inputs))
        losses = []
        with casting_once(self.device):
            for number in range(parts):
                with nullcontext() if number == parts - 1 else self.live.accumulating():
                    with autocast(self.training, self.machine, self.device), self._compiling():
                        loss = self.live.run(partial(self.phase.loss, self.live.model, batch.part(number, parts), step))
                    self._check_loss(loss)
                    (loss / parts).backward()
                losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _check_loss(self, loss: object) -> None:
        """Raise MethodError unless a phase's loss is a scalar tensor."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise MethodError(f"loss returned {found}: must be a scalar tensor, the mean over the labelled positions")

    def update(self) -> None:
        """Clip the gradients, do a step of the optimizer, and clear the gradients."""
        self.live.update(self.training.clip)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Within, calls of the model run compiled, and the loss. No wrapper: it would have another class, without the model's
        methods.
        """
        if self.compiled_call is None:
            yield
            return
        model = self.live.model
        model._compiled_call_impl = self.compiled_call  # nn.Module.compile sets it too, but permanently
        try:
            with compiled_loss():
                yield
        finally:
            model._compiled_call_impl = None
