"""Several processes on one results folder: each run is done once, by one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from growbench.config.loading import load
from growbench.registry import get_all
from growbench.runs.benchmark import Benchmark
from growbench.runs.claims import Claims
from growbench.runs.jobs import Setting
from growbench.training.parallel import Parallel
from tests.processes import ended, start

METHODS = ["scratch", "stackbert", "ligo"]


def test_two_at_once_share_the_work(miniature: Path, tmp_path: Path) -> None:
    """Every run is finished by one process and found done by the other, the source too; the report is whole."""
    arguments = ["run", str(miniature), "--methods", ",".join(METHODS), "--results", str(tmp_path / "results")]
    said = [err for _, err in ended([start([*arguments, "--set", "train.steps=12"]) for _ in "12"])]
    runs = [f"{name}-seed0" for name in (*METHODS, "source")]
    for run in runs:
        finished = [f"{run:<18} finished" in each for each in said]
        assert sum(finished) == 1, run
        record = json.loads((tmp_path / "results" / "miniature" / run / "run.json").read_text())
        steps = [json.loads(line)["step"] for line in (tmp_path / "results" / "miniature" / run / "curve.jsonl").open()]
        assert record["status"] == "finished" and steps == sorted(steps)
    assert (tmp_path / "results" / "miniature" / "report" / "index.html").read_text().endswith("</html>\n")


def test_what_another_process_does_is_waited_for(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are done first; a claim that is given up is taken over, and one of a dead process is none."""
    folder = tmp_path / "results"
    code = (
        "import sys, filelock, time; own = filelock.FileLock(sys.argv[1]); own.acquire(); print('held', flush=1); time.sleep(99)"
    )
    lock = folder / ".locks" / "stackbert-seed0.lock"
    lock.parent.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    benchmark = Benchmark(Setting(load(str(miniature)), folder, Parallel(torch.device("cpu"))))
    wait = Claims.wait

    def until_it_dies(self: Claims, names: Collection[str]) -> None:
        wait(self, names)
        other.kill()

    monkeypatch.setattr(Claims, "wait", until_it_dies)
    try:
        assert benchmark.run(get_all(["scratch", "stackbert", "mslt"], {}), [0])
    finally:
        other.kill()
    said = capsys.readouterr().err
    order = [
        said.index(text)
        for text in (
            "mslt-seed0         finished",
            "stackbert-seed0    is being trained by another process",
            "stackbert-seed0    finished",
        )
    ]
    assert order == sorted(order)
    assert said.count("is being trained by another process") == 1
