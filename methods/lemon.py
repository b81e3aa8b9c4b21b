"""LEMON: lossless growth, also to widths that are no multiples of the small model's."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from growbench.method import (
    Axis,
    Maps,
    Method,
    Pad,
    Phase,
    Phases,
    Select,
    Task,
    UsageError,
    Weight,
    Weights,
    deepen,
    map_of,
    tiling,
    tunable,
    widen,
    zero_sum,
)


class Lemon(Method):
    """Grow to any width and depth without changing the function, and split what copies feed unequally.

    Formula: for widths d and d', n = floor(d'/d) and eta = sqrt(n d/d'). The hidden state x becomes [x, ..., x, m, ..., m]: n
    copies, then its mean m (RMSNorm: then zeros). So the new rows of embeddings, and of what writes to the stream, are the
    average of the old rows. Norms: gain * eta, eps * eta^2; they put out [y, ..., y, 0, ..., 0]. The gains of these zeros are
    drawn from U(-1, 1). Heads and FFN neurons are repeated in order. split: a matrix W whose input has c copies is divided
    between them into R_i + (W - sum of R)/c ("projection"), or into R for the last copy and (W - R)/(c - 1) for each other one
    ("complement"). R is `scale` times the initial value of the large model. Columns that face zeros are R. Depth: new layers are
    copies whose attention output and second FFN matrix are zero ("zero") or divided as for W = 0 ("cancel"). One each follows the
    upper layers, and a second one if there are more ("between"), or all follow the last layer ("top").
    Paper: Wang et al., ICLR 2024, sections 4 and 5, and the authors' code, which has the constants.
    Function preserving: where norms come first, in width at every ratio and in depth. Where norms come last, only in width and at
    whole ratios. Other ratios are refused where norms come last, and where the head has a norm behind a nonlinearity
    (ModernBERT): the mean cannot be appended to the input of these norms. New layers "between" the old ones change the
    function where layers have types and an old one comes to a place of another type, as in ModernBERT from 3 layers to 5,
    not to 6; those at the "top" do not.
    Claim: 56.7 % of the computation saved for ViT, 33.2 % for BERT with norms first, the source free.
    Defaults: "projection", scale 1 and "zero", as for ViT in the paper. For BERT the code has "complement" and scale 0.1. In the
    code the new heads and neurons of new layers come from the layer above; here they are copies. CaiT: the new entries of
    LayerScale are the root mean square of the old ones, and the rows in front of it are averaged accordingly. timm cannot store
    an eps: its models get x / eta in the stream in place of eps * eta^2, which is the same function. The paper keeps the peak
    learning rate and decays it faster: here, that is a smaller budget. The optimizer's state is new; state = "grown" needs whole
    ratios.
    Costs beyond training: copying and drawing only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.07999"
    miniature: ClassVar[dict[str, Any]] = {"target.width": 32}
    split: Literal["projection", "complement"] = "projection"
    scale: float = tunable(1.0, 0.1, 2.0)  # of R, in initial values of the large model
    outputs: Literal["zero", "cancel"] = "zero"  # of new layers
    new_layers: Literal["between", "top"] = "between"

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise UsageError(f"scale = {self.scale}: must be at least 0")

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        layers = self.layers(small.layers, large.layers)
        deeper = deepen(task.read(task.source), layers)
        silent = Select(torch.tensor(layers)).further()
        weights = silenced(deeper, silent)
        eta = math.sqrt(large.width // small.width * small.width / large.width)
        refuse_lossy(task, weights, eta)
        eps = task.settings(task.source)
        maps = lossless_maps(task, weights, stream=1.0 if eps else 1 / eta, gain=eta)
        fresh, grown = task.read(task.build()), widen(weights, maps)
        grown = {name: replace(w, value=self.unequal(w, fresh[name].value, maps, small.width)) for name, w in grown.items()}
        if self.outputs == "zero":
            grown = silenced(grown, silent)
        yield Phase(model=task.model_from(grown, settings={key: value * eta**2 for key, value in eps.items()}))

    def layers(self, old: int, new: int) -> list[int]:
        """The old layer that each new one copies; the first of several is the old layer itself."""
        if self.new_layers == "top":
            return [*range(old), *[old - 1] * (new - old)]
        rounds, more = divmod(new - old, max(old, 1))  # a source without layers is refused by deepen
        return [layer for layer in range(old) for _ in range(1 + rounds + (layer >= old - more))]

    def unequal(self, weight: Weight, fresh: Tensor, maps: Maps, width: int) -> Tensor:
        """The grown value, split unequally between the copies of each input, and random where the input is zero."""
        columns = map_of(maps, weight, weight.value.dim() - 1)
        if columns is None or not weight.consumes or weight.role == "norm":
            return weight.value
        index = columns.index if isinstance(columns, Select) else stream_index(width, weight.value.shape[-1])
        noise = fresh * self.scale
        if self.split == "complement":
            counted = Select(index - index.min())  # zeros are the copies of one more unit
            copies = torch.bincount(counted.index)[counted.index]
            is_last = (counted.copy_number() == copies - 1) & (copies > 1)
            moved = (noise - weight.value) * (copies / (copies - 1).clamp(min=1) * is_last).to(noise)
            noise = torch.where((index < 0).to(noise.device), noise, moved)
        return weight.value + zero_sum(noise, index)


@dataclass(frozen=True)
class Scaled:
    """`pad` of values times `factor`. `free`: where it consumes, the rest is as where it produces, not zero."""

    pad: Pad
    factor: float
    free: bool = False

    def produce(self, value: Tensor, dim: int) -> Tensor:
        return self.pad.produce(value * self.factor, dim)

    def consume(self, value: Tensor, dim: int) -> Tensor:
        return self.produce(value / self.pad.copies, dim) if self.free else self.pad.consume(value, dim)

    def kept(self, value: Tensor, dim: int) -> Tensor:
        return self.pad.kept(value, dim)


def lossless_maps(task: Task, weights: Weights, stream: float, gain: float) -> Maps:
    """The maps of width growth. `stream`, `gain`: factors of what writes to the residual stream, and of the norms' gains."""
    small, large = task.source_config, task.target_config
    copies, rest = divmod(large.width, small.width)
    if not rest:
        return tiling(small, large)

    def padded(fill: Callable[[Tensor, int], Tensor] | None = None) -> Pad:
        return Pad(large.width, copies, fill)

    def drawn(value: Tensor, dim: int) -> Tensor:
        return 2 * torch.rand(*value.shape[:dim], rest, generator=task.rng).to(value) - 1

    def mean(value: Tensor, dim: int) -> Tensor:
        return value.mean(dim, keepdim=True)

    maps = tiling(small, large)
    maps |= {
        Axis.WIDTH: Scaled(padded(mean if task.architecture.centred else None), stream),
        (Axis.WIDTH, "norm_gain"): Scaled(padded(drawn), gain, free=True),
        (Axis.WIDTH, "norm_bias"): padded(),
        (Axis.WIDTH, "layer_scale"): padded(root_mean_square),
    }
    for name, scale in weights.items():
        if scale.role == "layer_scale":
            group, branch, _ = name.split(".")
            role = {"attention": "attention_out", "ffn": "ffn_down"}[branch]
            role = f"class_{role}" if group == "class_layers" else role
            maps[Axis.WIDTH, role] = Scaled(padded(mean_behind(scale.value)), stream)
    return maps


def root_mean_square(value: Tensor, dim: int) -> Tensor:
    return value.square().mean(dim, keepdim=True).sqrt()


def mean_behind(scale: Tensor) -> Callable[[Tensor, int], Tensor]:
    """The row that, behind a LayerScale with its root mean square as entry, is the mean of all rows behind the scale (L, d)."""

    def row(value: Tensor, dim: int) -> Tensor:
        each = (scale / root_mean_square(scale, -1)).reshape(*scale.shape, *[1] * (value.dim() - scale.dim()))
        return (value * each).mean(dim, keepdim=True)

    return row


def stream_index(old: int, new: int) -> Tensor:
    """(new,) the old dimension that each one of the grown stream copies; -1: none."""
    index = torch.arange(new) % old
    index[new // old * old :] = -1
    return index


def silenced(weights: Weights, layers: Tensor) -> Weights:
    """The same weights, with zeros in what these layers write to the residual stream."""

    def silent(weight: Weight) -> Tensor:
        is_silent = torch.zeros(len(weight.value), dtype=torch.bool).index_fill(0, layers, True).to(weight.value.device)
        return torch.where(is_silent.reshape(-1, *[1] * (weight.value.dim() - 1)), 0.0, weight.value)

    writes = {name for name, weight in weights.items() if weight.residual and weight.axes[0] is Axis.LAYER}
    return {name: replace(weight, value=silent(weight)) if name in writes else weight for name, weight in weights.items()}


def refuse_lossy(task: Task, weights: Weights, eta: float) -> None:
    """Raise UsageError for a width at which the architecture cannot be grown without loss."""
    old, new = task.source_config.width, task.target_config.width
    reasons = {
        "a norm that follows each sum": task.architecture.norm == "post",
        "the norm behind its head's nonlinearity": any(weight.role == "head_transform" for weight in weights.values()),
    }
    for reason, applies in reasons.items():
        if eta < 1 and applies:
            name = task.architecture.name
            raise UsageError(f"lemon: {name} has {reason}: target.width = {new} must be a multiple of the source's {old}")
