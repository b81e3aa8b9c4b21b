"""What of a grown model is new, and which gradient it gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    def of(cls, old: ModelConfig, new: ModelConfig, layer_map: Sequence[int | None] | None) -> NewParts:
        """`layer_map`: the old layer that each layer copies, or None; its first copy counts as the old layer itself."""
        if layer_map is None:
            return cls(old, new, frozenset(range(old.layers, new.layers)))
        first = {layer: place for place, layer in reversed(list(enumerate(layer_map))) if layer is not None}
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


@dataclass(frozen=True)
class Gradients:
    """The gradient of a grown model."""

    norms: dict[str, tuple[float, float]]  # by canonical weight: of the old entries, and of the new ones
    dead: list[str]  # new layers and new units none of whose weights has a gradient


def gradients(pieces: Iterable[Piece], parts: NewParts) -> Gradients:
    """`pieces`: the gradient of every weight, as Architecture.pieces gives them.

    Units of new layers do not count as dead: where such a layer begins as the identity, its own first step wakes them.
    """
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    layers = dict.fromkeys(sorted(parts.layers), 0.0)
    units: dict[Place, Tensor] = {}  # new ones; the sum over all weights of each
    for piece in pieces:
        row, layer, value = piece
        square = value.detach().cpu().double().square()
        new = parts.mask(piece)
        squares[row.key][0] += float(square[~new].sum())
        squares[row.key][1] += float(square[new].sum())
        if parts.in_new_layer(piece):
            assert layer is not None
            layers[layer] += float(square.sum())
        for side in sides((row, layer, square), parts.new):
            if side.place.layer is None or not parts.in_new_layer(piece):
                sums = side.weights.sum(1)[parts.units(side.axis)]
                units[side.place] = units[side.place] + sums if side.place in units else sums
    norms = {key: (old**0.5, new**0.5) for key, (old, new) in squares.items()}
    dead = [f"layer {layer}" for layer, sum_ in layers.items() if not sum_]
    for place, sums in units.items():
        if count := int((sums == 0).sum()):
            where = "" if place.layer is None else f" of layer {place.layer}"
            dead.append(f"{count} of the {len(sums)} new {place.kind}{where}")
    return Gradients(norms, dead)
