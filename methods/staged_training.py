"""Staged training: the whole training state doubled in width or depth, when the loss falls slowly for its compute."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import linear_regression
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from growbench.method import (
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
    Weights,
    apart,
    deepen,
    tiling,
    widen,
)

# of the authors' cheat sheet: the slope d log(loss) / d log(compute) at which to grow, and by which factor the steps before a
# growth exceed those after which the grown model would have the same loss
SLOPES = {"width": -0.0475, "depth": -0.0575}
STEPS_RATIO = {"width": 1.776, "depth": 1.412}
FEWEST = 5  # losses that a slope is read from


class StagedTraining(Method):
    """Train the source's sizes, and double width or depth with the optimizer's state whenever the loss has become flat.

    Formula: width: every unit twice, W' = [[W, 0], [0, W]]; what the decoder reads is halved. Depth: an identity layer behind
    each layer: norm gains and biases 0, matrices I. Widths are doubled first. Adam's moments follow the gradients: m / 2 and
    v / 4 for all that is doubled, m and v where weights are halved, zero for zero blocks and identity layers. A stage ends when
    the slope of log loss against log compute exceeds -0.0475 before a doubling of width, and -0.0575 before one of depth.
    Paper: Shen et al. 2022, and the authors' code (allenai/staged-training), which has the constants.
    Function preserving: yes, in depth only where norms come first. Where they come last, a layer is followed by its copy. Layers
    with a gated FFN get a copy of the FFN that writes zeros, as a gate of 0 would have no gradient. The halves' steps equal those
    of the small model, as long as the zero blocks stay zero, and the halved weights have half the learning rate; as these train
    too, training goes on a little differently.
    Claim: up to 22 % of the compute saved, for GPT-2 large in one stage.
    Defaults: the loss is read every 2 % of the budget: a step's training loss, where the authors read the validation loss, so the
    slope is that of the least-squares line through the later half of a stage. All growth is done after half of the budget, in
    stages of equal length, if the slopes do not come earlier; forecasts assume this. The run's learning-rate schedule continues,
    where the authors resume it at the step that the grown model seems to be at; rewarm_steps gives their re-warm, 150 to 200
    steps. Targets that are not 2^n times the source are refused.
    Costs: every stage is charged as training. There is no source model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.06211"
    uses_source: ClassVar[bool] = False
    miniature: ClassVar[dict[str, Any]] = {"target.width": 32, "target.layers": 4}
    state: Literal["new", "kept", "grown"] = "grown"  # what the optimizer starts with after growth
    interval: float = 0.02  # of the budget, between two losses
    latest: float = 0.5  # of the budget: all growth is done by then

    def __post_init__(self) -> None:
        for key in ("interval", "latest"):
            if not 0 < getattr(self, key) < 1:
                raise UsageError(f"{key} = {getattr(self, key)}: must be above 0 and below 1")

    def phases(self, task: Task) -> Phases:
        sizes, steps, effective = task.source_config, 0, 0.0
        stages = list(doublings(sizes, task.target_config))
        model = task.build(sizes)
        for number, (kind, larger) in enumerate(stages, 1):
            end, optimizer, curve = round(self.latest * task.budget * number / len(stages)), None, Curve()
            while steps < end and not curve.slope() > SLOPES[kind]:
                length = min(max(1, round(self.interval * task.budget)), end - steps)
                name = f"{sizes.layers} x {sizes.width}"
                trained = yield Phase(model=model, optimizer=optimizer, steps=length, name=name)
                optimizer, steps, effective = trained.optimizer, steps + length, effective + length
                if steps > task.training.warmup_steps:
                    curve.add(effective, trained.loss)
            weights = task.read(model)
            grown = (
                doubled(weights, sizes, larger) if kind == "width" else with_identities(weights, task.architecture.norm == "pre")
            )
            model, sizes, effective = task.model_from(grown, larger), larger, effective / STEPS_RATIO[kind]
        yield Phase(model=model, name=f"{sizes.layers} x {sizes.width}")


@dataclass
class Curve:
    """The losses of a stage."""

    points: list[tuple[float, float]] = field(default_factory=list)  # log10 of steps, log10 of loss

    def add(self, step: float, loss: float) -> None:
        self.points.append((math.log10(step), math.log10(loss)))

    def slope(self) -> float:
        """That of the line through the later half of the stage; -inf as long as that has too few losses. In a plan NaN."""
        half = self.points[len(self.points) // 2 :]
        return linear_regression(*zip(*half, strict=True)).slope if len(half) >= FEWEST else -math.inf


def doublings(small: ModelConfig, large: ModelConfig) -> Iterator[tuple[Literal["width", "depth"], ModelConfig]]:
    """The stages from one model to the other: what is doubled, and the sizes after it. Raises UsageError if that cannot be."""
    keys = ("width", "heads", "ffn", "kv_heads")
    while small.width < large.width:
        small = replace(small, **{key: 2 * getattr(small, key) for key in keys})
        yield "width", small
    while small.layers < large.layers:
        small = replace(small, layers=2 * small.layers)
        yield "depth", small
    for key in (*keys, "layers"):
        if getattr(small, key) != getattr(large, key):
            sizes = f"from the source's sizes come {key} = {getattr(small, key)}, target.{key} = {getattr(large, key)}"
            raise UsageError(f"staged_training doubles all widths together, and depth: {sizes}")


def doubled(weights: Weights, small: ModelConfig, large: ModelConfig) -> Weights:
    """Two copies side by side that do not read each other. What the decoder reads is halved."""
    halving = tiling(small, large)
    whole: Maps = {axis: Select(each.index, divided=False) for axis, each in halving.items() if isinstance(each, Select)}
    maps = whole | {(axis, role): halving[axis] for axis in (Axis.WIDTH, Axis.HEAD_TRANSFORM) for role in ("norm", "head")}
    wide = widen(weights, maps)
    blocks = apart({name: replace(weight, value=torch.ones_like(weight.value)) for name, weight in wide.items()}, maps)
    zero = {name: blocks[name].value == 0 for name in wide}
    return {
        name: replace(weight, value=torch.where(zero[name], torch.zeros_like(weight.value), weight.value))
        for name, weight in wide.items()
    }


def with_identities(weights: Weights, possible: bool) -> Weights:
    """A layer that changes nothing behind each layer; a copy of it if there is no such layer."""
    gated = "layers.ffn.gate.weight" in weights

    def idle(name: str, weight: Weight, layer: Tensor) -> Tensor:
        if not possible or weight.role == "layer_scale":
            return layer
        if gated and name.startswith("layers.ffn."):
            return torch.zeros_like(layer) if weight.residual else layer
        return torch.eye(*layer.shape, dtype=layer.dtype, device=layer.device) if layer.dim() == 2 else torch.zeros_like(layer)

    def between(name: str, weight: Weight) -> Tensor:
        return torch.stack([each for layer in weight.value for each in (layer, idle(name, weight, layer))])

    return deepen(weights, between)
