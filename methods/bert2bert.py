"""bert2BERT: function-preserving and advanced width expansion, then stacking."""

from collections.abc import Callable, Iterator
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
    Weight,
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
    column); those of the last layer are its own. The paper's equation, read literally, speaks of each matrix by itself:
    init = "aki_outputs" takes the new output rows of every matrix from layer l + 1, with their biases, those on the residual
    axis too, and all columns of the kept rows from layer l. Norms are as in FPI. Depth: whole copies of the stack, then the
    remaining layers from its top.
    Two-stage pretraining: for `sub_model_share` of the budget, each step picks one sub-model at random. The sub-models have the
    lowest `sub_model_layers` layers, twice as many, and so on. The step trains the sub-model's top `sub_model_layers` layers
    and the head.
    Paper: Chen et al., ACL 2022, section 3.
    Function preserving: FPI preserves the function in width at integer ratios; AKI and stacking do not.
    Defaults: AKI, which is better in the paper, of whole units. The residual axis is copied evenly and in the same way in all
    blocks, so that LayerNorm is preserved. There is no first stage, as in the comparison of LiGO's paper; the paper's best one
    has 3 layers and takes 5 epochs. Whether it trains embeddings is not known; here they train with the lowest sub-model only,
    and so does a decoder that is tied to them. With FPI, and on the residual axis of AKI of whole units, copies have equal
    gradients, so they stay equal without dropout.
    Costs beyond training: copying only. The optimizer's state is new, and the learning rate follows the run's schedule from its
    start.
    """

    paper: ClassVar[str] = "https://aclanthology.org/2022.acl-long.151"
    init: Literal["aki", "aki_outputs", "fpi"] = "aki"
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
        if self.init != "fpi":
            sides = {"aki": sides_of_units, "aki_outputs": output_side}[self.init]
            grown = with_new_units(grown, widen(upper_layers(weights), maps), maps, sides)
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


def sides_of_units(weight: Weight) -> list[int]:
    """The dimensions of a weight that range over whole heads or FFN neurons."""
    return [dim for dim, axis in enumerate(weight.axes) if axis in (Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_COUNT, Axis.FFN)]


def output_side(weight: Weight) -> list[int]:
    """The dimension of a layer's matrix or bias that ranges over its outputs. Norms and scales multiply, and have none."""
    in_layers = weight.axes[0] in (Axis.LAYER, Axis.CLASS_LAYER)
    return [1] if in_layers and weight.role not in ("norm", "layer_scale") else []


def with_new_units(kept: Weights, upper: Weights, maps: Maps, sides: Callable[[Weight], list[int]]) -> Weights:
    """`kept`, with what `upper` has in place of all but the first copy of an old unit, on these sides of each weight."""
    new = {axis: copies.further() for axis, copies in maps.items() if isinstance(copies, Select)}

    def mixed(name: str) -> Tensor:
        value = kept[name].value
        for dim in sides(kept[name]):
            if (axis := kept[name].axes[dim]) in new:
                places = new[axis].to(value.device)
                value = value.index_copy(dim, places, upper[name].value.index_select(dim, places))
        return value

    return {name: replace(weight, value=mixed(name)) for name, weight in kept.items()}
