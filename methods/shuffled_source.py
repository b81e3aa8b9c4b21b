"""Growth from a source whose entries are shuffled."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from growbench.method import Axis, Method, Phases, Task, UsageError, Weight
from growbench.registry import get


class ShuffledSource(Method):
    """Control: grow a trained small model whose entries are shuffled, by another method.

    Formula: that of the method `like`, with the entries of each tensor of the source in random order. The shuffled source has
    the trained one's distribution of entries, tensor by tensor, and computes nothing that it has learned. A saving that remains
    comes from the scale of trained weights, not from what they compute.
    Paper: Trockman and Kolter 2023 (Mimetic Initialization) give fresh weights some of the structure of trained ones, without
    what these have learned.
    Function preserving: as `like`, to the shuffled source.
    Defaults: bert2bert with its defaults.
    Costs beyond training: those of `like`. The source is a trained one, so it is charged in the build ledger, unlike that of
    random_source.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.09828"
    control: ClassVar[bool] = True
    like: str = "bert2bert"

    @property
    def wraps(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.like,)

    def phases(self, task: Task) -> Phases:
        method = get(self.like).method
        if not method.uses_source or method.keeps_source:
            raise UsageError(f"shuffled_source.like = {self.like!r}: must be a method that grows a source, and does not keep it")
        weights = {name: shuffled(weight, task.rng) for name, weight in task.read(task.source).items()}
        source = task.model_from(weights, task.source_config).requires_grad_(False).eval()
        yield from method.phases(task.with_source(source))


def shuffled(weight: Weight, rng: torch.Generator) -> Weight:
    """The entries of a weight in random order, within each layer."""
    if weight.axes[0] in (Axis.LAYER, Axis.CLASS_LAYER):
        return replace(weight, value=torch.stack([permuted(layer, rng) for layer in weight.value]))
    return replace(weight, value=permuted(weight.value, rng))


def permuted(value: Tensor, rng: torch.Generator) -> Tensor:
    order = torch.randperm(value.numel(), generator=rng)  # drawn on the CPU, as all of a task's random numbers
    return value.flatten()[order.to(value.device)].view(value.shape)
