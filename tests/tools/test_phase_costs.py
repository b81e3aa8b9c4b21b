"""`growbench bench --methods`: what a step of each phase costs, against a plain step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from growbench import cli
from growbench.config import loading
from growbench.planning.plan import plan
from growbench.registry import get
from growbench.tools import phase_costs


def test_the_table_has_every_phase_with_its_flops(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(phase_costs, "memory_alone", lambda *arguments: 1000)  # processes take seconds to start
    mine = tmp_path / "mine.py"
    mine.write_text((Path(cli.__file__).parents[1] / "methods" / "scratch.py").read_text())
    results = tmp_path / "results"
    asked = ["bench", str(miniature), "--methods", f"ligo,{mine}", "--rounds", "5", "--results", str(results)]
    assert cli.main(asked) == 0
    _, _, plain, operator, train, own, source, stored = capsys.readouterr().out.strip().splitlines()
    experiment = loading.load(str(miniature))
    flops = [sum(phase.flops_per_step.values()) for phase in plan(experiment, get("ligo"), 300)]
    assert plain.startswith("plain") and "ligo: learn operator" in operator and "ligo: train" in train and "mine.py" in own
    ratios = [float(re.findall(r"\((\d+\.\d+) x\)", line)[0]) for line in (operator, train, own)]
    assert ratios == [pytest.approx(flops[0] / flops[1], abs=1e-3), 1, 1]
    assert source.startswith("source: train") and stored == f"stored as reference: {results / 'miniature' / 'step_seconds.json'}"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="elsewhere than on Linux a process has one peak only")
def test_memory_of_a_step_holds_weights_gradients_and_moments() -> None:
    overrides = [
        "source.layers=1",
        "target.layers=1",
        "target.width=1024",
        "target.heads=16",
        "data.sequence_length=16",
        "train.batch=1",
    ]
    experiment = loading.load("gpt2-tiny", overrides)
    threads, cpu = torch.get_num_threads(), torch.device("cpu")
    measured = phase_costs.step_memory(threads, experiment, "scratch", 0, 2048, cpu)
    parameters = (12 * 1024**2 + 2048 * 1024) * 4
    assert 3.5 * parameters < measured < 8 * parameters


def test_bench_refuses_an_unknown_method(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(miniature), "--methods", "lego"]) == 2
    assert "did you mean ligo?" in capsys.readouterr().err
