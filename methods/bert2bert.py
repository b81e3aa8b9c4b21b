"""bert2BERT: function-preserving and advanced width expansion, then stacking."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from growbench.config import UsageError
from growbench.method import Axis, Maps, Method, ModelConfig, Phase, Phases, Select, Task, Weights, deepen, widen


def even_map(old: int, new: int, rng: torch.Generator) -> Tensor:
    """(new,) old units, each copied equally often as far as possible: what LayerNorm needs to be preserved."""
    whole = torch.arange(old).repeat(new // old)
    return torch.cat([whole, torch.randperm(old, generator=rng)[: new % old]])


def random_map(old: int, new: int, rng: torch.Generator) -> Tensor:
    """(new,) old units: the first keep their place, the new ones copy uniformly random old ones (bert2BERT, section 3)."""
    return torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=rng)])


def heads_map(task: Task) -> Tensor:
    """The map of single dimensions that copies whole heads."""
    old, new = task.source_sizes, task.target
    heads = random_map(old.heads, new.heads, task.rng)
    return (heads[:, None] * old.head_size + torch.arange(old.head_size)).flatten()


def stack_and_top(old: int, new: int) -> list[int]:
    """Whole copies of the stack, then the remaining layers from the top of the old model."""
    return list(range(old)) * (new // old) + list(range(old - new % old, old))


@dataclass(frozen=True)
class Bert2Bert(Method):
    """Copy the source's neurons and heads into the wider model, then stack its layers to the target's depth.

    Formula: FPI: W'[a, b] = W[g(a), g(b)] / copies(g(b)). AKI: the new heads and FFN neurons of layer l come from layer
    l + 1, whole (head: its query, key, value rows and output columns; neuron: its row, bias and column); the last
    layer's from itself. Depth: whole copies of the stack, the rest from the top.
    Paper: Chen et al., ACL 2022, section 3.
    Function preserving: FPI is, in width, at integer ratios; AKI and stacking are not.
    Defaults: AKI, the paper's better one. The residual axis is copied evenly, so that LayerNorm is preserved.
    Under FPI, and on AKI's residual axis, copies have equal gradients, so without dropout they stay copies.
    Costs beyond training: none but the copying. New optimizer state, the run's learning rate from its start.
    """

    paper: ClassVar[str] = "https://aclanthology.org/2022.acl-long.151"
    init: Literal["aki", "fpi"] = "aki"

    def phases(self, task: Task) -> Phases:
        source, target = task.source_sizes, task.target
        if source.head_size != target.head_size:
            sizes = f"target.width / target.heads = {target.head_size} must equal the source's {source.head_size}"
            raise UsageError(f"bert2bert copies whole heads: {sizes}")
        residual = Select(even_map(source.width, target.width, task.rng))
        maps: Maps = {
            Axis.WIDTH: residual,
            Axis.HEAD_TRANSFORM: residual,
            Axis.HEADS: Select(heads_map(task)),
            Axis.FFN: Select(random_map(source.ffn, target.ffn, task.rng)),
        }
        weights = task.read(task.source)
        grown = widen(weights, maps)
        if self.init == "aki":
            grown = with_new_units(grown, widen(upper_layers(weights), maps), old=source)
        grown = deepen(grown, stack_and_top(source.layers, target.layers))
        yield Phase(model=task.grow(grown))


def upper_layers(weights: Weights) -> Weights:
    """Every layer replaced by the next one; the last stays."""
    layers = next(weight.value.shape[0] for weight in weights.values() if Axis.LAYER in weight.axes)
    return deepen(weights, [min(layer + 1, layers - 1) for layer in range(layers)])


def with_new_units(kept: Weights, upper: Weights, old: ModelConfig) -> Weights:
    """`kept`, but heads and FFN neurons beyond the source's number are taken from `upper`."""
    first_new = {Axis.HEADS: old.width, Axis.FFN: old.ffn}

    def mixed(name: str) -> Tensor:
        value = kept[name].value.clone()
        for dim, axis in enumerate(kept[name].axes):
            if axis in first_new:
                start, length = first_new[axis], value.shape[dim] - first_new[axis]
                value.narrow(dim, start, length).copy_(upper[name].value.narrow(dim, start, length))
        return value

    return {name: replace(weight, value=mixed(name)) for name, weight in kept.items()}
