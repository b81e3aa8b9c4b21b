"""`growbench check --aa`: what it trains is what it says, and what it measures decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from growbench import cli
from growbench.config import loading
from growbench.costs.accounts import Account
from growbench.runs import store
from growbench.tools import aa_test
from growbench.tools.aa_test import miniature, promises

SHORT = ["train.steps=10", "train.warmup=1", "source.layers=1", "target.layers=1"]


@pytest.fixture
def check(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The check of the miniature experiment by the command, with two seeds each and a second of training."""
    monkeypatch.setattr(aa_test, "TWIN_SEEDS", 2)
    monkeypatch.setattr(aa_test, "PLANTED_SEEDS", 2)
    settings = [part for override in SHORT for part in ("--set", override)]
    return lambda: cli.main(["check", "--aa", str(miniature), "--repetitions", "2", "--out", str(tmp_path), *settings])


def test_the_command_writes_what_it_measured(
    check: Callable[[], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = check(), tmp_path / "miniature"
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    twins, planted = pd.read_csv(folder / "aa.csv"), pd.read_csv(folder / "planted.csv")
    kept = promises(twins, planted)
    assert len(kept) == 6 and code == (0 if all(promise.kept for promise in kept) else 1)
    assert all(f"| {promise.text} | {promise.measured} | " in summary for promise in kept)
    assert summary.count("| yes |") == sum(promise.kept for promise in kept)
    assert capsys.readouterr().out == summary and "torch 2" in summary and "--set train.steps=10 --set" in summary
    assert twins["repetition"].tolist() == [0, 0, 1, 1] and twins["way"].tolist() == ["forth", "back"] * 2
    for row in twins.to_dict("records"):
        assert row["low"] <= row["saving"] <= row["high"]
        assert row["inside"] == (row["low"] <= 0 <= row["high"])
    assert planted["share"].tolist() == [0.2, 0.4]
    for _, planted_row in planted.iterrows():  # the target was trained for so long, as a source
        assert planted_row["reuse"] - planted_row["build"] == pytest.approx(planted_row["share"], rel=0.2)

    # every run was another seed's, and none is trained twice
    runs = store.load_all(folder / "runs" / "aa")
    assert sorted(run.record.seed for run in runs) == list(range(8))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/run.json")}
    assert check() == code
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/run.json")} == before

    # the planted method takes scratch up where it was after so many steps
    for share, steps in ((0.2, 2), (0.4, 4)):
        place = folder / "runs" / f"planted-{share}"
        source, scratch, grown = (store.load(place / f"{name}-seed1") for name in ("source", "scratch", "planted"))
        assert source and scratch and grown
        assert source.curve_loss == pytest.approx(scratch.curve[steps]["val_loss"], rel=1e-5)
        assert source.curve_loss == pytest.approx(grown.curve[0]["val_loss"], rel=1e-5)
        assert [row["lr"] for row in grown.curve[1:]] == [row["lr"] for row in scratch.curve[steps + 1 :]]
        assert source.record.cost.flops[Account.TRAIN] == grown.record.cost.flops[Account.SOURCE]


def test_a_run_that_fails_is_one_line(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [part for override in [*SHORT, "train.lr=1e30"] for part in ("--set", override)]
    assert cli.main(["check", "--aa", str(miniature), "--out", str(tmp_path), *settings]) == 2
    error = capsys.readouterr().err
    assert "a run of the check failed: scratch-seed0" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", sorted(loading.available()))
def test_every_experiment_has_a_miniature(name: str) -> None:
    large, small = loading.load(name), miniature(name, ["train.batch=4"])
    assert (small.target.layers, small.target.width, small.train.batch, small.train.steps) == (2, 32, 4, 120)
    assert small.source == small.target and small.source_train == small.train
    assert (small.architecture, small.data.corpus) == (large.architecture, large.data.corpus)
    changed = {key for key, value in asdict(small.train).items() if value != asdict(large.train)[key]}
    assert changed <= {"batch", "steps", "lr", "warmup"}


def table(savings: list[float], inside: int) -> pd.DataFrame:
    places = range(len(savings))
    return pd.DataFrame({"repetition": places, "saving": savings, "inside": [place < inside for place in places]})


def planted(reuse: float, build: float) -> pd.DataFrame:
    row = {"share": 0.2, "seeds": 3}
    for ledger, saving in (("reuse", reuse), ("build", build)):
        row |= {ledger: saving, f"{ledger}_low": saving - 0.1, f"{ledger}_high": saving + 0.1}
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("savings", "inside", "reuse", "build", "kept"),
    [
        ([0.01] * 10, 9, 0.22, -0.02, [True, True, True, True]),
        ([0.01] * 10, 8, 0.2, 0.0, [False, True, True, True]),
        ([-0.03] * 10, 10, 0.2, 0.0, [True, False, True, True]),
        ([-0.5, 0.5], 2, 0.24, 0.0, [True, True, False, True]),
        ([0.0, 0.0], 2, 0.2, -0.04, [True, True, True, False]),
    ],
)
def test_each_promise_decides(savings: list[float], inside: int, reuse: float, build: float, kept: list[bool]) -> None:
    assert [promise.kept for promise in promises(table(savings, inside), planted(reuse, build))] == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs either a METHOD or --aa EXPERIMENT"),
        (["ligo", "--aa", "gpt2-tiny"], "needs either a METHOD or --aa EXPERIMENT"),
        (["ligo", "--repetitions", "3"], "--repetitions and --out: only with --aa"),
        (["--aa", "nonesuch"], "unknown experiment 'nonesuch'"),
        (["--aa", "gpt2-tiny", "--set", "train.nonesuch=1"], "train.nonesuch"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("number", ["1", "-3", "x"])
def test_one_repetition_says_nothing(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["check", "--aa", "gpt2-tiny", "--repetitions", number])
    assert "must be a whole number, at least 2" in capsys.readouterr().err
