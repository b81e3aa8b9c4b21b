"""Stamps: what a run that was reproduced counts as, and what they say of the code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from growbench.analysis.selection import made_by_earlier_code
from growbench.config.schema import PROTOCOL
from growbench.costs.accounts import Account
from growbench.costs.hardware import Hardware
from growbench.registry import get
from growbench.runs import store
from growbench.runs.records import Cost, RunConfig, RunCosts, RunRecord, RunStatus
from growbench.runs.reproduced import Stamp
from growbench.training.records import PhaseRecord

RECORD = RunRecord(
    status=RunStatus.FINISHED,
    experiment="e",
    title="E",
    method="ligo",
    origin="growbench 0.1.0",
    seed=0,
    config=RunConfig({"train": {"steps": 10}}, {"operator_steps": 5}),
    cost=RunCosts({Account.TRAIN: 10, Account.SOURCE: None}, {Account.TRAIN: 2.5, Account.SOURCE: None}),
    steps=15,
    tokens=70,
    phases=[PhaseRecord(name="learn", steps=5), PhaseRecord(name="train", first_step=5, steps=10)],
    hardware=Hardware(device="cpu", name="Some CPU", threads=2),
)
STAMP = Stamp(
    date="2026-01-31",
    versions={"torch": "2.14.1", "commit": "f00"},
    hardware=Hardware(device="cpu", name="Another CPU", threads=1, stepping="1.2.3"),
    steps=6,
    evaluations=3,
    largest_difference=1e-7,
    origin="growbench sha256:abc",
    config=RunConfig({"train": {"steps": 10, "added": 0}}, {"operator_steps": 5}),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stored run."""
    (tmp_path / "run.json").write_text(RECORD.text())
    (tmp_path / "curve.jsonl").touch()
    return tmp_path


def loaded(folder: Path) -> store.Run:
    run = store.load(folder)
    assert run is not None
    return run


def test_a_stamp_reads_back_as_it_was_written(folder: Path) -> None:
    assert Stamp.read(folder) is None
    STAMP.write(folder)
    read = Stamp.read(folder)
    assert read == STAMP and read.hardware.stepping == "1.2.3"
    assert {path.name for path in folder.iterdir()} == {"run.json", "curve.jsonl", "reproduced.json"}


def test_a_stamped_run_has_the_origin_and_configuration_of_its_stamp(folder: Path) -> None:
    """All else is what its own record says, which stays as it is on file, even where more becomes known."""
    assert loaded(folder).record == RECORD
    STAMP.write(folder)
    run = loaded(folder)
    assert run.record == replace(RECORD, origin=STAMP.origin, config=STAMP.config) and run.stamp == STAMP
    store.state_source(run, Cost(flops=7.0))
    written = json.loads((folder / "run.json").read_text())
    assert written["origin"] == "growbench 0.1.0" and written["config"] == json.loads(RECORD.text())["config"]
    assert written["cost"]["flops"]["source"] == 7.0


@pytest.mark.parametrize(("steps", "counts"), [(3, False), (5, False), (6, True), (15, True)])
def test_a_stamp_counts_only_if_the_last_growth_was_made_again(folder: Path, steps: int, counts: bool) -> None:
    """The last phase begins after step 5."""
    replace(STAMP, steps=steps).write(folder)
    assert loaded(folder).record.origin == (STAMP.origin if counts else RECORD.origin)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"date": 3}'])
def test_a_file_that_is_no_stamp_does_not_count_and_is_named(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "reproduced.json").write_text(text)
    run = loaded(folder)
    assert run.record == RECORD and run.stamp is None
    error = capsys.readouterr().err
    assert error.startswith(f"{folder} counts as not reproduced: reproduced.json: ") and error.count("\n") == 1


def test_runs_of_other_code_are_made_by_earlier_code() -> None:
    """Those of built-in methods whose digest is another one, with their hyperparameters; of a loose file nothing is known."""
    ligo, like = get("ligo").origin, {"like": "interpolation"}
    control = get("random_source", like).origin
    cases = {
        True: [
            ("ligo", {}, "growbench 0.1.0"), ("ligo", {}, "unknown"), ("ligo", {"no_longer": 3}, ligo),
            ("random_source", {}, control), ("source", {}, ligo),
        ],
        False: [
            ("ligo", {}, ligo), ("ligo", {"operator_steps": 3, "train.lr": 0.1}, ligo), ("random_source", like, control),
            ("source", {}, get("scratch").origin), ("mine", {}, "mine.py sha256:abc"),
        ],
    }  # fmt: skip
    for earlier, runs in cases.items():
        for method, hyperparameters, origin in runs:
            record = replace(RECORD, method=method, config=RunConfig({"protocol": PROTOCOL}, hyperparameters), origin=origin)
            run = store.Run(Path("run"), record, [])
            assert made_by_earlier_code([run]) == [run] * earlier, (method, hyperparameters, origin)
            for former in ({}, {"protocol": PROTOCOL - 1}):
                run = replace(run, record=replace(record, config=RunConfig(former, hyperparameters)))
                assert made_by_earlier_code([run]) == [run], "whatever its code"
