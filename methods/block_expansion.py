"""Block expansion: new layers that begin as identities, between frozen ones."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from growbench.method import Axis, Method, Phase, Phases, Task, UsageError, copying, deepen, widen


class BlockExpansion(Method):
    """Insert copies of layers that begin as identities, and train only these.

    Formula: from L to N layers, N - L copies are inserted, spread evenly: for N - L <= L, one behind every L / (N - L) layers, a
    copy of the layer below it. The matrices and biases of a copy that write to the residual stream (attention output, second FFN
    matrix) are zero. Only the copies are trained; all else is frozen. Width, if it grows, as in bert2BERT's FPI.
    Paper: Wu et al. 2024 (LLaMA-Pro), section 3.
    Function preserving: yes in pre-norm models; in width at integer ratios. In post-norm models the norms of a copy change the
    function.
    Claim: new knowledge without forgetting, 7B to 8.3B parameters with 80B tokens of code and mathematics. No saving is claimed.
    Defaults: the copies train, for the whole budget. trained = "existing" is the control that the paper lacks: the copies stay
    identities, frozen, and as many layers of the source train, those below the copies. "all" trains the whole model.
    Costs beyond training: copying only. Frozen layers cost their forward pass, and their backward pass down to the lowest layer
    that trains. The control also runs the copies that do nothing. The optimizer's state is new, and the learning rate follows the
    run's schedule from its start.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2401.02415"
    trained: Literal["new", "existing", "all"] = "new"

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        if small.layers == large.layers:
            raise UsageError(f"block_expansion inserts layers: target.layers = {large.layers} must be more than the source's")
        layers, is_new = expanded(small.layers, large.layers)
        wide = widen(task.read(task.source), copying(small, large, task.rng))
        old = ~torch.tensor(is_new, dtype=torch.bool)

        def silenced(value: Tensor) -> Tensor:
            return value.where(old.to(value.device).reshape(-1, *[1] * (value.dim() - 1)), 0.0)

        deeper = {
            name: replace(weight, value=silenced(weight.value)) if weight.residual and Axis.LAYER in weight.axes else weight
            for name, weight in deepen(wide, layers).items()
        }
        model = task.model_from(deeper)
        if self.trained != "all":
            below = [*is_new[1:], False]  # the layer under a copy, or under the lowest of several
            chosen = is_new if self.trained == "new" else [under and not new for under, new in zip(below, is_new, strict=True)]
            task.train_only(model, lambda name, layer: layer is not None and chosen[layer])
        yield Phase(model=model, name=f"{self.trained} layers")


def expanded(old: int, new: int) -> tuple[list[int], list[bool]]:
    """For each new layer the old one that it copies, and whether it is one of those that are inserted."""
    layers, is_new = [], []
    for layer in range(old):
        copies = (layer + 1) * (new - old) // old - layer * (new - old) // old
        layers += [layer] * (1 + copies)
        is_new += [False] + [True] * copies
    return layers, is_new
