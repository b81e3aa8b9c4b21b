"""Canonical weights, and the pure functions that grow them: widen and deepen.

A canonical weight is a named tensor with an axis for each dimension. Weights that repeat in every layer are one tensor with a
leading LAYER axis: `layers.attention.query.weight` is (LAYER, HEADS, WIDTH). So a growth operator is written once, runs on every
architecture, and grows all layers in one product. Matrices are (out, in). All functions are differentiable, so that a learned
operator is the same code with learnable maps.

Shape legend: L layers, N new size of an axis, n old size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.carried import Rule, carry
from growbench.growth.extended import Extended
from growbench.growth.layer_types import LayerTypes, within_types


class Axis(Enum):
    """What a dimension of a weight ranges over. LAYER and the axes in WIDTHS grow; the others keep their size."""

    LAYER = "layer"
    WIDTH = "width"  # the residual stream, which all layers share
    HEADS = "heads"  # heads x head size
    KV_HEADS = "kv_heads"  # key-value heads x head size; read by the attention itself
    HEAD_COUNT = "head_count"  # heads, if attention mixes them (talking heads)
    HEAD_SIZE = "head_size"  # the dimensions of one head, which all heads of a layer share
    FFN = "ffn"
    HEAD_TRANSFORM = "head_transform"  # between a masked model's head transform and its untied decoder
    CLASS_LAYER = "class_layer"  # layers of class attention
    VOCAB = "vocab"  # tokens, or classes of images
    POSITION = "position"
    TYPE = "type"
    REGISTER = "register"  # tokens that an image model adds to the patches
    PATCH = "patch"  # colours, rows or columns of an image patch
    SINGLE = "single"  # of length one


WIDTHS = (Axis.WIDTH, Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_COUNT, Axis.FFN, Axis.HEAD_TRANSFORM)


def axis_length(axis: Axis, sizes: ModelConfig) -> int:
    """The length of a growing axis, or of a head, in a model of these sizes."""
    return {
        Axis.LAYER: sizes.layers,
        Axis.WIDTH: sizes.width,
        Axis.HEADS: sizes.heads * sizes.head_size,
        Axis.KV_HEADS: sizes.key_value_heads * sizes.head_size,
        Axis.HEAD_COUNT: sizes.heads,
        Axis.HEAD_SIZE: sizes.head_size,
        Axis.FFN: sizes.ffn,
        Axis.HEAD_TRANSFORM: sizes.width,
    }[axis]


@dataclass(frozen=True)
class Weight:
    """A canonical weight. `role` is its function in the model: query, ffn_up, norm and so on.

    `consumes`: the last axis is the input side of a product, so growing it must preserve the product's sum. Other axes are
    output sides. A norm before a tied decoder consumes too, because the tied matrix cannot be divided.
    `residual`: the weight writes to the residual stream (attention output, second FFN matrix, and their biases).
    `subrole`: a finer name where a role has several parts: norm_gain and norm_bias of the role norm.
    `width_power`: the model multiplies it by this power of the width, for which growing the width must make up.
    `layer_types`: of a weight that repeats in every layer, the types of the layers of a model with so many; None: all are alike.
    """

    value: Tensor
    axes: tuple[Axis, ...]
    role: str
    consumes: bool = False
    residual: bool = False
    subrole: str = ""
    width_power: float = 0.0
    layer_types: LayerTypes | None = field(default=None, compare=False, repr=False)

    @property
    def roles(self) -> tuple[str, ...]:
        """The names that maps are looked up by, the finest first."""
        return (self.subrole, self.role) if self.subrole else (self.role,)


Weights = dict[str, Weight]


class AxisMap(Protocol):
    """How an axis grows. Along dimension `dim` of a weight, `produce` grows an output side, `consume` an input side.

    A map may also say how what an optimizer keeps grows. `gradient` grows the gradient of an output side; that of an input side
    grows by `produce`. `kept` keeps what the old units have, on either side, and gives the new ones zeros.
    """

    def produce(self, value: Tensor, dim: int) -> Tensor: ...

    def consume(self, value: Tensor, dim: int) -> Tensor: ...


@dataclass(frozen=True)
class Select:
    """Unit i of the grown axis copies unit `index[i]` of the old one. Consumers are divided by the number of copies.

    This is the function-preserving map of Net2Net and bert2BERT (FPI). All copies are divided, including the first.
    `divided` = False: consumers are copied as producers are, so that each copy of the input counts in full.
    """

    index: Tensor  # (N,) int64
    divided: bool = True

    def produce(self, value: Tensor, dim: int) -> Tensor:
        return value.index_select(dim, self.index.to(value.device))

    def consume(self, value: Tensor, dim: int) -> Tensor:
        if not self.divided:
            return self.produce(value, dim)
        copies = torch.bincount(self.index)[self.index].to(value)
        return self.produce(value, dim) / copies.reshape([-1] + [1] * (value.dim() - 1 - dim))

    def gradient(self, value: Tensor, dim: int) -> Tensor:
        """All copies together have the gradient of the old unit."""
        return replace(self, divided=True).consume(value, dim)

    def kept(self, value: Tensor, dim: int) -> Tensor:
        """The first copy of a unit is the old one."""
        first = (self.copy_number() == 0).to(value)
        return self.produce(value, dim) * first.reshape([-1] + [1] * (value.dim() - 1 - dim))

    def copy_number(self) -> Tensor:
        """(N,) for each new unit, how many new units before it copy the same old one."""
        order = self.index.argsort(stable=True)
        counts = torch.bincount(self.index)
        first = (counts.cumsum(0) - counts)[self.index[order]]  # where the copies of its old unit begin in that order
        return torch.empty_like(order).scatter(0, order, torch.arange(len(order)) - first)

    def further(self) -> Tensor:
        """(k,) indices of the new units that are a second or later copy of their old unit."""
        return (self.copy_number() > 0).nonzero().flatten()


@dataclass(frozen=True)
class Pad:
    """Whole copies of the old units, then units that are no copies: zeros, or what `rest` makes of the old ones.

    Consumers are divided by `copies`. Their columns that face the rest are zero.
    """

    length: int  # the new one
    copies: int = 1
    rest: Callable[[Tensor, int], Tensor] | None = None  # (old value, dim) -> the rest, or one entry for all of it

    def produce(self, value: Tensor, dim: int) -> Tensor:
        shape = list(value.shape)
        shape[dim] = self.length - self.copies * shape[dim]
        rest = value.new_zeros(shape) if self.rest is None else self.rest(value, dim).expand(shape)
        return torch.cat([value] * self.copies + [rest], dim)

    def consume(self, value: Tensor, dim: int) -> Tensor:
        return replace(self, rest=None).produce(value / self.copies, dim)

    def gradient(self, value: Tensor, dim: int) -> Tensor:
        """Nothing consumes the rest, so it has none."""
        return self.consume(value, dim)

    def kept(self, value: Tensor, dim: int) -> Tensor:
        return Pad(self.length).produce(value, dim)


@dataclass(frozen=True)
class Extend:
    """The linear map B = [I; M]: old units stay, and new units are M times the old ones. M is (N-n, n) or (L, N-n, n).

    `divided`: consumers use B divided by its column sums, which preserves the product's sum (Net2Net's division).
    """

    matrix: Tensor
    divided: bool = False

    def produce(self, value: Tensor, dim: int) -> Tensor:
        matrix = self.matrix.to(value)
        if matrix.shape[-1] != value.shape[dim]:
            raise UsageError(
                f"a learned map from {matrix.shape[-1]} units cannot grow {value.shape[dim]}: another role needs its own"
            )
        if dim == value.dim() - 1:
            batch = matrix.reshape(-1, *matrix.shape[-2:])
            blocks = value.reshape(len(batch), -1, value.shape[-1])
            return cast(Tensor, Extended.apply(blocks, batch, -1)).reshape(*value.shape[:-1], -1)
        before, after = value.shape[:dim], value.shape[dim + 1 :]
        blocks = value.reshape(before.numel(), value.shape[dim], after.numel())
        grown = cast(Tensor, Extended.apply(blocks, matrix.expand(len(blocks), -1, -1), -2))
        return grown.reshape(*before, -1, *after)

    def consume(self, value: Tensor, dim: int) -> Tensor:
        """`dim` must be the last dimension."""
        if not self.divided:
            return self.produce(value, dim)
        copies = (1 + self.matrix.sum(-2)).to(value)  # (n,) or (L, n)
        between = value.dim() - copies.dim()
        return self.produce(value / (copies if copies.dim() == 1 else copies.reshape(-1, *[1] * between, copies.shape[-1])), dim)


# The map of each growing axis. A map for (axis, subrole) takes precedence over one for (axis, role), that one over the axis's.
Maps = dict[Axis | tuple[Axis, str], AxisMap]


def widen(weights: Weights, maps: Maps) -> Weights:
    """Grow every dimension whose axis has a map: the last dimension as an input side if the weight consumes it."""

    def grown(weight: Weight) -> Tensor:
        value = weight.value
        for dim in sorted(range(value.dim()), key=lambda dim: -weight.value.shape[dim]):  # longest first, for smaller products
            axis_map = map_of(maps, weight, dim)
            if axis_map is not None:
                consuming = weight.consumes and dim == len(weight.axes) - 1
                value = axis_map.consume(value, dim) if consuming else axis_map.produce(value, dim)
        return value if (factor := rescaled(weight, value)) == 1 else value * factor

    def state(weight: Weight, entry: Tensor, rule: Rule) -> Tensor | None:
        for dim in range(entry.dim()):
            if (axis_map := map_of(maps, weight, dim)) is not None:
                if not hasattr(axis_map, "kept" if rule == "kept" else "gradient"):
                    return None
                consuming = weight.consumes and dim == len(weight.axes) - 1
                how: Any = axis_map
                entry = (how.kept if rule == "kept" else how.produce if consuming else how.gradient)(entry, dim)
        return entry / rescaled(weight, entry)

    return {
        name: replace(weight, value=carry(weight.value, grown(weight), partial(state, weight), "a map without a rule"))
        for name, weight in weights.items()
    }


def rescaled(weight: Weight, grown: Tensor) -> float:
    """The factor by which a weight that the model multiplies by a power of the width becomes smaller as the width grows."""
    if not weight.width_power:
        return 1.0
    dim = weight.axes.index(Axis.WIDTH)
    return float((weight.value.shape[dim] / grown.shape[dim]) ** weight.width_power)


def map_of(maps: Maps, weight: Weight, dim: int) -> AxisMap | None:
    """The map that grows a dimension of a weight; None if it does not grow."""
    axis = weight.axes[dim]
    return next((maps[axis, role] for role in weight.roles if (axis, role) in maps), maps.get(axis))


def apart(weights: Weights, maps: Maps) -> Weights:
    """Keep the copies apart in every matrix that `widen` has grown by Select on both sides: W becomes [[W, 0], [0, W]].

    With R copies of each output and C of each input, and g = gcd(R, C), copy r of an output reads the copies c of its inputs
    with c = r mod g. Every unit of an axis must have as many copies as the others.
    """

    def parted(weight: Weight) -> Tensor:
        if not weight.consumes or weight.value.dim() < 2:
            return weight.value
        rows, columns = (map_of(maps, weight, dim) for dim in (weight.value.dim() - 2, weight.value.dim() - 1))
        if not isinstance(rows, Select) or not isinstance(columns, Select):
            return weight.value
        out, into = rows.copy_number(), columns.copy_number()
        blocks = math.gcd(int(out.max()) + 1, int(into.max()) + 1)
        mask = (out[:, None] - into) % blocks == 0
        value = weight.value * (mask.to(weight.value) * (blocks if columns.divided else 1))
        return carry(weight.value, value, lambda entry, rule: entry, "apart")  # the zeros have gradients too

    return {name: replace(weight, value=parted(weight)) for name, weight in weights.items()}


def refuse_no_layers(layers: int) -> None:
    """Raise UsageError for a model without layers, as a source may be: embeddings and head."""
    if not layers:
        raise UsageError("source.layers = 0: there is no layer to copy; the method dpt adds new ones")


LayerMap = Sequence[int] | Tensor | Callable[[str, Weight], Tensor]


def deepen(weights: Weights, layer_map: LayerMap, axis: Axis = Axis.LAYER) -> Weights:
    """Grow the axis (LAYER or CLASS_LAYER) of every weight that has it.

    `layer_map`: the old layer that each new one copies, or a matrix (new layers, old layers) of mixing weights, or a function
    from a weight's name and the weight to its new value.

    Where layers have types, a new layer copies the old one of its own type that is nearest to the one that the map names. A
    matrix mixes layers as it is, also those of different types; a function does what it does.

    Raises UsageError if there are no layers to copy, or none of a type that a new layer has.
    """
    refuse_no_layers(axis is not Axis.LAYER or any(axis in weight.axes for weight in weights.values()))
    layers = [] if callable(layer_map) or isinstance(layer_map, Tensor) else _resolved(layer_map, weights, axis)

    def grown(name: str, weight: Weight) -> Tensor:
        if callable(layer_map):
            return layer_map(name, weight)
        if isinstance(layer_map, Tensor):
            return torch.tensordot(layer_map.to(weight.value), weight.value, 1)
        value = weight.value.index_select(0, torch.tensor(layers, device=weight.value.device))
        return carry(weight.value, value, state, "deepen")

    def state(entry: Tensor, rule: Rule) -> Tensor:
        """Each copy of a layer has its state; where old layers keep theirs, the first copy is the old layer."""
        copies = entry.index_select(0, torch.tensor(layers, device=entry.device))
        if rule == "kept":
            copies[[place for place, layer in enumerate(layers) if layer in layers[:place]]] = 0
        return copies

    return {
        name: replace(weight, value=grown(name, weight)) if axis in weight.axes else weight for name, weight in weights.items()
    }


def _resolved(layer_map: Sequence[int], weights: Weights, axis: Axis) -> list[int]:
    """The old layer that each new one copies, within its type."""
    layers = [int(layer) for layer in layer_map]
    typed = next((weight for weight in weights.values() if weight.layer_types and weight.axes[0] is axis), None)
    return within_types(layers, len(typed.value), typed.layer_types) if typed and typed.layer_types else layers
