"""Masked structural growth: new units and layers of any initial value behind a mask that goes from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from growbench.method import (
    WIDTHS,
    Axis,
    Maps,
    Method,
    ModelConfig,
    Phase,
    Phases,
    Select,
    Task,
    UsageError,
    Weight,
    deepen,
    map_of,
    stack_and_top,
    tiling,
    tunable,
    widen,
)

SIZES = ("layers", "width", "heads", "ffn", "kv_heads")


@dataclass(frozen=True)
class Mask:
    """A view of a model in which all that is new counts c times, with c going from 0 to 1 over the phase."""

    entries: dict[str, Tensor]  # by parameter: 1 at new outputs, 0 at old ones
    norms: dict[str, Tensor]  # by norm: 1 at new dimensions (N,)
    layers: list[str]  # the new ones

    def __call__(self, model: nn.Module, step: int, steps: int) -> Mapping[str, Any]:
        if step == steps:
            return {}
        c = step / steps
        return (
            {name: model.get_parameter(name) * (1 - (1 - c) * new) for name, new in self.entries.items()}
            | {name: partial(masked_norm, 1 - (1 - c) * new) for name, new in self.norms.items()}
            | dict.fromkeys(self.layers, partial(faded_in, c))
        )


def masked_norm(mask: Tensor, norm: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """LayerNorm or RMSNorm (..., N) whose mean and variance count dimension i mask[i] times. Gain and bias are masked already."""
    share = mask / mask.sum()
    hidden = inputs[0].to(share.dtype)  # not in bf16
    if isinstance(norm, nn.LayerNorm):
        hidden = hidden - (hidden * share).sum(-1, keepdim=True)
    normal: Tensor = hidden * (hidden.square() * share).sum(-1, keepdim=True).add(norm.eps).rsqrt() * norm.weight
    return normal if getattr(norm, "bias", None) is None else normal + norm.bias


def faded_in(c: float, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """c times what the layer computes, plus 1 - c times what it reads."""
    faded: Tensor = c * output + (1 - c) * inputs[0]
    return faded


class Msg(Method):
    """Grow FFN, depth and width in turn; whatever is new is behind a mask that goes from 0 to 1 while the model trains.

    Formula: the outputs of new FFN neurons (before the activation) and of new heads (query, key, value) are multiplied by c, as
    are new dimensions of the residual stream, where it is written and behind every norm. Mean and variance of a norm count
    dimension i mask_i times, with mask_i = c where new: mu = sum mask_i x_i / sum mask_i. A new layer's output is
    c layer(x) + (1 - c) x. c goes linearly from 0 to 1 over the steps of a growth. With talking heads, what new heads give to
    others is multiplied by c too.
    Paper: Yao et al., ICLR 2024, and the authors' code (cofe-ai/MSG), which is of BERT. There is no code for models whose
    norms come first: here, their embeddings and all that writes to the residual stream are masked.
    Function preserving: strictly, at the start of each growth, for any new values, on all architectures and at any ratio. Heads
    keep their size. Heads per key-value head may not become fewer.
    Claim: 2.20 times faster (54.6 % saved) for BERT-large, 1.40 times (28 %) for GPT-2, with all stages charged.
    Defaults: order = "in_turn" grows one dimension after the other, as the code demands: FFN, layers, width. Heads grow with the
    width, because the head size stays. "together" grows all at once. The paper searches stage lengths on a grid and lets a mask
    grow for 5,000 steps; here a growth takes `share` of the budget, and the next one begins when its mask is 1. New units are
    random and new layers copies (whole stacks, then the top layers), as in the code. The optimizer's state is new at each growth,
    and stays when its mask is 1; the code keeps the moments of what is old, as state = "kept" does. The run's learning-rate
    schedule continues; the paper's option to rewind it is left out.
    Costs: every growth is charged as training, with all that is masked. Masked steps are not compiled, and not sharded.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.02869"
    share: float = tunable(0.1, 0.02, 0.3)  # of the budget, for each growth
    order: Literal["in_turn", "together"] = "in_turn"
    units: Literal["random", "copy"] = "random"  # what new neurons, heads and dimensions begin as
    layers: Literal["copy", "random"] = "copy"  # what new layers begin as

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"share = {self.share}: must be above 0 and below 1")

    def phases(self, task: Task) -> Phases:
        old, optimizer = task.source_config, None
        model = task.model_from(task.read(task.source), old)
        for name, sizes in self.stages(old, task.target_config):
            model, mask = self.grown(task, model, old, sizes)
            steps = max(1, round(self.share * task.budget))
            trained = yield Phase(model=model, steps=steps, view=mask, name=f"grow {name}")
            old, optimizer = sizes, trained.optimizer
        yield Phase(model=model, optimizer=optimizer)

    def stages(self, small: ModelConfig, large: ModelConfig) -> list[tuple[str, ModelConfig]]:
        """What grows in each stage, and the sizes after it. Raises UsageError for growth that cannot be masked."""
        if large.heads * small.key_value_heads < small.heads * large.key_value_heads:
            raise UsageError(
                f"msg: target's heads / kv_heads = {large.heads} / {large.key_value_heads} must be at least the source's "
                f"{small.heads} / {small.key_value_heads}: old heads must stay with their key-value heads"
            )
        tiling(small, large)  # refuses heads of another size
        before = replace(large, **{key: getattr(small, key) for key in SIZES})
        ffn = replace(before, ffn=large.ffn)
        deep = replace(ffn, layers=large.layers)
        sizes = {"ffn": ffn, "layers": deep, "width": large} if self.order == "in_turn" else {"all": large}
        olds = (before, *sizes.values())
        return [(name, new) for old, (name, new) in zip(olds, sizes.items(), strict=False) if new != old]

    def grown(self, task: Task, model: nn.Module, old: ModelConfig, sizes: ModelConfig) -> tuple[nn.Module, Mask]:
        """The model with all that is new in it, and the mask over that."""
        maps: Maps = {axis: replace(each, divided=False) for axis, each in tiling(old, sizes).items() if isinstance(each, Select)}
        copies = deepen(widen(task.read(model), maps), stack_and_top(old.layers, sizes.layers))
        fresh = task.read(task.build(sizes))

        def value(name: str, weight: Weight) -> Tensor:
            drawn = new_entries(weight, maps, range(weight.value.dim()) if self.units == "random" else ())
            if self.layers == "random" and weight.axes[0] is Axis.LAYER:
                drawn[old.layers :] = True
            return torch.where(drawn.to(task.device), fresh[name].value, weight.value)

        large = task.model_from({name: replace(each, value=value(name, each)) for name, each in copies.items()}, sizes)
        masked = {
            name: replace(weight, value=new_entries(weight, maps, masked_dims(weight, task.architecture.norm)))
            for name, weight in copies.items()
        }
        entries = {
            name: new.to(large.get_parameter(name)).contiguous()
            for name, new in task.architecture.native(masked, sizes).items()
            if new.any()
        }
        gains = {each for name, _, each in task.architecture.parameters(large) if copies[name].subrole == "norm_gain"}
        norms = {
            name.rpartition(".")[0]: entries[name]
            for name, parameter in large.named_parameters()
            if parameter in gains and name in entries
        }
        stack, layers = task.architecture.stack(large)
        new_layers = [name for name, module in large.named_modules() if module in getattr(stack, layers)[old.layers :]]
        return large, Mask(entries, norms, new_layers)


def new_entries(weight: Weight, maps: Maps, dims: Iterable[int]) -> Tensor:
    """True for the entries of a grown weight that are new along one of these dimensions."""
    new = torch.zeros(weight.value.shape, dtype=torch.bool)
    for dim in dims:
        axis_map = map_of(maps, weight, dim)
        if isinstance(axis_map, Select):
            new.index_fill_(dim, axis_map.further(), True)
    return new


def masked_dims(weight: Weight, norm: str) -> list[int]:
    """The dimensions along which new entries are masked. `norm`: whether the model's norms come first ("pre") or last."""
    dims = []
    for dim, axis in enumerate(weight.axes):
        if axis is Axis.HEAD_COUNT:
            masked = weight.consumes and dim == len(weight.axes) - 1
        elif axis in (Axis.WIDTH, Axis.HEAD_TRANSFORM):
            masked = weight.role == "norm" or (norm == "pre" and (weight.residual or weight.role == "embedding"))
        else:
            masked = axis in WIDTHS and not (weight.consumes and dim == len(weight.axes) - 1)
        dims += [dim] * masked
    return dims
