"""The units of a model: FFN neurons and heads of each layer, and the units of the residual stream, which all layers share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from growbench.architectures import Row
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis

HEAD_AXES = (Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_COUNT)  # a head's weights are also those of the key-value head that it reads
KINDS = {
    Axis.FFN: "FFN neurons",
    **dict.fromkeys(HEAD_AXES, "attention heads"),
    Axis.WIDTH: "residual units",
    Axis.HEAD_TRANSFORM: "units of the head's transform",
}
SHARED = (Axis.WIDTH, Axis.HEAD_TRANSFORM)  # by all layers

Piece = tuple[Row, int | None, Tensor]  # a weight, its layer and its value, as Architecture.pieces gives them


class Place(NamedTuple):
    """Where units of one kind are: in a layer of a stack of layers, or (None) in the whole model."""

    kind: str
    group: str
    layer: int | None


class Side(NamedTuple):
    """A dimension of a weight that ranges over units."""

    axis: Axis
    place: Place
    outgoing: bool  # the weight consumes the units
    weights: Tensor  # (N, n): those of each unit


def sides(piece: Piece, sizes: ModelConfig) -> Iterator[Side]:
    """The dimensions of a weight that range over units, of a model of these sizes."""
    row, layer, value = piece
    value = value.detach().cpu()
    for dim, axis in enumerate(row.axes):
        if axis not in KINDS:
            continue
        weights = value.movedim(dim, 0).reshape(value.shape[dim], -1)
        if axis in (Axis.HEADS, Axis.KV_HEADS):
            weights = weights.reshape(len(weights) // sizes.head_size, -1)
        if axis is Axis.KV_HEADS:
            weights = weights.repeat_interleave(sizes.heads // sizes.key_value_heads, 0)
        place = Place(KINDS[axis], "", None) if axis in SHARED else Place(KINDS[axis], row.group, layer)
        yield Side(axis, place, row.consumes and dim == len(row.axes) - 1, weights)
