"""Large tensors that a method draws or fills, made lazy. The entries that are drawn are those that torch draws at once.

torch draws a long tensor from one sequence of random numbers, in groups of 16. So it can be drawn block by block, and any block
again once the generator's state in front of it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from growbench.growth.lazy import Evaluation, Filled, Lazy, Node
from growbench.growth.selections import Indices, Selection, selected

LARGE = 1 << 18  # entries, from which on a tensor is lazy
BLOCK = 1 << 20  # entries that are drawn at a time, a multiple of 16

aten = torch.ops.aten
DRAWS = {aten.randn: Tensor.normal_, aten.rand: Tensor.uniform_}
FILLS = {aten.zeros: 0.0, aten.ones: 1.0}


@dataclass(eq=False)
class Drawn(Node):
    """Random numbers. `before` gives the generator's state in front of them."""

    draw: Callable[..., Tensor]  # fills a tensor: Tensor.normal_ or Tensor.uniform_
    before: Callable[[], Tensor]
    _states: list[Tensor] = field(default_factory=list)  # in front of each block, and behind the last one, as far as known
    _latest: tuple[int, Tensor] | None = None  # the block that was drawn last

    def after(self) -> Tensor:
        """The generator's state behind them."""
        return self._state(self._blocks)

    def compute(self, wanted: Selection, at: Evaluation) -> Tensor:
        """Blocks that hold no wanted entry are drawn only if a state behind them is asked for."""
        rows = {dim: wanted[dim] for dim in (0, 1) if dim in wanted and dim < len(self.shape) - 1}
        shape = [len(rows[dim]) if dim in rows else size for dim, size in enumerate(self.shape)]
        value = torch.empty(shape, dtype=self.meta.dtype)
        depth = max(rows, default=-1) + 1  # dimensions whose selection is read row by row
        row = prod(self.shape[depth:])
        if depth == 0:
            self._read(value.view(-1), 0)
        elif depth == 1:
            self._read_rows(value.view(len(value), -1), rows[0], 0, row)
        else:
            for part, outer in zip(value, rows.get(0, range(self.shape[0])), strict=True):
                self._read_rows(part.view(len(part), -1), rows[1], int(outer) * self.shape[1], row)
        return selected(value, {dim: indices for dim, indices in wanted.items() if dim not in rows})

    def _read_rows(self, into: Tensor, rows: Indices, first: int, length: int) -> None:
        """Rows of this length, numbered from `first` on."""
        if isinstance(rows, range):
            self._read(into.view(-1), (first + rows.start) * length)
            return
        for part, number in zip(into, rows.tolist(), strict=True):
            self._read(part, (first + number) * length)

    def _read(self, into: Tensor, start: int) -> None:
        """Consecutive entries."""
        done = 0
        while done < len(into):
            number = min((start + done) // BLOCK, self._blocks - 1)
            inside = start + done - number * BLOCK
            part = self._block(number)[inside : inside + len(into) - done]
            into[done : done + len(part)] = part
            done += len(part)

    @property
    def _blocks(self) -> int:
        """The last one takes what is left behind the others, so that it is never shorter than a group."""
        return max(1, self.shape.numel() // BLOCK)

    def _block(self, number: int) -> Tensor:
        if self._latest is None or self._latest[0] != number:
            generator = torch.Generator()
            generator.set_state(self._state(number))
            length = BLOCK if number < self._blocks - 1 else self.shape.numel() - number * BLOCK
            self._latest = number, self.draw(torch.empty(length, dtype=self.meta.dtype), generator=generator)
            if number == len(self._states) - 1:
                self._states.append(generator.get_state())
        return self._latest[1]

    def _state(self, number: int) -> Tensor:
        """In front of a block."""
        if not self._states:
            self._states.append(self.before())
        while len(self._states) <= number:
            self._block(len(self._states) - 1)
        return self._states[number]


class _LargeAreLazy(TorchDispatchMode):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.latest: Drawn | None = None  # whose entries the generator has not gone past yet

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet, generator = function.overloadpacket, kwargs.get("generator")
        ours = generator is not None and generator._cdata == self.generator._cdata  # type: ignore[attr-defined]  # wrapped anew in each call
        if packet in FILLS and prod(args[0]) >= LARGE:
            return Lazy(Filled(_meta(function, args, kwargs), FILLS[packet]))
        if packet in DRAWS and ours and prod(args[0]) >= LARGE:
            before = self.latest.after if self.latest else self.generator.get_state().clone
            self.latest = Drawn(_meta(aten.empty.memory_format, args[:1], {"dtype": kwargs.get("dtype")}), DRAWS[packet], before)
            return Lazy(self.latest)
        if ours and self.latest:
            self.generator.set_state(self.latest.after())
            self.latest = None
        return function(*args, **kwargs)


def _meta(function: Any, args: Any, kwargs: Any) -> Tensor:
    value: Tensor = function(*args, **{**kwargs, "device": "meta"})
    return value


@contextmanager
def large_are_lazy(generator: torch.Generator) -> Iterator[None]:
    """Within it, large tensors that are filled with zeros or ones, or drawn from this generator, are lazy.

    What is drawn behind a lazy one waits for it.
    """
    with _LargeAreLazy(generator):
        yield
