"""The multi-level V-cycle: the target is coalesced into a small model, which trains and is mixed back into it."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from growbench.method import (
    Maps,
    Method,
    Phase,
    Phases,
    Select,
    Task,
    UsageError,
    deepen,
    interleave,
    stack,
    tiling,
    tunable,
    widen,
)


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
    Heads are merged whole.
    Paper: Zou et al., ICLR 2024, and the authors' code (Photooon/Multi-Level-Training-Framework).
    Function preserving: no; nor is de-coalescing in depth. In width it is at integer ratios.
    Claim: 19.0 % of the FLOPs of BERT-base saved, 24.1 % of GPT-base, 27.1 % of DeiT-B, up to 51.6 % of BERT-large.
    Defaults: those of the code's GPT-2, with 100,000 steps of scratch. The target trains for 5 % of the budget, all of it
    warm-up, the small model for half of the budget at 4 times the learning rate, then the target for the rest. Both of these
    decay linearly from their start to 0. alpha 0.5; the code's example of DeiT has 0.25. depth = "stack" merges layers l and
    l + L, as in the code's examples; "adjacent" merges neighbours, as in the paper. The code doubles coalesced embeddings of
    text, which the decoder shares, and halves them on the way back; here the norm in front of the decoder is added up and divided
    in their place. The optimizer's state is new in each phase. Cycles of three levels are left out.
    Costs: all phases are charged as training. There is no source model; the small model has the source's sizes.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.07999"
    uses_source: ClassVar[bool] = False
    first: float = 0.05  # of the budget, for the target before coalescing
    small: float = tunable(0.5, 0.2, 0.7)  # of the budget, for the small model
    small_lr: float = tunable(4.0, 1.0, 8.0)  # the small model's peak learning rate: a multiple of the run's
    alpha: float = tunable(0.5, 0.1, 0.9)  # of the small model in the mixture
    depth: Literal["stack", "adjacent"] = "stack"

    def __post_init__(self) -> None:
        if not (self.first > 0 and self.small > 0 and self.first + self.small < 1):
            raise UsageError(f"first = {self.first} and small = {self.small}: must be above 0, their sum below 1")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha = {self.alpha}: must be at least 0 and at most 1")

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        layers = {"stack": stack, "adjacent": interleave}[self.depth](small.layers, large.layers)
        copies = {axis: each for axis, each in tiling(small, large).items() if isinstance(each, Select)}
        down: Maps = {axis: Merge(each.index) for axis, each in copies.items()}
        trained = yield Phase(model=task.build(), steps=self.steps(self.first, task), schedule=rising, name="target")
        before = task.read(trained.model)
        members = one_hot(torch.tensor(layers)).T.to(torch.get_default_dtype())  # (layers of the small model, of the target)
        coalesced = task.model_from(deepen(widen(before, down), members / members.sum(-1, keepdim=True)), small)
        trained = yield Phase(
            model=coalesced,
            steps=self.steps(self.small, task),
            optimizer=task.optimizer(coalesced, lr=self.small_lr * task.training.lr),
            schedule=falling,
            name="coalesced",
        )
        after = deepen(widen(task.read(trained.model), {**copies}), layers)
        mixed = {
            name: replace(weight, value=(1 - self.alpha) * weight.value + self.alpha * after[name].value)
            for name, weight in before.items()
        }
        yield Phase(model=task.model_from(mixed), schedule=falling, name="interpolated")

    def steps(self, share: float, task: Task) -> int:
        return max(1, round(share * task.budget))


def rising(step: int, steps: int) -> float:
    return (step + 1) / steps


def falling(step: int, steps: int) -> float:
    return 1 - step / steps
