"""What grows on a CUDA device: every method, every architecture's step by both optimizers, grown state, a grown checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from growbench import architectures, registry
from growbench.console import Progress
from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.data.shapes import shape_batch
from growbench.method import Task, Trained, task_loss
from growbench.tools.miniatures import VOCABULARY, Cell, RandomData
from growbench.training.state import Outcome
from growbench.training.trainer import Output, Trainer, Work
from tests.tools.test_grow import grow, saved

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OTHER_ARCHITECTURE = {"modernbert_tiling": "modernbert"}  # of methods that do not grow GPT-2


@pytest.fixture
def same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """New weights are drawn on the CPU, so that they are the same on every device."""
    build = Task.build

    def drawn(self: Task, *arguments: Any, **options: Any) -> nn.Module:
        return build(replace(self, device=CPU), *arguments, **options).to(self.device)

    monkeypatch.setattr(Task, "build", drawn)


def trained(
    name: str, architecture: str, device: torch.device, changes: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Outcome, list[float]]:
    """A method's run on a miniature with random data, in float32, and the losses of validation.

    `changes`: settings of the miniature; `options`: hyperparameters of the method.
    """
    method = registry.get(name, options).method
    cell = Cell(architecture).at(method.miniature).at({"train.precision": "float32", **(changes or {})})
    experiment, objective = cell.experiment, architectures.get(architecture).objective
    torch.manual_seed(1)
    source = architectures.get(architecture).build(experiment.sizes("source", VOCABULARY)).to(device)

    def resumed(model: nn.Module) -> Trained:
        """After a step at a rate of 0: a state, and the weights as they were."""
        optimizer = Task.of(experiment, "source", VOCABULARY, device).optimizer(model, lr=0.0)
        for parameter in model.parameters():
            parameter.grad = 1e-2 * parameter.detach()
        optimizer.step()
        optimizer.zero_grad()
        return Trained(model, optimizer, 1, 3.0)

    task = Task.of(experiment, "target", VOCABULARY, device).with_source(source.requires_grad_(False).eval(), resumed)
    data, costs, curve = RandomData(experiment.data, objective, experiment.train.batch), Costs(device), list[dict[str, Any]]()
    work = Work(task, data, 0, costs, experiment.machine)
    outcome = Trainer(work, Output(curve, Progress("test", 1, None, shown=False))).run(method)
    return outcome, [row["val_loss"] for row in curve]


@pytest.mark.gpu
@pytest.mark.usefixtures("same_start")
@pytest.mark.parametrize("name", sorted(registry.built_in()))
def test_every_method_trains_as_on_the_cpu(name: str) -> None:
    """The same FLOPs by account, and the same losses but for rounding."""
    architecture = OTHER_ARCHITECTURE.get(name, "gpt2")
    (there, expected), (here, found) = (trained(name, architecture, device) for device in (CPU, CUDA))
    assert here.costs.flops == there.costs.flops and here.costs.flops[Account.TRAIN] > 0
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.usefixtures("same_start")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["bert2bert", "stackbert"])
def test_an_optimizers_state_grows_as_on_the_cpu(name: str, optimizer: str) -> None:
    """That of the source, and that of an earlier stage."""
    changes = {"train.optimizer": optimizer}
    (_, expected), (here, found) = (trained(name, "gpt2", device, changes, state="grown") for device in (CPU, CUDA))
    assert here.phases[-1].optimizer == "kept"
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", architectures.names())
def test_a_step_of_every_architecture_is_that_of_the_cpu(device: torch.device, name: str, optimizer: str) -> None:
    """Loss and weights in float32. On the CPU itself: the same twice."""
    architecture = architectures.get(name)
    experiment = Cell(name, settings=(("train.optimizer", optimizer),)).experiment
    batch = shape_batch(experiment.data, architecture.objective, experiment.train.batch, VOCABULARY, CPU)
    torch.manual_seed(0)
    first = architecture.build(experiment.sizes("target", VOCABULARY))
    losses, weights = [], []
    for where in (CPU, device):
        model = copy.deepcopy(first).to(where)
        stepping = Task.of(experiment, "target", VOCABULARY, where).optimizer(model)
        loss = task_loss(model, batch.to(where))
        loss.backward()
        stepping.step()
        losses.append(loss.item())
        weights.append({key: parameter.detach().cpu() for key, parameter in model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    lr, before = experiment.train.lr, dict(first.named_parameters())
    assert any((value - before[key]).abs().max() > 0.1 * lr for key, value in weights[1].items())
    # where a gradient is all but 0, AdamW's first step is a step of lr in the direction of its rounding
    differing = [(weights[1][key] - value).abs() > 0.1 * lr for key, value in weights[0].items()]
    assert sum(int(each.sum()) for each in differing) < 0.01 * sum(each.numel() for each in differing)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma3", "modernbert"])
def test_a_grown_checkpoint_gives_the_same_logits_on_every_device(name: str, tmp_path: Path, device: torch.device) -> None:
    saved(name, tmp_path / "source")
    grown = architectures.get(name).library.load(grow(tmp_path / "source", tmp_path / "grown", to="layers=3,width=32")).eval()
    tokens = torch.randint(60, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = grown(tokens).logits
        found = grown.to(device)(tokens.to(device)).logits.cpu()
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
