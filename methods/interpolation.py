"""Interpolation: every layer repeated in place."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task, copying, deepen, interleave, widen


class Interpolation(Method):
    """Copy the source's neurons and heads into the wider model, then repeat each of its layers in place.

    Formula: width as FPI of bert2BERT; layer l copies layer floor(l L1 / L2).
    Paper: Chang et al. 2018 (multi-level view of residual networks), which LiGO compares with in depth; AquilaMoE prints the
    index with the ratio inverted.
    Function preserving: in width at integer ratios, not in depth.
    Defaults: none to choose.
    Costs beyond training: none but the copying. New optimizer state, the run's learning rate from its start.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1710.10348"

    def phases(self, task: Task) -> Phases:
        source, target = task.source_config, task.target_config
        wide = widen(task.read(task.source), copying(source, target, task.rng))
        yield Phase(model=task.model_from(deepen(wide, interleave(source.layers, target.layers))))
