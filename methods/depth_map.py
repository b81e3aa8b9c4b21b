"""Depth maps: which layer of the small model each layer of the large one copies."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch

from growbench.method import Method, Phase, Phases, Task, UsageError, copying, deepen, interleave, repeat_block, stack, widen


class DepthMap(Method):
    """Copy the source's layers into the deeper model in one of six orders; papers disagree which is best.

    Formula: from L layers to N, each new layer copies one old one. map = "stack": l mod L (G_stack). "interpose": floor(l L / N),
    every layer repeated in place. "random": each old layer as often as in stack, in random order. "middle": the block of
    `block` layers around the middle is repeated where it stands, the last time cut off. "last": the same with the top `block`
    layers. "solar": the lower half of the new layers is the bottom of the source, the upper half its top; the layers around
    the source's middle come twice. Width, if it grows, as in bert2BERT's FPI.
    Paper: Du et al. 2024 (G_stack). "interpose": Wang et al. 2025 (2510.08008). "middle": one hop of MIDAS (2409.19044). "last":
    gradual stacking, and an ablation of DPT (2511.04981). "solar": Kim et al. 2023 (2312.15166), where 32 layers become 48: the
    first copy without its last 8 layers, the second without its first 8.
    Function preserving: no, whichever the order; in width at integer ratios.
    Claim: "stack" saves 35.3 % of the FLOPs of a 7B Llama at 300B tokens (the paper's speed-up of 54.6 %), and 23.7 to 35 % at
    410M to 3B, the source charged, cosine not decayed to its end. "interpose" overtakes it for sources trained beyond about 20
    tokens a parameter. The others: no saving claimed.
    Defaults: "stack", which the paper uses at two to four times the source's layers. block: half of the source's layers, because
    the papers leave it open; DPT's ablation copies the last layer alone (block = 1).
    Costs beyond training: copying only. The optimizer's state is new, and the learning rate follows the run's schedule from its
    start.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.15319"
    map: Literal["stack", "interpose", "random", "middle", "last", "solar"] = "stack"
    block: int = 0  # middle and last: layers that are repeated; 0: half of the source's

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        wide = widen(task.read(task.source), copying(small, large, task.rng))
        yield Phase(model=task.model_from(deepen(wide, self.layers(small.layers, large.layers, task.rng))))

    def layers(self, old: int, new: int, rng: torch.Generator) -> list[int]:
        """The old layer that each new one copies. Raises UsageError for a block, or an overlap, that the source has not."""
        whole, block = stack(old, new), self.block or (old + 1) // 2
        if not 1 <= block <= old:
            raise UsageError(f"block = {self.block}: must be from 1 to the source's {old} layers, or 0 for half of them")
        if self.map == "solar" and new > 2 * old:
            raise UsageError(f"map = solar: target.layers = {new} must be at most twice the source's {old}")
        maps: dict[str, Callable[[], list[int]]] = {
            "stack": lambda: whole,
            "interpose": lambda: interleave(old, new),
            "random": lambda: [whole[place] for place in torch.randperm(new, generator=rng).tolist()],
            "middle": lambda: repeat_block((old - block) // 2, block, old, new),
            "last": lambda: repeat_block(old - block, block, old, new),
            "solar": lambda: [*range((new + 1) // 2), *range(old - new // 2, old)],
        }
        return maps[self.map]()
