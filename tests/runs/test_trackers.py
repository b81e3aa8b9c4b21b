"""Runs in trackers: what was given is read back, live and afterwards, and a tracker that fails harms no run."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from growbench.runs.trackers import values_of
from tests.processes import answer

REFERENCE = Path(__file__).parents[2] / "results/reference/gpt2-tiny"


def rows_of(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """A run's evaluations: the step and the numbers."""
    rows = map(json.loads, (folder / "curve.jsonl").read_text().splitlines())
    return [(row["step"], values_of(row)) for row in rows]


def in_trackio(run: str, project: str) -> list[tuple[int, dict[str, float]]]:
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs(project, run)
    return [(log["step"], {key: value for key, value in log.items() if key not in ("step", "timestamp")}) for log in logs]


def in_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def records(content: bytes) -> Iterator[bytes]:
    """What a file of wandb holds: LevelDB's log format, behind seven bytes."""
    block, place, record = 2**15, 7, b""
    while place < len(content):
        if block - place % block < 7:  # too little for a header: padding
            place += block - place % block
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def shown(rows: list[tuple[int, dict[str, float]]]) -> dict[str, list[tuple[int, Any]]]:
    """As TensorBoard has them: 32-bit floats by name."""
    names = {name for _, values in rows for name in values}
    return {name: [(step, pytest.approx(values[name], rel=1e-6)) for step, values in rows if name in values] for name in names}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Two finished runs."""
    for name in ("scratch-seed0", "ligo-seed0"):
        shutil.copytree(REFERENCE / name, tmp_path / "gpt2-tiny" / name)
    return tmp_path / "gpt2-tiny"


@pytest.fixture
def trackio_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trackio import sqlite_storage

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")


def test_runs_are_exported_to_trackio(stored: Path, trackio_here: None) -> None:
    said = answer("export", stored, "--to", "trackio")
    assert said.code == 0 and "2 runs given to trackio, as project gpt2-tiny" in said.out, said.err
    assert in_trackio("ligo-seed0", "gpt2-tiny") == rows_of(stored / "ligo-seed0")


def test_runs_are_exported_to_tensorboard_once(stored: Path) -> None:
    """Exported again, they are shown once."""
    for _ in range(2):
        assert answer("export", stored, "--to", "tensorboard").code == 0
    found, expected = in_tensorboard(stored / "tensorboard" / "ligo-seed0"), shown(rows_of(stored / "ligo-seed0"))
    assert found.keys() == expected.keys() >= {"val_loss", "flops", "seconds", "lr"}
    for name, points in expected.items():
        assert found[name] == points, name


def test_runs_are_exported_to_wandb_offline(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    assert answer("export", stored, "--to", "wandb").code == 0
    (file,) = (stored / "wandb").glob("offline-run-*-ligo-seed0/*.wandb")
    losses, groups = [], set()
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.run.run_id:
            groups.add((record.run.project, record.run.run_group, record.run.display_name))
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        losses += [(items["_step"], items["val_loss"])] if "val_loss" in items else []
    assert groups == {("gpt2-tiny", "ligo", "ligo-seed0")}
    last = {step: values["val_loss"] for step, values in rows_of(stored / "ligo-seed0")}  # a step has one row: the last
    assert losses == list(last.items())


def test_all_curves_are_written_as_one_table(stored: Path, tmp_path: Path) -> None:
    import pandas as pd

    said = answer("export", stored, "--to", "csv", "--out", tmp_path / "all.csv")
    table = pd.read_csv(tmp_path / "all.csv")
    assert said.code == 0 and f"{len(table)} evaluations of 2 runs: {tmp_path / 'all.csv'}" in said.out
    of_ligo = table[table["run"] == "ligo-seed0"]
    assert list(of_ligo["val_loss"]) == [values["val_loss"] for _, values in rows_of(stored / "ligo-seed0")]
    assert set(table["method"]) == {"scratch", "ligo"}


def test_a_run_is_shown_while_it_goes_on(miniature: Path, tmp_path: Path) -> None:
    """And is the same run."""
    asked = ("run", miniature, "--methods", "scratch", "--set", "train.steps=4", "--results")
    assert answer(*asked, tmp_path / "plain").code == 0
    said = answer(*asked, tmp_path / "live", "--track", "tensorboard")
    assert said.code == 0 and "tensorboard" not in said.err, said.err
    folder = tmp_path / "live" / "miniature"
    assert in_tensorboard(folder / "tensorboard" / "scratch-seed0") == shown(rows_of(folder / "scratch-seed0"))
    losses = [
        [values["val_loss"] for _, values in rows_of(place / "miniature" / "scratch-seed0")]
        for place in (tmp_path / "plain", tmp_path / "live")
    ]
    assert losses[0] == losses[1]


def test_a_tracker_that_fails_costs_a_warning(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for trackio fails at the first evaluation."""
    (tmp_path / "trackio.py").write_text("def init(*_, **named): return named['group']")  # a text has no log
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = ("run", miniature, "--methods", "scratch", "--set", "train.steps=4", "--results", tmp_path / "results")
    said = answer(*asked, "--track", "trackio")
    assert said.code == 0, said.err
    assert said.err.count("trackio has failed: the run goes on without it; growbench export shows its curve afterwards") == 1
    assert json.loads((tmp_path / "results/miniature/scratch-seed0/run.json").read_text())["status"] == "finished"
    assert capfd.readouterr().err == "trackio: 'str' object has no attribute 'log'\n"


def test_what_cannot_be_exported_is_refused(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    for arguments, said in (
        (("export", stored, "--to", "trackio"), "trackio is not installed: pip install trackio"),
        (("run", "gpt2-tiny", "--track", "trackio", "--results", tmp_path / "none"), "trackio is not installed"),
        (("export", tmp_path, "--to", "csv"), "no run with a loss curve in"),
        (("export", stored, "--to", "wandb", "--out", tmp_path), "--out: only with --to csv"),
        (("export", stored, "--to", "csv", "--out", tmp_path), "Is a directory"),
    ):
        found = answer(*arguments)
        assert found.code == 2 and said in found.err and len(found.err.splitlines()) == 1
    assert not (tmp_path / "none").exists()
