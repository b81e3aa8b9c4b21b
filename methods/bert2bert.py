"""bert2BERT: function-preserving and advanced width expansion, then stacking."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from growbench.method import (
    Axis,
    Batch,
    Maps,
    Method,
    Phase,
    Phases,
    Select,
    Task,
    UsageError,
    Weights,
    copying,
    deepen,
    stack_and_top,
    task_loss,
    widen,
)


class Bert2Bert(Method):
    """Copy the source's neurons and heads into the wider model, then stack its layers to the target's depth.

    Formula: FPI: W'[a, b] = W[g(a), g(b)] / copies(g(b)). AKI: the new heads and FFN neurons of layer l come from layer
    l + 1, whole (head: its query, key, value rows and output columns; neuron: its row, bias and column); the last
    layer's from itself. Depth: whole copies of the stack, the rest from the top.
    Two-stage pretraining: for `sub_model_share` of the budget each step picks one of the sub-models of the lowest
    `sub_model_layers`, twice, thrice as many layers and so on, and trains its top `sub_model_layers` and the head.
    Paper: Chen et al., ACL 2022, section 3.
    Function preserving: FPI is, in width, at integer ratios; AKI and stacking are not.
    Defaults: AKI, the paper's better one. The residual axis is copied evenly, so that LayerNorm is preserved; drawn anew
    for each block, as in a port of the paper, it would not be. No first stage: LiGO's paper compares without; the paper's
    best has 3 layers, for 5 epochs. Whether it trains embeddings then is not known to us: here they train with the lowest
    sub-model only, a decoder tied to them too.
    Under FPI, and on AKI's residual axis, copies have equal gradients, so without dropout they stay copies.
    Costs beyond training: none but the copying. New optimizer state, the run's learning rate from its start.
    """

    paper: ClassVar[str] = "https://aclanthology.org/2022.acl-long.151"
    init: Literal["aki", "fpi"] = "aki"
    sub_model_share: float = 0.0  # of the budget
    sub_model_layers: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.sub_model_share < 1:
            raise UsageError(f"sub_model_share = {self.sub_model_share}: must be at least 0 and below 1")
        if self.sub_model_layers < 1:
            raise UsageError(f"sub_model_layers = {self.sub_model_layers}: must be at least 1")

    def phases(self, task: Task) -> Phases:
        source, target = task.source_config, task.target_config
        maps = copying(source, target, task.rng)
        weights = task.read(task.source)
        grown = widen(weights, maps)
        if self.init == "aki":
            grown = with_new_units(grown, widen(upper_layers(weights), maps), maps)
        model = task.model_from(deepen(grown, stack_and_top(source.layers, target.layers)))
        if self.sub_model_share:
            yield self.sub_models(task, model)
        yield Phase(model=model)

    def sub_models(self, task: Task, model: nn.Module) -> Phase:
        """The first stage: sub-models of rising depth, one picked at random for each step."""
        depths = sorted(
            {
                min(depth + self.sub_model_layers, task.target_config.layers)
                for depth in range(0, task.target_config.layers, self.sub_model_layers)
            }
        )
        picks = torch.randint(len(depths), (task.budget,), generator=task.rng).tolist()

        def depth_at(step: int) -> int:
            return depths[picks[step]]

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            depth = depth_at(step)
            below = depth - self.sub_model_layers
            task.train_only(
                model,
                lambda name, layer: layer >= below if layer is not None else below <= 0 or not name.startswith("embeddings"),
            )
            with cut_to(task, model, depth):
                value = task_loss(model, batch)
            model.requires_grad_(True)  # the graph is built: the optimizer skips what has no gradient
            return value

        return Phase(model=model, share=self.sub_model_share, loss=loss, workload=depth_at, name="sub-models")


@contextmanager
def cut_to(task: Task, model: nn.Module, depth: int) -> Iterator[None]:
    """The model without its layers from `depth` on."""
    parent, name = task.architecture.stack(model)
    layers = getattr(parent, name)
    setattr(parent, name, layers[:depth])
    try:
        yield
    finally:
        setattr(parent, name, layers)


def upper_layers(weights: Weights) -> Weights:
    """Every layer replaced by the next one; the last stays."""
    for axis in (Axis.LAYER, Axis.CLASS_LAYER):
        layers = next((weight.value.shape[0] for weight in weights.values() if axis in weight.axes), 0)
        weights = deepen(weights, [min(layer + 1, layers - 1) for layer in range(layers)], axis)
    return weights


def with_new_units(kept: Weights, upper: Weights, maps: Maps) -> Weights:
    """`kept`, but heads and FFN neurons that are further copies of an old one are taken from `upper`."""
    whole_units = (Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_COUNT, Axis.FFN)
    new = {axis: copies.further() for axis in whole_units if isinstance(copies := maps[axis], Select)}

    def mixed(name: str) -> Tensor:
        value = kept[name].value
        for dim, axis in enumerate(kept[name].axes):
            if axis in new:
                places = new[axis].to(value.device)
                value = value.index_copy(dim, places, upper[name].value.index_select(dim, places))
        return value

    return {name: replace(weight, value=mixed(name)) for name, weight in kept.items()}
