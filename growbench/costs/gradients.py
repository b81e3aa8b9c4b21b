"""Finds gradients that are computed where nothing is charged: outside of the losses of phases, and of growth."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import growbench

LIBRARIES = tuple(str(Path(package.__path__[0])) for package in (torch, growbench))  # whose code is nobody's method


def in_backward() -> bool:
    """Whether an operation runs in a backward pass."""
    return torch._C._current_autograd_node() is not None


class GradientWatch:
    """Notes the first operation whose inputs autograd saves for a backward pass, except where that is allowed.

    It hears of this thread only, and changes no result.
    """

    def __init__(self) -> None:
        self.found: str | None = None  # where that operation was called; None: there was none
        self._hooks: saved_tensors_hooks | None = None  # while watching

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the `with` block."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Do not watch the `with` block: what it computes is charged."""
        watched = self._hooks is not None
        if watched:
            self._end()
        try:
            yield
        finally:
            if watched:
                self._begin()

    @contextmanager
    def no_backward(self) -> Iterator[None]:
        """Watch the `with` block for backward passes too, of losses that were computed before it."""
        with _BackwardWatch(self):
            yield

    def note(self) -> None:
        """Gradients are computed here."""
        if self.found is None:
            self.found = _caller()

    def _begin(self) -> None:
        self._hooks = saved_tensors_hooks(self._saved, _unchanged)
        self._hooks.__enter__()

    def _end(self) -> None:
        assert self._hooks is not None
        self._hooks.__exit__()
        self._hooks = None

    def _saved(self, tensor: Tensor) -> Tensor:
        self.note()
        return tensor


class _BackwardWatch(TorchDispatchMode):
    def __init__(self, watch: GradientWatch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if in_backward():
            self.watch.note()
        return func(*args, **(kwargs or {}))


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _caller() -> str:
    """`mine.py, line 12`: the innermost call that is made neither by torch nor by growbench; empty if there is none."""
    frames = [each for each in traceback.extract_stack() if not each.filename.startswith(LIBRARIES)]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
