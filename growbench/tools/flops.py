"""FLOPs per step of every method, by two cost models, checked against fvcore."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from growbench import architectures
from growbench.config.schema import Experiment
from growbench.costs.flops import count, fvcore_forward
from growbench.data.shapes import shape_batch, vocabulary_size
from growbench.planning.plan import plan
from growbench.registry import Found


def table(experiment: Experiment, methods: Iterable[Found]) -> str:
    """One line per phase: FLOPs of a step, counted (standard) and by the counter of LiGO's paper, and of the growth before it."""
    vocabulary = vocabulary_size(experiment.data)
    lines = [
        f"{experiment.name}: FLOPs per step; batch {experiment.train.batch} x {experiment.data.positions}",
        f"{'method':<18} {'phase':<18} {'steps':>8} {'standard':>22} {'ligo_paper':>22}   by account (standard)",
    ]
    for found in methods:
        for phase in plan(experiment, found, vocabulary):
            accounts = ", ".join(f"{account} {flops:.0f}" for account, flops in phase.flops_per_step.items())
            paper = "-" if phase.paper_flops_per_step is None else phase.paper_flops_per_step
            lines.append(
                f"{found.name:<18} {phase.name:<18} {phase.steps:>8} {sum(phase.flops_per_step.values()):>22.0f}"
                f" {paper:>22}   {accounts}; growth {phase.growth_flops}"
            )
    return "\n".join(lines)


def compare_with_fvcore(experiment: Experiment) -> tuple[str, bool]:
    """FLOPs of a forward pass of source and target by our counter and by fvcore's, as text, and whether they are equal."""
    vocabulary = vocabulary_size(experiment.data)
    sizes: tuple[Literal["source", "target"], ...] = ("source", "target")
    counts = {which: fvcore_check(experiment, which, vocabulary) for which in sizes}
    lines = [
        f"forward of the {which}, one sequence: growbench {ours}, fvcore {theirs}: {'equal' if ours == theirs else 'NOT EQUAL'}"
        for which, (ours, theirs) in counts.items()
    ]
    return "\n".join(lines), all(ours == theirs for ours, theirs in counts.values())


def fvcore_check(experiment: Experiment, which: Literal["source", "target"], vocabulary: int) -> tuple[int, int]:
    """FLOPs of a forward pass of the source or target on one sequence or image, by our counter and by fvcore's."""
    architecture = architectures.of(experiment, which)
    model = architecture.build(experiment.sizes(which, vocabulary)).eval()
    batch = shape_batch(experiment.data, architecture.objective, 1, vocabulary, torch.device("cpu"))
    with torch.no_grad():
        ours, _ = count(lambda: model(batch.inputs, batch.positions))
        return ours, fvcore_forward(model, batch)
