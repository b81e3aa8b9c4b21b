"""What the tests of a CUDA device share. Where a claim makes sense on the CPU, the same test runs there too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from growbench import architectures, data, registry
from growbench.config import loading
from growbench.console import Progress
from growbench.costs.ledger import Costs
from growbench.method import Task
from growbench.training.state import Outcome
from growbench.training.trainer import Output, Trainer, Work

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FLOAT32 = "train.precision=float32"

Train = Callable[..., tuple[Outcome, list[float]]]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the CUDA device where there is one."""
    return torch.device(request.param)


@pytest.fixture
def train(miniature: Path) -> Train:
    """Trains a method on a device for the miniature experiment, with other values of its keys. The losses are of validation."""

    def run(method: str, device: torch.device, *changes: str) -> tuple[Outcome, list[float]]:
        experiment = loading.load(str(miniature), changes)
        texts = data.load(experiment.data, "causal", "bytes", experiment.train.batch)
        costs, curve = Costs(device), list[dict[str, Any]]()
        torch.manual_seed(0)
        with device:
            source = architectures.of(experiment).build(experiment.sizes("source", texts.vocabulary))
        task = Task.of(experiment, "target", texts.vocabulary, device, source=source.requires_grad_(False).eval())
        work = Work(task, texts, 0, costs, experiment.machine)
        output = Output(curve, Progress("test", 1, None, shown=False))
        found = registry.get(method, experiment.methods.get(method))
        outcome = Trainer(work, output).run(found.method)
        return outcome, [row["val_loss"] for row in curve]

    return run
