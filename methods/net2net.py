"""Net2Net: wider by copies of units, deeper by identity layers."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from growbench.method import (
    Axis,
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
    tunable,
    widen,
)


class Net2Net(Method):
    """Copy neurons and heads, with division and a little noise, then add identity layers on top.

    Formula: wider: W'[a, b] = W[g(a), g(b)] / copies(g(b)), plus noise * std(W) * N(0, 1) on new entries of matrices. Deeper: new
    layers are copies of the top layer with attention output and second FFN matrix set to zero.
    Paper: Chen, Goodfellow, Shlens, ICLR 2016, section 2. The identity layer of transformers follows Network Morphism.
    Function preserving: without noise, at integer width ratios, in pre-norm models. In post-norm models the norms of an added
    layer change the function.
    Defaults: noise 0.01, because copies have equal gradients and would stay equal; the paper gives no number. The residual axis
    is copied evenly. The paper lowers the learning rate after growth; here it follows the run's schedule from its start.
    Costs beyond training: copying only. The optimizer's state is new.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1511.05641"
    noise: float = tunable(0.01, 1e-3, 0.1)  # in standard deviations of the grown matrix

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise UsageError(f"noise = {self.noise}: must be at least 0")

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        maps = copying(small, large, task.rng)
        wide = widen(task.read(task.source), maps)
        if self.noise:
            wide = self.noisy(wide, maps, task.rng)
        yield Phase(model=task.model_from(with_identities(wide, small.layers, large.layers)))

    def noisy(self, weights: Weights, maps: Maps, rng: torch.Generator) -> Weights:
        """Add noise to every matrix entry that belongs to a second or later copy of a unit."""

        def noisy(weight: Weight) -> Tensor:
            value, is_new = weight.value, torch.zeros(weight.value.shape, dtype=torch.bool)
            for dim, axis in enumerate(weight.axes):
                if isinstance(copies := maps.get(axis), Select):
                    is_new.index_fill_(dim, copies.further(), True)
            noise = torch.randn(value.shape, generator=rng) * is_new
            return value + noise.to(value) * (self.noise * value.std())

        is_matrix = {name: weight.consumes and weight.role != "norm" for name, weight in weights.items()}
        return {name: replace(w, value=noisy(w)) if is_matrix[name] else w for name, w in weights.items()}


def with_identities(weights: Weights, old: int, new: int) -> Weights:
    """Add layers on top: copies of the top layer that write zeros to the residual stream."""
    deeper = deepen(weights, [*range(old), *[old - 1] * (new - old)])
    silent = {name: weight for name, weight in deeper.items() if weight.residual and Axis.LAYER in weight.axes}
    for name, weight in silent.items():
        deeper[name] = replace(weight, value=torch.cat([weight.value[:old], torch.zeros_like(weight.value[old:])]))
    return deeper
