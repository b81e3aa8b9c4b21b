"""`growbench bench --methods`: what a step of each phase costs, against a plain step."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from growbench import cli
from growbench.config import loading
from growbench.costs.flops import count
from growbench.planning.plan import plan, plan_source
from growbench.registry import get, get_all
from growbench.runs import step_seconds
from growbench.runs.apart import Died
from growbench.tools import bench, phase_costs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a measurement, and no further processes, which take seconds to start and know nothing of this."""
    monkeypatch.setattr("growbench.tools.bench.apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(phase_costs, "SECONDS", 0)
    monkeypatch.setattr(phase_costs, "memory_alone", lambda *arguments: 1000)


def test_a_plugin_is_measured_in_a_process_of_its_own(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(function: Callable[..., Any], experiment: Any, spec: str, *_: Any) -> NoReturn:
        assert (function, spec) == (bench.measure_alone, "./mine.py")
        raise Died("ended by itself, with exit code 0")

    monkeypatch.setattr(bench, "apart", dies)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    assert cli.main(["bench", str(miniature), "--methods", "./mine.py", "--rounds", "5", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "growbench: ./mine.py: its process ended by itself, with exit code 0\n"


def test_the_table_has_every_phase_with_its_flops(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    measured = phase_costs.step_memory(experiment, "scratch", 0, 2048, torch.device("cpu"))
    parameters = (12 * 1024**2 + 2048 * 1024) * 4
    assert 3.5 * parameters < measured < 8 * parameters


def test_bench_refuses_a_folder_that_cannot_be_written_before_it_measures(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("growbench.tools.bench.PhaseBench", None)
    (tmp_path / "file").touch()
    command = ["bench", str(miniature), "--methods", "ligo", "--results", str(tmp_path / "file")]
    assert cli.main(command) == 2
    assert f"cannot write results to {tmp_path}/file/miniature: Not a directory" in capsys.readouterr().err


def test_bench_refuses_an_unknown_method(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(miniature), "--methods", "lego"]) == 2
    assert "did you mean ligo?" in capsys.readouterr().err


def flops_as_seconds(train: Callable[[int], Any], steps: int, device: torch.device) -> float:
    """A clock of a machine that does one FLOP a second."""
    return count(lambda: train(steps))[0]


def test_the_time_of_a_phase_is_that_of_its_own_steps(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operator, its teacher, and its sub-models as often as they come."""
    monkeypatch.setattr(phase_costs, "wall_seconds", flops_as_seconds)
    asked = ["--set", "target.layers=3", "--set", "bert2bert.sub_model_layers=1", "--set", "bert2bert.sub_model_share=0.5"]
    methods = ("ligo", "ki", "bert2bert")
    command = ["bench", str(miniature), *asked, "--methods", ",".join(methods), "--rounds", "5", "--results", str(tmp_path)]
    assert cli.main(command) == 0
    (machine,) = step_seconds.read(tmp_path / "miniature")
    experiment = loading.load(str(miniature), asked[1::2])
    expected = {name: plan(experiment, get_all([name], experiment.methods)[0], 300) for name in ("scratch", *methods)}
    expected["source"] = plan_source(experiment, 300)
    assert set(machine.methods) == set(expected)
    for name, phases in expected.items():
        found = machine.methods[name].phases
        assert [phase.name for phase in found] == [phase.name for phase in phases]
        assert [phase.steps for phase in found] == [phase.steps for phase in phases]
        assert [phase.step_seconds for phase in found] == pytest.approx([sum(p.flops_per_step.values()) for p in phases])
    assert machine.methods["ligo"].origin == get("ligo").origin
    assert machine.hardware.device == "cpu" and machine.hardware.precision == "float32"
    assert all(phase.growth_seconds > 0 for phase in machine.methods["ligo"].phases)


def test_a_bench_that_is_interrupted_leaves_the_file_as_it_was(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: phase_costs.PhaseBench) -> NoReturn:
        raise KeyboardInterrupt

    command = ["bench", str(miniature), "--methods", "scratch", "--rounds", "5", "--results", str(tmp_path)]
    assert cli.main(command) == 0
    before = (tmp_path / "miniature" / "step_seconds.json").read_bytes()
    monkeypatch.setattr(phase_costs.PhaseBench, "source", interrupted)
    assert cli.main([*command[:3], "ligo", *command[4:]]) == 130
    assert (tmp_path / "miniature" / "step_seconds.json").read_bytes() == before


def test_the_error_of_a_median_is_that_of_repeated_measurements() -> None:
    draws = np.random.default_rng(0).normal(1, 0.1, (4000, 25))
    errors = [phase_costs.Median.of(list(row)).error for row in draws]
    assert np.mean(errors) == pytest.approx(np.median(draws, axis=1).std(), rel=0.1)


def test_times_measured_on_a_busy_machine_are_called_uncertain(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = itertools.cycle([1.0, 1.1, 2.0, 1.4])
    monkeypatch.setattr(phase_costs, "wall_seconds", lambda train, steps, device: next(times))
    assert cli.main(["bench", str(miniature), "--methods", "ki", "--rounds", "5", "--results", str(tmp_path)]) == 0
    assert "a report uses none above 2 %" in capsys.readouterr().err.replace("\N{NO-BREAK SPACE}", " ")
