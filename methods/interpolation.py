"""Interpolation: every layer repeated in place."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task, copying, deepen, interleave, widen


class Interpolation(Method):
    """Copy the source's neurons and heads into the wider model, then repeat each of its layers in place.

    Formula: width as in bert2BERT's FPI. Depth: layer l copies layer floor(l L1 / L2), from L1 layers to L2.
    Paper: Chang et al. 2018 (multi-level view of residual networks), which LiGO's paper compares with in depth. AquilaMoE prints
    the index with an inverted ratio.
    Function preserving: in width at integer ratios, not in depth.
    Defaults: no choices.
    Costs beyond training: copying only. The optimizer's state is new, and the learning rate follows the run's schedule from its
    start.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1710.10348"

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        wide = widen(task.read(task.source), copying(small, large, task.rng))
        yield Phase(model=task.model_from(deepen(wide, interleave(small.layers, large.layers))))
