"""FLOPs per step of every method, by two cost models, checked against fvcore."""

from __future__ import annotations

from typing import Literal

import torch

from growbench import architectures
from growbench.config.schema import Experiment
from growbench.costs.flops import count, fvcore_forward
from growbench.data.shapes import shape_batch


def fvcore_check(experiment: Experiment, which: Literal["source", "target"], vocabulary: int) -> tuple[int, int]:
    """FLOPs of a forward pass of the "source" or "target" on one sequence: by our counter and by fvcore's, to be equal."""
    architecture = architectures.of(experiment)
    model = architecture.build(experiment.sizes(which, vocabulary)).eval()
    batch = shape_batch(experiment.data, architecture.objective, 1, vocabulary, torch.device("cpu"))
    with torch.no_grad():
        ours, _ = count(lambda: model(batch.inputs, batch.positions))
        return ours, fvcore_forward(model, batch)
