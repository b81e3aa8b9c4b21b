"""The multi-level V-cycle: the target is coalesced into a small model, which trains and is mixed back into it."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim import Optimizer

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
    Weights,
    deepen,
    interleave,
    stack,
    tiling,
    tunable,
    widen,
)

SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "ffn")


@dataclass(frozen=True)
class Merge:
    """The reverse of Select: a unit is the mean of the units that copy it. As inputs these are added up."""

    index: Tensor  # (N,) int64: the unit that each of the units to be merged goes to

    def produce(self, value: Tensor, dim: int) -> Tensor:
        copies = torch.bincount(self.index).to(value)
        return self.consume(value, dim) / copies.reshape([-1] + [1] * (value.dim() - 1 - dim))

    def consume(self, value: Tensor, dim: int) -> Tensor:
        shape = list(value.shape)
        shape[dim] = int(self.index.max()) + 1
        return value.new_zeros(shape).index_add(dim, self.index.to(value.device), value)


class Multilevel(Method):
    """Train the target for a moment, coalesce it into a small model, train that, and mix it back into the target.

    Formula: coalescing: unit i of the small model is the mean of the units j with j mod n = i of the target, in outputs, biases,
    embeddings and norms; columns of inputs are added up. A small layer is the mean of its layers. De-coalescing: units are
    copied, and columns divided by the number of copies; layers are copied. So a model that is de-coalesced and coalesced is as it
    was. The target goes on from (1 - alpha) W + alpha W', with its weights W before coalescing and W' of the small model.
    Heads are merged whole. `between` adds levels of these sizes: each trains on the way down and is coalesced in turn; on the way
    up it is mixed, and trains as the small model did.
    Paper: Zou et al., ICLR 2024, and the authors' code (Photooon/Multi-Level-Training-Framework).
    Function preserving: no. De-coalescing alone preserves the function in width at integer ratios, not in depth.
    Claim: 19.0 % of the FLOPs of BERT-base saved, 24.1 % of GPT-base, 27.1 % of DeiT-B, up to 51.6 % of BERT-large.
    Defaults: those of the code's GPT-2, with 100,000 steps of scratch. The target trains for 5 % of the budget, all of it
    warm-up, the small model for half of the budget at 4 times the learning rate, then the target for the rest. Both of these
    decay linearly from their start to 0. alpha 0.5; the code's example of DeiT has 0.25. depth = "stack" merges layers l and
    l + L, as in the code's examples; "adjacent" merges neighbours, as in the paper. The code doubles coalesced embeddings of
    text, which the decoder shares, and halves them on the way back; here the norm in front of the decoder is added up and divided
    in their place. The optimizer's state is new in each phase. The paper has cycles of two and of three levels, the code's
    examples have two. That a level between trains for `first` and then for `small` of the budget, at the small model's learning
    rate, is our reading; with the default shares there is no room for it. Its FFN is as many times its width as the target's.
    Costs: all phases are charged as training. There is no source model; the small model has the source's sizes.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.07999"
    uses_source: ClassVar[bool] = False
    first: float = 0.05  # of the budget, for the target before coalescing, and for each level between
    small: float = tunable(0.5, 0.2, 0.7)  # of the budget, for the small model, and for each level between
    small_lr: float = tunable(4.0, 1.0, 8.0)  # the small model's peak learning rate: a multiple of the run's
    alpha: float = tunable(0.5, 0.1, 0.9)  # of the small model in the mixture
    depth: Literal["stack", "adjacent"] = "stack"
    between: tuple[dict[str, int], ...] = ()  # sizes of levels between target and small model, largest first

    def __post_init__(self) -> None:
        descents = 1 + len(self.between)
        if not (self.first > 0 and self.small > 0 and descents * (self.first + self.small) < 1):
            limit = f"their sum below 1 / {descents}" if self.between else "their sum below 1"
            raise UsageError(f"first = {self.first} and small = {self.small}: must be above 0, {limit}")
        if unknown := {key for level in self.between for key in level} - set(SIZES):
            raise UsageError(f"between has {', '.join(sorted(unknown))}: allowed are {', '.join(SIZES)}")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha = {self.alpha}: must be at least 0 and at most 1")

    def phases(self, task: Task) -> Phases:
        levels = [task.target_config, *(between(task.target_config, sizes) for sizes in self.between), task.source_config]
        descents = [Descent.of(large, small, self.depth) for large, small in pairwise(levels)]
        model, before = task.build(), list[Weights]()
        for number, descent in enumerate(descents, 1):
            trained = yield Phase(
                model=model,
                steps=self.steps(self.first, task),
                optimizer=self.optimizer(task, model) if before else None,
                schedule=rising,
                name=f"level {number}" if before else "target",
            )
            before.append(task.read(trained.model))
            model = task.model_from(descent.down(before[-1]), descent.small)
        for number, descent in reversed([*enumerate(descents, 2)]):
            trained = yield Phase(
                model=model,
                steps=self.steps(self.small, task),
                optimizer=self.optimizer(task, model),
                schedule=falling,
                name="coalesced" if number == len(levels) else f"level {number} interpolated",
            )
            after = descent.up(task.read(trained.model))
            mixed = {
                name: replace(weight, value=(1 - self.alpha) * weight.value + self.alpha * after[name].value)
                for name, weight in before.pop().items()
            }
            model = task.model_from(mixed, descent.large)
        yield Phase(model=model, schedule=falling, name="interpolated")

    def steps(self, share: float, task: Task) -> int:
        return max(1, round(share * task.budget))

    def optimizer(self, task: Task, model: nn.Module) -> Optimizer:
        """Of a level below the target."""
        return task.optimizer(model, lr=self.small_lr * task.training.lr)


def between(target: ModelConfig, sizes: dict[str, Any]) -> ModelConfig:
    """A level of these sizes, in all others as the target. Raises UsageError for sizes that no model can have."""
    return replace(target, **{"ffn": target.ffn * sizes.get("width", target.width) // target.width, **sizes})


@dataclass(frozen=True)
class Descent:
    """From one level to the next smaller one, and back."""

    large: ModelConfig
    small: ModelConfig
    layers: list[int]  # the small layer that each large one is merged into, and copied from
    copies: dict[Axis | tuple[Axis, str], Select]

    @classmethod
    def of(cls, large: ModelConfig, small: ModelConfig, depth: str) -> "Descent":
        """Raises UsageError if the small level is larger in any size, or if whole heads cannot be merged."""
        for key in ("layers", "width", "heads", "key_value_heads", "ffn"):
            if getattr(small, key) > getattr(large, key):
                sizes = f"{getattr(small, key)} beneath {getattr(large, key)}"
                raise UsageError(f"between: {key} = {sizes}: each level must be at most as large as the one above it")
        copies = {axis: each for axis, each in tiling(small, large).items() if isinstance(each, Select)}
        return cls(large, small, {"stack": stack, "adjacent": interleave}[depth](small.layers, large.layers), copies)

    def down(self, weights: Weights) -> Weights:
        """Coalesced: the means of the layers and units that are merged, or their sums in inputs."""
        members = one_hot(torch.tensor(self.layers)).T.to(torch.get_default_dtype())  # (small layers, large layers)
        maps: Maps = {axis: Merge(each.index) for axis, each in self.copies.items()}
        return deepen(widen(weights, maps), members / members.sum(-1, keepdim=True))

    def up(self, weights: Weights) -> Weights:
        """De-coalesced: every layer and unit copied."""
        return deepen(widen(weights, {**self.copies}), self.layers)


def rising(step: int, steps: int) -> float:
    return (step + 1) / steps


def falling(step: int, steps: int) -> float:
    return 1 - step / steps
