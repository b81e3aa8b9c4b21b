"""Whole runs by the command line: a killed one, a ladder, a comparison of loops. On the device and on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from growbench import cli
from growbench.costs.hardware import device_name
from growbench.errors import Interrupted
from growbench.tools import throughput
from growbench.training import trainer
from tests.gpu.conftest import FLOAT32


def run(experiment: Path, results: Path, device: torch.device, *options: str, code: int = 0) -> None:
    """`growbench run`, in float32, so that what comes out twice differs by rounding alone. `code`: how it must end."""
    arguments = ["run", str(experiment), "--results", str(results), "--device", device.type, "--set", FLOAT32, *options]
    assert cli.main(arguments) == code


def rows(results: Path, name: str) -> list[dict[str, Any]]:
    (path,) = results.glob(f"*/{name}/curve.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(results: Path, name: str) -> list[float]:
    return [row["val_loss"] for row in rows(results, name)]


def record(results: Path, name: str) -> dict[str, Any]:
    (path,) = results.glob(f"*/{name}/run.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_a_killed_run_resumes_to_the_same_losses(
    miniature: Path, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout; a run that forgets its random states ends elsewhere, so this would be seen."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    options = ["--methods", "scratch", "--set", "target.dropout=0.5", "--set", "train.lr=1e-2", "--set", "train.steps=6"]
    run(miniature, tmp_path / "whole", device, *options)
    batch, batches = trainer.Trainer._batch, 0

    def counted(self: trainer.Trainer, *arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 5:
            raise Interrupted
        return batch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_batch", counted)
        run(miniature, tmp_path / "killed", device, *options, code=130)
    (*_, newest) = sorted((tmp_path / "killed").glob("*/scratch-seed0/checkpoints/phase-0-step-*.safetensors"))
    with safe_open(newest, framework="pt") as file:
        assert ("rng.cuda" in file.keys()) == (device.type == "cuda")  # noqa: SIM118
    shutil.copytree(tmp_path / "killed", tmp_path / "forgetful")
    run(miniature, tmp_path / "killed", device, *options)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_rng_state", lambda _: None)
        patch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
        run(miniature, tmp_path / "forgetful", device, *options)
    whole, resumed, forgetful = (losses(tmp_path / name, "scratch-seed0") for name in ("whole", "killed", "forgetful"))
    assert len(whole) == len(resumed) == 7
    assert resumed == pytest.approx(whole, rel=1e-5)
    assert abs(forgetful[-1] / whole[-1] - 1) > 1e-4


def test_a_ladder_equals_runs_of_their_own(miniature: Path, tmp_path: Path, device: torch.device) -> None:
    """A rung branches off the longest run's checkpoint, on the device, and ends as a run of that length alone."""
    wsd = ["--methods", "bert2bert", "--set", "train.schedule=wsd", "--set", "source.steps=4"]
    run(miniature, tmp_path / "ladder", device, *wsd, "--set", "train.steps=10", "--protocol", "ladder", "--budgets", "0.4,1")
    run(miniature, tmp_path / "alone", device, *wsd, "--set", "train.steps=4")
    rung, alone = "bert2bert-seed0-budget0.4", "bert2bert-seed0"
    assert losses(tmp_path / "ladder", rung) == pytest.approx(losses(tmp_path / "alone", alone), rel=1e-5)
    assert len(losses(tmp_path / "ladder", rung)) == 5
    stored = record(tmp_path / "ladder", rung)
    assert stored["inherited"]["flops"] > 0 < stored["inherited"]["seconds"]
    assert stored["cost"]["flops"]["train"] == record(tmp_path / "alone", alone)["cost"]["flops"]["train"]
    assert stored["hardware"]["device"] == device.type


def test_a_comparison_of_loops_is_made(
    miniature: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """growbench's loop, a bare one and transformers.Trainer, each with its tokens per second above 0.

    On a CPU float32 stands beside bf16.
    """
    monkeypatch.setattr(throughput, "SECONDS", 0.01)
    if device.type == "cpu":
        monkeypatch.setattr(throughput, "matrix_peak", lambda *_: 1e10)  # takes seconds
    options = ["--device", device.type, "--rounds", "5", "--set", "machine.compile=off", "--set", "train.precision=bf16"]
    assert cli.main(["bench", str(miniature), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert device_name(device) in lines[0] and "bf16" in lines[0]
    assert any(line.startswith("growbench in float32: ") for line in lines) == (device.type == "cpu")
    table = {line[:22].strip(): line[22:].split() for line in lines}
    assert all(float(table[loop][0]) > 0 for loop in ("bare loop", "growbench", "transformers.Trainer"))
    assert "peak memory" in lines[-1]
