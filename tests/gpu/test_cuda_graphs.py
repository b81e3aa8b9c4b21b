"""Training by CUDA graphs: the run is the same as without, and what cannot be captured runs without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from growbench.architectures.families.gpt2 import GPT2
from growbench.errors import Interrupted
from growbench.training import graphs, trainer
from growbench.training.evaluation import Evaluation
from growbench.training.graphs import CapturedStep, CapturedValue
from growbench.training.step import Step
from tests.gpu.conftest import FLOAT32, Train
from tests.gpu.test_cuda_runs import losses, run

CUDA = torch.device("cuda")
GRAPHS, PLAIN = "machine.graphs=true", "machine.compile=off"

pytestmark = pytest.mark.gpu


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[CapturedStep]:
    """Holds the steps that are captured."""
    found, capture = [], graphs._capture

    def noted(step: Step, batch: Any) -> CapturedStep | str:
        captured = capture(step, batch)
        if isinstance(captured, CapturedStep):
            found.append(captured)
        return captured

    monkeypatch.setattr(graphs, "_capture", noted)
    return found


@pytest.mark.parametrize(
    ("method", "changes", "phases"),
    [
        ("scratch", [], ["train"]),
        ("scratch", ["target.dropout=0.5"], ["train"]),  # random numbers: the same ones
        ("scratch", ["machine.micro_batch=2"], ["train"]),
        ("scratch", ["train.optimizer=muon"], ["train"]),  # whose step is not captured
        ("scratch", ["train.clip=0.01"], ["train"]),
        ("bert2bert", [], ["train"]),
        ("stackbert", [], ["depth 1", "depth 1", "depth 2"]),
        ("ligo", [], ["train"]),  # learns its operator without graphs
        ("ki", [], ["train"]),  # inherits without graphs
    ],
)
def test_a_run_by_graphs_is_the_run(
    train: Train, captures: list[CapturedStep], method: str, changes: list[str], phases: list[str]
) -> None:
    """In float32: losses but for the rounding of the learning rate, which a graph reads in float32. FLOPs exactly."""
    expected, plain = train(method, CUDA, FLOAT32, PLAIN, *changes)
    assert not captures
    outcome, by_graphs = train(method, CUDA, FLOAT32, GRAPHS, *changes)
    assert by_graphs == pytest.approx(plain, rel=1e-6)
    assert [each.step.phase.name for each in captures] == phases
    assert outcome.costs.flops == expected.costs.flops
    assert outcome.costs.seconds["compilation"] > 0 == expected.costs.seconds["compilation"]
    assert all((each.clip_and_optimizer is None) == ("train.optimizer=muon" in changes) for each in captures)


@pytest.mark.parametrize("precision", [FLOAT32, "train.precision=bf16"])
def test_evaluations_by_graphs_are_as_without(train: Train, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluation of scratch behind its second step, done both ways on the same model."""
    found, means = [], Evaluation._means

    def noted(self: CapturedValue) -> Tensor:
        found.append(replay(self).clone())
        return found[-1]

    def again(self: Evaluation, model: Any, counted: bool) -> tuple[float, float | None]:
        scores = score(self, model, counted)
        if not counted and self._captured:
            with self._evaluating(model):
                assert scores[0] == pytest.approx(means(self, model)[0].item(), rel=1e-6)
        return scores

    replay, score = CapturedValue.__call__, Evaluation.scores
    monkeypatch.setattr(CapturedValue, "__call__", noted)
    monkeypatch.setattr(Evaluation, "scores", again)
    train("scratch", CUDA, precision, GRAPHS)
    assert len(found) == 11
    assert len({each.item() for each in found}) == 11


def test_a_run_by_graphs_in_bf16_is_the_run(train: Train, captures: list[CapturedStep]) -> None:
    _, plain = train("scratch", CUDA, "train.precision=bf16", PLAIN)
    _, by_graphs = train("scratch", CUDA, "train.precision=bf16", GRAPHS)
    assert len(captures) == 1
    assert by_graphs == pytest.approx(plain, rel=1e-4)


def test_a_step_that_waits_for_the_device_runs_without(
    train: Train, captures: list[CapturedStep], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = GPT2.forward

    def waiting(self: GPT2, *arguments: Any) -> Tensor:
        logits = forward(self, *arguments)
        return logits if logits[0, 0].item() < torch.inf else -logits

    monkeypatch.setattr(GPT2, "forward", waiting)
    _, plain = train("scratch", CUDA, FLOAT32, PLAIN)
    _, without = train("scratch", CUDA, FLOAT32, GRAPHS)
    assert not captures
    assert without == pytest.approx(plain, rel=1e-6)
    assert "phase 'train' runs without CUDA graphs: its steps wait for the device" in capsys.readouterr().err


def test_a_killed_run_resumes_to_the_same_losses(
    miniature: Path, tmp_path: Path, captures: list[CapturedStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout. The phase is captured again when it is resumed."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    options = ["--methods", "scratch", "--set", "target.dropout=0.5", "--set", GRAPHS]
    run(miniature, tmp_path / "whole", CUDA, *options)
    batch, batches = trainer.Trainer._batch, 0

    def counted(self: trainer.Trainer, *arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 8:
            raise Interrupted
        return batch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_batch", counted)
        run(miniature, tmp_path / "killed", CUDA, *options, code=130)
    shutil.copytree(tmp_path / "killed", tmp_path / "plain")
    run(miniature, tmp_path / "killed", CUDA, *options)
    run(miniature, tmp_path / "plain", CUDA, *options[:-2], "--set", PLAIN)  # resumed without graphs
    assert len(captures) == 3
    whole = losses(tmp_path / "whole", "scratch-seed0")
    assert len(whole) == 13
    for resumed in ("killed", "plain"):
        assert losses(tmp_path / resumed, "scratch-seed0") == pytest.approx(whole, rel=1e-6)


def test_the_host_launches_a_captured_step_at_once(train: Train, captures: list[CapturedStep]) -> None:
    """Launches, by the profiler."""
    train("scratch", CUDA, FLOAT32, GRAPHS)
    (captured,) = captures
    launches = []
    for step in (captured, captured.step):
        batch = captured.batch._replace(inputs=captured.batch.inputs.clone(), labels=captured.batch.labels.clone())
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        ) as seen:
            step.backward(batch, 0)
            step.update()
            torch.cuda.synchronize()
        launches.append(sum(each.count for each in seen.key_averages() if "Launch" in each.key))
    assert 0 < 5 * launches[0] < launches[1]
