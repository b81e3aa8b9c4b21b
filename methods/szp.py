"""Shrink, zero-pad, perturb: the small weights in the corner of an initialisation of the large model."""

import math
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from growbench.method import (
    WIDTHS,
    Maps,
    Method,
    ModelConfig,
    Pad,
    Phase,
    Phases,
    Task,
    UsageError,
    Weight,
    axis_length,
    deepen,
    map_of,
    stack,
    tunable,
    widen,
)


class Szp(Method):
    """Shrink the small model's weights, pad them with zeros to the large sizes, and add an initialisation of the large model.

    Formula: W' = shrink * pad(W) + noise * R. pad puts W in the first rows and columns and zeros elsewhere. R is an
    initialisation of the large model by muP with the small model as its base: the large model's own one, times sqrt(n/n') for
    matrices whose input grows from n to n', and times n/n' for an output matrix of its own. Norms and LayerScale are not shrunk:
    their old entries stay, and new ones are as initialised. Depth: layer l copies layer l mod L.
    Paper: Mallik et al. 2024 (shrink, pad, perturb) and 2026 (2605.13405: depth by stacking).
    Function preserving: no. Claim (2026): growth by a factor of 2 is the most reliable, with gains mostly below 20 tokens a
    parameter; beyond a largest factor scratch costs less.
    Defaults: shrink 0.4 and noise 1, which are growbench's own: the abstracts and the published configurations
    (Neeratyoy/warmstarting_exps) state no values. Shrink is to be tuned; noise 1 is muP's own initialisation. Nor do they say
    whether norms are shrunk; their gains start at 1, not around 0. muP's learning rates by layer are not used: the rate follows
    the run's schedule from its start, as for all methods. Heads are kept whole, so their size must not change. The optimizer's
    state is new; no other is known for shrunk weights.
    Costs beyond training: copying and drawing only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2411.07340"
    shrink: float = tunable(0.4, 0.1, 0.9)
    noise: float = tunable(1.0, 0.25, 2.0)  # times muP's initialisation

    def __post_init__(self) -> None:
        for key in ("shrink", "noise"):
            if getattr(self, key) < 0:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 0")

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        refuse_other_heads(small, large)
        maps: Maps = {axis: Pad(axis_length(axis, large)) for axis in WIDTHS}
        old = deepen(task.read(task.source), stack(small.layers, large.layers))
        fresh, padded = task.read(task.build()), widen(old, maps)

        def grown(name: str, weight: Weight) -> Tensor:
            initial = fresh[name].value
            if weight.role in ("norm", "layer_scale"):
                corner = old[name].value
                filled = initial.clone()
                filled[tuple(map(slice, corner.shape))] = corner
                return filled
            factor = 1.0
            if weight.consumes and map_of(maps, weight, weight.value.dim() - 1):
                ratio = old[name].value.shape[-1] / weight.value.shape[-1]
                factor = ratio if weight.role == "head" else math.sqrt(ratio)
            return self.shrink * weight.value + self.noise * factor * initial

        yield Phase(model=task.model_from({name: replace(w, value=grown(name, w)) for name, w in padded.items()}))


def refuse_other_heads(small: ModelConfig, large: ModelConfig) -> None:
    """Raise UsageError unless heads have the same size, and share keys and values in groups as large, as the source's do."""
    for what, old, new in (
        ("width / heads", small.head_size, large.head_size),
        ("heads / kv_heads", small.heads // small.key_value_heads, large.heads // large.key_value_heads),
    ):
        if old != new:
            raise UsageError(f"szp keeps heads whole: target's {what} = {new} must equal the source's {old}")
