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

    Formula: FPI: W'[a, b] = W[g(a), g(b)] / copies(g(b)). AKI: the new heads and FFN neurons of layer l are whole heads and
    neurons of layer l + 1 (a head is its query, key and value rows and its output columns; a neuron is its row, bias and
    column); those of the last layer are its own. Depth: whole copies of the stack, then the remaining layers from its top.
    Two-stage pretraining: for `sub_model_share` of the budget, each step picks one sub-model at random. The sub-models have the
    lowest `sub_model_layers` layers, twice as many, and so on. The step trains the sub-model's top `sub_model_layers` layers
    and the head.
    Paper: Chen et al., ACL 2022, section 3.
    Function preserving: FPI preserves the function in width at integer ratios; AKI and stacking do not.
    Defaults: AKI, which is better in the paper. The residual axis is copied evenly and in the same way in all blocks, so that
    LayerNorm is preserved. There is no first stage, as in the comparison of LiGO's paper; the paper's best one has 3 layers
    and takes 5 epochs. Whether it trains embeddings is not known; here they train with the lowest sub-model only, and so does a
    decoder that is tied to them. With FPI, and on AKI's residual axis, copies have equal gradients, so they stay
    equal without dropout.
    Costs beyond training: copying only. The optimizer's state is new, and the learning rate follows the run's schedule from its
    start.
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
        small, large = task.source_config, task.target_config
        maps = copying(small, large, task.rng)
        weights = task.read(task.source)
        grown = widen(weights, maps)
        if self.init == "aki":
            grown = with_new_units(grown, widen(upper_layers(weights), maps), maps)
        model = task.model_from(deepen(grown, stack_and_top(small.layers, large.layers)))
        if self.sub_model_share:
            yield self.sub_models(task, model)
        yield Phase(model=model)

    def sub_models(self, task: Task, model: nn.Module) -> Phase:
        """The first stage: sub-models of several depths, one of which is picked at random for each step."""
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
            model.requires_grad_(True)  # after the graph is built; the optimizer skips parameters without gradient
            return value

        return Phase(model=model, share=self.sub_model_share, loss=loss, workload=depth_at, name="sub-models")


@contextmanager
def cut_to(task: Task, model: nn.Module, depth: int) -> Iterator[None]:
    """Remove the model's layers from `depth` on, for the duration of the context."""
    parent, name = task.architecture.stack(model)
    layers = getattr(parent, name)
    setattr(parent, name, layers[:depth])
    try:
        yield
    finally:
        setattr(parent, name, layers)


def upper_layers(weights: Weights) -> Weights:
    """Replace every layer by the next one. The last layer stays."""
    for axis in (Axis.LAYER, Axis.CLASS_LAYER):
        layers = next((weight.value.shape[0] for weight in weights.values() if axis in weight.axes), 0)
        weights = deepen(weights, [min(layer + 1, layers - 1) for layer in range(layers)], axis)
    return weights


def with_new_units(kept: Weights, upper: Weights, maps: Maps) -> Weights:
    """`kept`, with heads and FFN neurons from `upper` in place of all but the first copy of an old one."""
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
