"""`growbench check --aa`: what it trains is what it says, and what it measures decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from growbench import cli
from growbench.analysis.estimator import Estimate, Verdict
from growbench.analysis.savings import Judged
from growbench.config import loading
from growbench.costs.accounts import Account
from growbench.runs import store
from growbench.tools import aa_test, simulation
from growbench.tools.aa_test import miniature
from growbench.tools.claims import failures, promises

MINI = Path(__file__).parents[2] / "results" / "mini"
SHORT = ["train.steps=10", "train.warmup=1", "source.layers=1", "target.layers=1"]


@pytest.fixture
def check(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The check of the miniature experiment by the command, with two seeds each and a second of training."""
    monkeypatch.setattr(aa_test, "POOL", 6)
    monkeypatch.setattr(aa_test, "NULLS", 2)
    monkeypatch.setattr(aa_test, "DRAWS", 3)
    monkeypatch.setattr(aa_test, "PLANTED_SEEDS", 2)
    monkeypatch.setattr(aa_test, "SEEDS", (2,))
    monkeypatch.setattr(simulation, "SEEDS", (2,))
    noise = tmp_path / "noise"
    noise.mkdir()
    for name in ("gpt2-mini", "modernbert-mini"):  # a ladder, and single runs
        (noise / name).symlink_to(MINI / name)
    settings = [part for override in SHORT for part in ("--set", override)]
    places = ["--noise", str(noise), "--out", str(tmp_path)]
    return lambda *more: cli.main(["check", "--aa", str(miniature), "--repetitions", "2", *places, *settings, *more])


def test_the_command_writes_what_it_measured(
    check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = check(), tmp_path / "miniature"
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    outcomes, planted = pd.read_csv(folder / "outcomes.csv"), pd.read_csv(folder / "planted.csv")
    kept = promises(outcomes, planted)
    assert len(kept) == 3 * 4 + 4 and code == (0 if all(promise.kept for promise in kept) else 1)
    assert all(f"| {promise.text} | {promise.measured} | " in summary for promise in kept)
    assert summary.count("| yes |") == sum(promise.kept for promise in kept)
    assert summary.count("\n- ") == len(failures(outcomes)) and ("Not kept:" in summary) == bool(failures(outcomes))
    assert capsys.readouterr().out == summary and "torch 2" in summary and "--set train.steps=10 --set" in summary
    retrained = outcomes[outcomes["kind"] == "retrained"]
    assert retrained["comparisons"].tolist() == [3] and retrained["seeds"].tolist() == [2]
    assert planted["planted"].tolist() == [0.2, 0.0, 0.4, 0.0] and planted["ledger"].tolist() == ["reuse", "build"] * 2

    # no run is trained twice
    runs = store.load_all(folder / "runs" / "aa")
    assert sorted(run.record.seed for run in runs) == list(range(6))
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
        assert {row["lr"] for row in grown.curve[1:]} == {row["lr"] for row in scratch.curve[2:]} == {scratch.curve[2]["lr"]}
        assert grown.record.steps == scratch.record.steps
        assert source.record.cost.flops[Account.TRAIN] == grown.record.cost.flops[Account.SOURCE]


def test_nulls_are_other_runs_than_their_scratch(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set of a draw has runs of its own, and draws differ."""
    drawn: list[list[list[int]]] = []

    def seen(sets: Sequence[Sequence[int]]) -> list[Judged]:
        drawn.append([list(runs) for runs in sets])
        return [Judged(Estimate(), 1.0, Verdict.EVEN)] * 6

    monkeypatch.setattr(aa_test, "POOL", 40)
    monkeypatch.setattr(aa_test, "DRAWS", 5)
    monkeypatch.setattr(aa_test, "_train", lambda *_: None)
    monkeypatch.setattr(aa_test, "_stored", lambda folder, method, seeds: list(seeds))
    monkeypatch.setattr(aa_test, "_nulls", seen)
    monkeypatch.setattr(aa_test, "SEEDS", (3, 5))
    table = aa_test.null_table(aa_test.miniature(str(miniature), SHORT), tmp_path)
    assert table["seeds"].tolist() == [3, 5] and [len(sets[0]) for sets in drawn] == [3] * 5 + [5] * 5
    for sets in drawn:
        runs = [run for each in sets for run in each]
        assert len(sets) == 7 and len(set(runs)) == len(runs) and set(runs) <= set(range(40))
    assert len({str(sets) for sets in drawn}) == 10


def test_a_run_that_fails_is_one_line(
    check: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aa_test, "POOL", 1)
    assert check("--set", "train.lr=1e30") == 2
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs either a METHOD or --aa"),
        (["ligo", "--aa", "gpt2-tiny"], "needs either a METHOD or --aa"),
        (["ligo", "--repetitions", "3"], "--repetitions, --noise and --out: only with --aa"),
        (["ligo", "--noise", "results/mini"], "--repetitions, --noise and --out: only with --aa"),
        (["--aa", "gpt2-tiny", "--noise", "nonesuch"], "no experiment in nonesuch with two finished scratch seeds"),
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
