"""mu-pscaling: copy and perturb, with rates at which the copies train as the small model would."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from growbench.method import (
    Maps,
    Method,
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


class MuPscaling(Method):
    """Repeat the small model's units k times, add noise, and train each matrix at muP's rate.

    Formula: a weight whose input grows k times is repeated and divided by k: W' = tile(W) / k. All others are repeated. Noise is
    N(0, 1) times `noise` times muP's standard deviation with the small model as its base, for every matrix and embedding: that of
    the initialisation, s, where no input grows; s / sqrt(k) within layers; s / k for an output matrix of its own. Adam's learning
    rate is divided by k, and weight decay multiplied by k, where the input grows k times. Heads are copied whole. Depth: whole
    copies of the stack, then the remaining layers from its top; the paper does not grow depth.
    Paper: Ma et al. 2026. Its abstract states copies, noise and rates that depend on the width, and the theorem below; the
    factors are derived from them. It claims that hyperparameters transfer, and no saving.
    Function preserving: in width without noise, and then throughout training: every step of the large model equals one of the
    small one. This needs Adam, gradients that are not clipped, a negligible eps, and the same state of the optimizer, new or
    grown. Stacking does not preserve the function. Widths that are no multiples of the source's are refused.
    Defaults: noise 0.2, because copies have equal gradients and would stay equal; the paper's value is not known. s is 0.02, the
    libraries' initialisation. The learning rate follows the run's schedule from its start. The optimizer's state is new.
    Costs beyond training: copying and drawing only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2602.10545"
    miniature: ClassVar[dict[str, Any]] = {"target.width": 32}
    noise: float = tunable(0.2, 0.02, 2.0)  # times muP's initialisation

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise UsageError(f"noise = {self.noise}: must be at least 0")

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        for key in ("width", "heads", "key_value_heads", "ffn"):
            if getattr(large, key) % getattr(small, key):
                sizes = f"target's {key} = {getattr(large, key)} must be a multiple of the source's {getattr(small, key)}"
                raise UsageError(f"mu_pscaling copies units k times: {sizes}")
        maps = tiling(small, large)
        wide = widen(task.read(task.source), maps)
        factors = {name: input_copies(weight, maps) for name, weight in wide.items()}
        if self.noise:
            wide = {name: replace(weight, value=self.noisy(weight, factors[name], task.rng)) for name, weight in wide.items()}
        model = task.model_from(deepen(wide, stack_and_top(small.layers, large.layers)))
        yield Phase(model=model, optimizer=scaled(task, model, factors))

    def noisy(self, weight: Weight, copies: int, rng: torch.Generator) -> Tensor:
        """The weight with noise of muP's scale; norms and biases have none."""
        if not (weight.consumes or weight.role == "embedding") or weight.role == "norm":
            return weight.value
        deviation = INITIAL / (copies if weight.role == "head" else copies**0.5)
        return weight.value + torch.randn(weight.value.shape, generator=rng).to(weight.value) * (self.noise * deviation)


INITIAL = 0.02  # standard deviation of the libraries' initial matrices and embeddings


def input_copies(weight: Weight, maps: Maps) -> int:
    """How often each input of a weight is repeated; 1 if it consumes none, or none that grows."""
    copies = map_of(maps, weight, weight.value.dim() - 1) if weight.consumes else None
    return int(copies.copy_number().max()) + 1 if isinstance(copies, Select) else 1


def scaled(task: Task, model: nn.Module, factors: dict[str, int]) -> Optimizer:
    """The task's AdamW, its learning rate divided by the factor of each weight, and weight decay per step as before."""
    whole = task.optimizer(model)
    if not isinstance(whole, AdamW):
        raise UsageError("mu_pscaling scales Adam's learning rates: train.optimizer must be 'adamw'")
    factor_of = {parameter: factors[name] for name, _, parameter in task.architecture.parameters(model)}
    groups = []
    for group in whole.param_groups:
        for factor in sorted({factor_of[parameter] for parameter in group["params"]}):
            own = [parameter for parameter in group["params"] if factor_of[parameter] == factor]
            groups.append({**group, "params": own, "lr": group["lr"] / factor, "weight_decay": group["weight_decay"] * factor})
    return AdamW(groups)
