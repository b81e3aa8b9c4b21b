"""Direct copy: the small model's weights in the corner of a random large model's."""

from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor

from growbench.method import Method, Phase, Phases, Task, UsageError, deepen, stack


class DirectCopy(Method):
    """Copy the small model's weights into the corner of a freshly initialised large model's, and stack its layers.

    Formula: W'[:n, :m] = W; all other entries stay random. Depth: layer l copies layer l mod L.
    Paper: DirectCopy in bert2BERT (Chen et al. 2022), direct copy in LiGO, which cites Network Morphism (Wei et al. 2016).
    Function preserving: new = "random" is not. new = "morph", whose new units have zero outgoing weights, preserves the function
    in heads and FFN, but not along the residual axis, because the new dimensions change the norms.
    Defaults: new = "random", as in bert2BERT; "morph" is as in Network Morphism.
    Costs beyond training: copying only. The optimizer's state is new, and the learning rate follows the run's schedule from its
    start.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1603.01670"
    new: Literal["random", "morph"] = "random"  # morph: random incoming weights, zero outgoing ones

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        for what, old, grown in (
            ("width / heads", small.head_size, large.head_size),
            ("heads / kv_heads", small.heads // small.key_value_heads, large.heads // large.key_value_heads),
        ):
            if old != grown:
                raise UsageError(f"direct_copy copies whole heads: target's {what} = {grown} must equal the source's {old}")
        stacked = deepen(task.read(task.source), stack(small.layers, large.layers))
        fresh = task.read(task.build())

        def filled(name: str) -> Tensor:
            corner, value = stacked[name].value, fresh[name].value.clone()
            if self.new == "morph" and stacked[name].consumes:
                value[..., corner.shape[-1] :] = 0
            value[tuple(slice(size) for size in corner.shape)] = corner
            return value

        yield Phase(model=task.model_from({name: replace(weight, value=filled(name)) for name, weight in fresh.items()}))
