"""What a method can say of its teachers: that one begins, and that it ends. The ledger that listens is out of its reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from growbench.costs.gradients import in_backward
from growbench.errors import UsageError

Listener = Callable[[bool], AbstractContextManager[None]]  # is told whether the teacher's outputs count as stored before

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)  # of this thread: what others do is not heard


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within, `listener` is told of every teacher."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def teacher(precomputed: bool = False) -> Iterator[None]:
    """What Task.teacher does.

    `precomputed`: count its outputs as stored before the run. The costs are then overhead, which is not charged.
    """
    with torch.no_grad(), _heard(precomputed):
        yield


def _heard(precomputed: bool) -> AbstractContextManager[None]:
    listener = _listener.get()
    return listener(precomputed) if listener else nullcontext()


class StoredOutputs(TorchDispatchMode):
    """Within, refuse what cannot have been stored before the run: gradients, and outputs of a model that is being trained."""

    def __init__(self, trained: Iterable[Tensor]) -> None:
        super().__init__()
        self.trained = {_memory(tensor) for tensor in trained}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled() or in_backward():
            raise UsageError("task.teacher(precomputed=True) computes gradients: stored outputs have none")
        tensors = (each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        if any(_memory(each) in self.trained for each in tensors):
            raise UsageError(
                "task.teacher(precomputed=True) reads parameters that are trained: only a frozen model's outputs can be stored"
            )
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    """What tells a tensor's memory from that of others."""
    return tensor.untyped_storage()._cdata
