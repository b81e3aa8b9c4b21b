"""What of a grown model is new, and which gradient it gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from growbench.architectures.units import HEAD_AXES, Piece, Place, sides
from growbench.config.schema import ModelConfig
from growbench.growth.weights import WIDTHS, Axis, axis_length


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

    def mask(self, piece: Piece) -> Tensor:
        """True for the entries of a weight that the old model did not have. Where old heads are not first, no head is new."""
        row, _, value = piece
        where = torch.full(value.shape, self.in_new_layer(piece))
        for dim, axis in enumerate(row.axes):
            if axis in WIDTHS and (self.heads_first or axis not in HEAD_AXES):
                before = axis_length(axis, self.old)
                where.narrow(dim, before, where.shape[dim] - before).fill_(True)
        return where

    def in_new_layer(self, piece: Piece) -> bool:
        row, layer, _ = piece
        return row.group == "layers" and layer in self.layers

    def units(self, axis: Axis) -> slice:
        """The new ones among an axis's units, heads counted whole."""
        if axis in HEAD_AXES:
            return slice(self.old.heads if self.heads_first else self.new.heads, None)
        return slice(axis_length(axis, self.old), None)


class Norms(NamedTuple):
    """Of the gradient of one canonical weight. None: it has no such entries."""

    old: float | None
    new: float | None


@dataclass(frozen=True)
class Gradients:
    """The gradient of a grown model."""

    norms: dict[str, Norms]  # by canonical weight
    dead: list[str]  # new layers and new units none of whose weights has a gradient


def gradients(pieces: Iterable[Piece], parts: NewParts) -> Gradients:
    """`pieces`: the gradient of every weight, as Architecture.pieces gives them.

    Units of new layers do not count as dead: where such a layer begins as the identity, its own first step wakes them.
    """
    squares: dict[str, Norms] = defaultdict(lambda: Norms(None, None))
    layers = dict.fromkeys(sorted(parts.layers), 0.0)
    units: dict[Place, Tensor] = {}  # new ones; the sum over all weights of each
    for piece in pieces:
        row, layer, value = piece
        square = value.detach().cpu().square()  # of a large embedding a copy in float64 would not fit beside the rest
        new = parts.mask(piece)
        before = squares[row.key]
        squares[row.key] = Norms(_more(before.old, square[~new]), _more(before.new, square[new]))
        if parts.in_new_layer(piece):
            assert layer is not None
            layers[layer] += float(square.sum(dtype=torch.float64))
        for side in sides((row, layer, square), parts.new):
            if side.place.layer is None or not parts.in_new_layer(piece):
                sums = side.weights.sum(1)[parts.units(side.axis)]
                units[side.place] = units[side.place] + sums if side.place in units else sums
    norms = {key: Norms(*(part if part is None else part**0.5 for part in both)) for key, both in squares.items()}
    dead = [f"layer {layer}" for layer, sum_ in layers.items() if not sum_]
    for place, sums in units.items():
        if count := int((sums == 0).sum()):
            where = "" if place.layer is None else f" of layer {place.layer}"
            dead.append(f"{count} of the {len(sums)} new {place.kind}{where}")
    return Gradients(norms, dead)


def _more(total: float | None, entries: Tensor) -> float | None:
    return (total or 0.0) + float(entries.sum(dtype=torch.float64)) if len(entries) else total
