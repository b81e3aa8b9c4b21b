"""What of a grown model is new, and which gradient it gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from growbench.architectures import Row
from growbench.architectures.units import HEAD_AXES, Piece, Place, sides
from growbench.config.schema import ModelConfig
from growbench.growth.weights import WIDTHS, Axis, axis_length

CHUNK = 1 << 24  # entries that are added up at a time


@dataclass(frozen=True)
class NewParts:
    """The layers and units of a model of size `new` that one of size `old` did not have: those beyond its own on every axis."""

    old: ModelConfig
    new: ModelConfig
    layers: frozenset[int]  # the new ones

    @classmethod
    def of(cls, old: ModelConfig, new: ModelConfig, origins: Sequence[Sequence[int]]) -> NewParts:
        """`origins`: the old layers that each layer is made of; the first copy of one is the old one. Empty: not known."""
        if not origins:
            return cls(old, new, frozenset(range(old.layers, new.layers)))
        first = {of[0]: place for place, of in reversed(list(enumerate(origins))) if len(of) == 1}
        return cls(old, new, frozenset(range(new.layers)) - frozenset(first.values()))

    @property
    def heads_first(self) -> bool:
        """Whether the old heads come first: not where heads have another size, or groups that share keys another number."""
        groups = {sizes.heads // sizes.key_value_heads for sizes in (self.old, self.new)}
        return self.old.head_size == self.new.head_size and len(groups) == 1

    def blocks(self, piece: Piece) -> Iterator[tuple[bool, Tensor]]:
        """The entries of a weight in blocks, and whether these are new. Where old heads are not first, no head is new."""
        row, _, value = piece
        if self.in_new_layer(piece):
            yield True, value
            return
        for dim, axis in enumerate(row.axes):
            if axis in WIDTHS and (self.heads_first or axis not in HEAD_AXES):
                before = axis_length(axis, self.old)
                yield True, value.narrow(dim, before, value.shape[dim] - before)
                value = value.narrow(dim, 0, before)
        yield False, value

    def in_new_layer(self, piece: Piece) -> bool:
        row, layer, _ = piece
        return row.group == "layers" and layer in self.layers

    def units(self, axis: Axis) -> slice:
        """The new ones among an axis's units, heads counted whole."""
        if axis in HEAD_AXES:
            return slice(self.old.heads if self.heads_first else self.new.heads, None)
        return slice(axis_length(axis, self.old), None)


class Norms(NamedTuple):
    """Of the gradient of one canonical weight, the root mean square over the inputs. None: it has no such entries."""

    old: float | None
    new: float | None


@dataclass(frozen=True)
class Gradients:
    """The gradients of a grown model, on so many sequences or images."""

    inputs: int
    norms: dict[str, Norms]  # by canonical weight
    dead: list[str]  # new layers and new units none of whose weights has a gradient


class GradientCount:
    """What is known of the gradients on some inputs, weight by weight, so that no two weights' gradients need be there at once.

    Units of new layers do not count as dead: where such a layer begins as the identity, its own first step wakes them.
    """

    def __init__(self, rows: Iterable[Row], parts: NewParts) -> None:
        """`rows`: of all weights, in the order in which they are shown."""
        self._parts = parts
        self._squares = {row.key: Norms(None, None) for row in rows}
        self._layers = dict.fromkeys(sorted(parts.layers), 0.0)
        self._units: dict[Place, Tensor] = {}  # new ones; the sum over all weights of each

    def add(self, piece: Piece) -> None:
        """The squares of the gradient of one weight, once for each input."""
        row, layer, square = piece[0], piece[1], piece[2].cpu()
        piece = row, layer, square
        for is_new, block in self._parts.blocks(piece):
            before = self._squares[row.key]
            self._squares[row.key] = before._replace(**{"new" if is_new else "old": _more(before[is_new], block)})
        if self._parts.in_new_layer(piece):
            assert layer is not None
            self._layers[layer] += _sum(square)
        for side in sides(piece, self._parts.new):
            if side.place.layer is None or not self._parts.in_new_layer(piece):
                sums = side.weights.sum(1)[self._parts.units(side.axis)]
                self._units[side.place] = self._units[side.place] + sums if side.place in self._units else sums

    def found(self, inputs: int) -> Gradients:
        """`inputs`: so many were added."""
        norms = {
            key: Norms(*(part if part is None else (part / inputs) ** 0.5 for part in both))
            for key, both in self._squares.items()
        }
        dead = [f"layer {layer}" for layer, sum_ in self._layers.items() if not sum_]
        for place, sums in self._units.items():
            if count := int((sums == 0).sum()):
                where = "" if place.layer is None else f" of layer {place.layer}"
                dead.append(f"{count} of the {len(sums)} new {place.kind}{where}")
        return Gradients(inputs, norms, dead)


def _more(total: float | None, entries: Tensor) -> float | None:
    return (total or 0.0) + _sum(entries) if entries.numel() else total


def _sum(entries: Tensor) -> float:
    """In float64, which torch makes a copy in: of a large embedding that would not fit beside the rest."""
    return sum(float(part.sum(dtype=torch.float64)) for part in entries.split(max(1, CHUNK // max(1, entries[0].numel()))))
