"""The small model is the same for every method: what one does to it reaches no other, and it is trained once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from growbench.config.loading import load
from growbench.method import Method, Phase, Phases, Task
from growbench.registry import Found, get
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.runs.execution import SourceModel, _sha256
from growbench.runs.jobs import Setting
from growbench.runs.records import Cost, RunStatus
from growbench.training.parallel import Parallel

CPU = torch.device("cpu")


class Spoils(Method):
    """Add one to a weight of the source, in place, and train from scratch; then perhaps fail."""

    paper: ClassVar[str] = ""
    fails: bool = False

    def phases(self, task: Task) -> Phases:
        next(task.source.parameters()).data.add_(1)
        trained = yield Phase(model=task.build(), steps=6)
        if self.fails and not math.isnan(trained.loss):  # in a plan nothing is trained
            raise RuntimeError("on purpose")
        yield Phase(model=trained.model)


def losses(experiment: Path, folder: Path, methods: list[Found]) -> list[float]:
    """The validation losses of bert2bert after these methods."""
    benchmark = Benchmark(Setting(load(str(experiment)), folder, Parallel(CPU)))
    benchmark.run([*methods, get("bert2bert")], [0])
    run = store.load(folder / "bert2bert-seed0")
    assert run is not None and run.finished
    return [row["val_loss"] for row in run.curve]


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_method_does_to_the_source_reaches_no_other(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    """Its own run fails, and says why; the next method ends as if it were alone."""
    alone = losses(miniature, tmp_path / "alone", [])
    after = losses(miniature, tmp_path / "after", [Found("spoils", Spoils(fails), "here")])
    assert after == alone
    spoilt = store.load(tmp_path / "after" / "spoils-seed0")
    assert spoilt is not None and spoilt.record.status == RunStatus.FAILED and spoilt.record.error is not None
    reason = "on purpose" if fails else "changed the shared source model: transformer.wte.weight; change a copy"
    assert reason in spoilt.record.error.message and "\n" not in spoilt.record.error.message
    place = rf"test_sources\.py, line \d+: RuntimeError: {reason}" if fails else re.escape(reason)
    assert re.search(f"spoils-seed0       failed: {place}", capsys.readouterr().err)


class Config:
    """As the configurations of transformers."""

    width = 3

    def to_dict(self) -> dict[str, int]:
        return {"width": self.width}


class Linear(nn.Linear):
    """Another class with the same parameters."""


class Unreadable:
    def __format__(self, _: str) -> str:
        raise ValueError


CHANGES: dict[str, tuple[Callable[[nn.Sequential], object], str]] = {
    "a parameter": (lambda model: model[0].weight.data.mul_(2), "0.weight"),
    "a buffer": (lambda model: model[1].running_mean.fill_(3), "1.running_mean"),
    "what is trained": (lambda model: model[0].bias.requires_grad_(True), "0.bias"),
    "a mode": (lambda model: model[2].train(), "module 2"),
    "a setting": (lambda model: setattr(model[2], "p", 0.9), "module 2"),
    "a hook": (lambda model: model.register_forward_hook(lambda *_: None), "module itself"),
    "a view": (lambda model: model[0].weight.detach().flatten()[1:].neg_(), "0.weight"),
    "other data": (lambda model: setattr(model[0].weight, "data", torch.zeros(3, 3)), "0.weight"),
    "another parameter": (lambda model: setattr(model[0], "bias", nn.Parameter(torch.ones(3), requires_grad=False)), "0.bias"),
    "a backward hook": (lambda model: model[0].register_full_backward_hook(lambda *_: None), "module 0"),
    "a forward of its own": (lambda model: setattr(model[0], "forward", torch.relu), "module 0"),
    "its class": (lambda model: setattr(model[0], "__class__", Linear), "module 0"),
    "its configuration": (lambda model: setattr(model.config, "width", 4), "module itself"),
    "what cannot be read": (lambda model: setattr(model[0], "in_features", Unreadable()), "module itself"),
    "a module less": (lambda model: model.pop(2), "module 2"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_of_a_source_is_named(what: str) -> None:
    change, name = CHANGES[what]
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model.config = Config()
    source = SourceModel(model, Cost())
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training
    with torch.no_grad():
        model(torch.ones(2, 3))
    assert source.changes() == []
    change(model)
    assert source.changes() == [name]


def test_a_tensor_that_has_lost_its_memory_is_not_read() -> None:
    """As on CUDA, where nothing else would stop it."""
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    assert _sha256(tensor) == "without memory"


def test_a_source_is_trained_once_for_all_targets(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the target's sizes and training are; its own decide."""

    def train(*overrides: str) -> str:
        Benchmark(Setting(load(str(miniature), overrides), tmp_path, Parallel(CPU))).run([get("bert2bert")], [0])
        return capsys.readouterr().err

    assert "source-seed0       finished" in train()
    file = tmp_path / "source-seed0" / "run.json"
    record = json.loads(file.read_text())
    record["config"]["experiment"] |= {"target": {"width": 32}, "train": {"steps": 12}}  # as earlier versions stored it
    file.write_text(json.dumps(record))
    for overrides in (["target.width=48", "target.heads=6"], ["train.steps=10", "source.steps=12"]):
        said = train(*overrides)
        assert "source-seed0       is done" in said and "bert2bert-seed0    finished" in said
    assert "source-seed0       finished" in train("source.ffn=32")
