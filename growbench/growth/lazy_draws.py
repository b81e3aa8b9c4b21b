"""Large tensors that a method draws or fills, made lazy. The entries that are drawn are those that torch draws at once.

torch draws a long tensor from one sequence of random numbers, in groups of 16. So it can be drawn block by block, and any block
again once the generator's state in front of it is known. That holds for the weights of a freshly initialised model, too. A thread
draws the next block while one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from growbench.growth.lazy import Evaluation, Filled, Lazy, Node
from growbench.growth.selections import Indices, Selection, selected

LARGE = 1 << 18  # entries, from which on a tensor is lazy
BLOCK = 1 << 20  # entries that are drawn at a time, a multiple of 16
KEPT = 8  # blocks that were used last, of all that come from one generator

aten = torch.ops.aten
DRAWS = {aten.randn: Tensor.normal_, aten.rand: Tensor.uniform_}
INTO = {aten.normal_: Tensor.normal_, aten.uniform_: Tensor.uniform_}  # a tensor that is there
FILLS = {aten.zeros: 0.0, aten.ones: 1.0, aten.empty: 0.0}
MARK = torch.Generator().manual_seed(0x10CA7E).get_state()  # of a generator that lazy draws wait for; seeding it takes it away


@dataclass
class Sequence:
    """What is drawn from one generator."""

    generator: torch.Generator
    latest: Drawn | None = None  # whose entries the generator has not gone past yet
    start: Tensor = field(init=False)  # the generator's state in front of all that waits
    rooms: dict[tuple[Drawn, int], Room] = field(default_factory=dict)  # of the blocks that were used last, by their number
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def draw(self, meta: Tensor, fill: Callable[..., Tensor]) -> Drawn:
        """The next entries, not drawn yet."""
        before: Drawn | Tensor | None = self._waiting()
        if before is None:
            before = self.start = self.generator.get_state()
        self.latest = Drawn(meta, fill, self, before)
        self.generator.set_state(MARK)
        return self.latest

    def catch_up(self) -> None:
        """Put the generator behind all that was drawn."""
        if latest := self._waiting():
            self.generator.set_state(latest.after())

    def leave(self) -> None:
        """Give the generator a state of its own again."""
        if self._waiting():
            self.generator.set_state(self.start)

    def _waiting(self) -> Drawn | None:
        """What the generator has not gone past yet: nothing, once it was seeded anew."""
        return self.latest if torch.equal(self.generator.get_state(), MARK) else None

    def used(self, drawn: Drawn, number: int) -> Room:
        """The room of a block, which from now on is the one that was used last."""
        self.rooms[drawn, number] = self.rooms.pop((drawn, number))
        return self.rooms[drawn, number]

    def begin(self, drawn: Drawn, number: int, fill: Callable[[Tensor], Tensor]) -> Room:
        """Have a block filled, in the memory of the one unused for longest: freed memory would be divided among what is kept."""
        dtype, memory = drawn.meta.dtype, None
        if len(self.rooms) == KEPT:
            memory = self.rooms.pop(next(iter(self.rooms))).memory
        if memory is None or memory.dtype != dtype:
            memory = torch.empty(2 * BLOCK, dtype=dtype)  # no block is longer
        self.rooms[drawn, number] = Room(memory, self.thread.submit(fill, memory))
        return self.rooms[drawn, number]


@dataclass(frozen=True)
class Room:
    """Memory for a block, and the block once it is drawn."""

    memory: Tensor
    block: Future[Tensor]


@dataclass(eq=False)
class Drawn(Node):
    """Random numbers. `before`: what was drawn in front of them, or the generator's state there."""

    fill: Callable[..., Tensor]  # a tensor: Tensor.normal_ or Tensor.uniform_, with their parameters
    sequence: Sequence
    before: Drawn | Tensor
    _states: list[Tensor] = field(default_factory=list)  # in front of each block, and behind the last one, as far as known

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
        """Entries of one block. The next block is begun, if it has not been drawn yet."""
        block = self._begun(number).block.result()
        is_latest = number + 2 == len(self._states)  # no state behind the next one is known
        if is_latest and number + 1 < self._blocks:
            self._begun(number + 1)
        return block

    def _begun(self, number: int) -> Room:
        if (self, number) in self.sequence.rooms:
            return self.sequence.used(self, number)
        length = BLOCK if number < self._blocks - 1 else self.shape.numel() - number * BLOCK
        generator = torch.Generator()
        generator.set_state(self._state(number))

        def fill(memory: Tensor) -> Tensor:
            block = self.fill(memory[:length], generator=generator)
            if number == len(self._states) - 1:
                self._states.append(generator.get_state())
            return block

        return self.sequence.begin(self, number, fill)

    def _state(self, number: int) -> Tensor:
        """In front of a block."""
        if not self._states:
            self._states.append(self._begin())
        while len(self._states) <= number:
            self._block(len(self._states) - 1)
        return self._states[number]

    def _begin(self) -> Tensor:
        """The state in front of them: without recursion, since a model is drawn in a thousand steps."""
        waiting, known = [], self.before
        while isinstance(known, Drawn) and not known._states:
            waiting.append(known)
            known = known.before
        state = known.after() if isinstance(known, Drawn) else known
        for each in reversed(waiting):
            each._states.append(state)
            state = each.after()
        return state


class _LargeAreLazy(TorchDispatchMode):
    def __init__(self, generators: tuple[torch.Generator, ...]) -> None:
        super().__init__()
        self.sequences = {generator._cdata: Sequence(generator) for generator in generators}  # type: ignore[attr-defined]  # wrapped anew in each call

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = function.overloadpacket
        if packet in FILLS and prod(args[0]) >= LARGE:
            return Lazy(Filled(_meta(function, args, kwargs), FILLS[packet]))
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **kwargs)
        generator: Any = kwargs.get("generator") or torch.default_generator
        sequence = self.sequences.get(generator._cdata)
        if sequence is None:
            return function(*args, **kwargs)
        if packet in DRAWS and prod(args[0]) >= LARGE:
            meta = _meta(aten.empty.memory_format, args[:1], {"dtype": kwargs.get("dtype")})
            return Lazy(sequence.draw(meta, DRAWS[packet]))
        if packet in INTO and isinstance(args[0], Lazy) and args[0].is_whole() and args[0].is_contiguous():
            (_, *names), (into, *values) = (each.name for each in function._schema.arguments), args
            parameters = dict(zip(names, values, strict=False)) | kwargs | {"generator": None}
            into.replace(sequence.draw(into.node.meta, partial(INTO[packet], **parameters)))
            return into
        sequence.catch_up()
        return function(*args, **kwargs)


def _meta(function: Any, args: Any, kwargs: Any) -> Tensor:
    value: Tensor = function(*args, **{**kwargs, "device": "meta"})
    return value


@contextmanager
def large_are_lazy(generator: torch.Generator) -> Iterator[None]:
    """Within it, large tensors that are filled, or drawn from this generator or torch's own, are lazy: new models, too.

    What is drawn behind a lazy one waits for it.
    """
    mode = _LargeAreLazy((generator, torch.default_generator))
    try:
        with mode:
            yield
    finally:
        for sequence in mode.sequences.values():
            sequence.leave()
