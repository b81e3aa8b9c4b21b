"""What is damaged beside a stored run is named and made again, and nothing that a person put there is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growbench import cli
from growbench.costs.hardware import Hardware
from growbench.runs import store
from growbench.runs.execution import Execution
from growbench.runs.records import RunStatus
from growbench.training.records import HeldOutLoss
from tests.conftest import Once
from tests.runs.test_records import RECORD

HARDWARE = Hardware(device="cpu", name="Some CPU", threads=1)
HELD_OUT = HeldOutLoss(np.array([1.0, 3.0]), np.array([5, 5]))


def stored(folder: Path, identity: str = "first", status: RunStatus = RunStatus.FINISHED) -> store.RunFolder:
    """A run that ended so, with a file of a person's own."""
    run = store.RunFolder(folder / "m-seed0", {"run": identity}, HARDWARE)
    run.curve.append({"step": 1, "val_loss": 2.0, "flops": 1, "seconds": 1.0, "scored": True, "phase": "train"})
    run.close(replace(RECORD, status=status, final_val_loss=2.0), HELD_OUT)
    (run.path / "notes.txt").write_text("mine")
    return run


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_persons_own_file_stays_where_an_unfinished_run_is_removed(tmp_path: Path) -> None:
    run = stored(tmp_path, status=RunStatus.FAILED)
    (run.checkpoints / "plot.png").write_text("mine")
    (run.path / "run.json.0123abcd.part").write_text("of a killed process")
    store.RunFolder(run.path, {"run": "second"}, HARDWARE)
    own = {"notes.txt", "checkpoints/plot.png"}
    assert names(run.path) == own | {"curve.jsonl", "checkpoints/config.json", "checkpoints/hardware.json"}
    assert (run.path / "curve.jsonl").read_text() == ""


@pytest.mark.parametrize("record", [None, "{", '{"schema_version": 99, "status": "finished"}'])
def test_a_persons_own_file_goes_with_a_run_that_is_archived(tmp_path: Path, record: str | None) -> None:
    """A finished one, or one of which nobody can tell, as of a later version."""
    run = stored(tmp_path)
    if record:
        (run.path / "run.json").write_text(record)
    before = names(run.path)
    store.RunFolder(run.path, {"run": "second"}, HARDWARE)
    assert names(tmp_path / "replaced" / "m-seed0-1") == before
    assert "notes.txt" not in names(run.path)


def test_a_damaged_identity_begins_the_run_anew(tmp_path: Path) -> None:
    run = stored(tmp_path, status=RunStatus.INTERRUPTED)
    for damaged in (b"\xff\xfe", b"{", b"[" * 100_000):
        (run.checkpoints / "config.json").write_bytes(damaged)
        assert store.RunFolder(run.path, {"run": "first"}, HARDWARE).curve.rows == 0


def test_an_unfinished_curve_that_is_no_text_is_taken_as_it_is(tmp_path: Path) -> None:
    """No checkpoint fits it, so that the run begins anew."""
    run = stored(tmp_path, status=RunStatus.INTERRUPTED)
    run.curve.path.write_bytes(b"\xff\xfe\n\0\0")
    assert store.RunFolder(run.path, {"run": "first"}, HARDWARE).curve.rows == 1


def test_a_curve_that_changed_while_the_run_was_under_way_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """run.json says what was written, not what is there."""
    run = store.RunFolder(tmp_path / "m-seed0", {}, HARDWARE)
    for step in (1, 2):
        run.curve.append({"step": step, "val_loss": 2.0, "flops": 1, "seconds": 1.0, "scored": True, "phase": "train"})
    run.curve.path.write_text(run.curve.path.read_text().replace("2.0", "1.0"))
    assert run.close(replace(RECORD, status=RunStatus.FINISHED))
    assert store.load(run.path) is None and "curve.jsonl is damaged (sha256 differs)" in capsys.readouterr().err


def test_documents_that_were_changed_count_as_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where their mean is that of the run."""
    path = stored(tmp_path).path
    run = store.load(path)
    assert run is not None and run.documents is not None
    np.save(path / "documents.npy", np.array([[3.0, 5.0], [1.0, 5.0]], np.float32))
    run = store.load(path)
    assert run is not None and run.documents is None
    assert "documents.npy cannot be read, and counts as not recorded: is damaged (sha256 differs)" in capsys.readouterr().err


# --- whole runs

Results = Path


@pytest.fixture
def results(once: Once, write_miniature: Callable[..., Path], tmp_path: Path) -> Results:
    """Scratch and bert2bert of the miniature, trained once."""

    def train(folder: Path) -> None:
        assert cli.main(arguments(write_miniature(folder), folder)) == 0

    shutil.copytree(once("damage", train), tmp_path / "made")
    return tmp_path / "made"


def arguments(experiment: Path, folder: Path) -> list[str]:
    return ["run", str(experiment), "--methods", "bert2bert", "--results", str(folder)]


def again(results: Results, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The same command; the runs that it trained."""
    trained, run = set(), Execution.run

    def counted(self: Execution, *rest: Any) -> RunStatus:
        trained.add(self.job.name)
        return run(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Execution, "run", counted)
        assert cli.main(arguments(results / "miniature.toml", results)) == 0
    return trained


def losses(results: Results) -> dict[str, list[float]]:
    return {run.folder.name: [row["val_loss"] for row in run.curve] for run in store.load_all(results / "miniature")}


def test_a_run_whose_curve_is_damaged_is_trained_again(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report leaves it out. What there was of it is archived."""
    before, run = losses(results), results / "miniature" / "bert2bert-seed0"
    (run / "notes.txt").write_text("mine")
    lines = (run / "curve.jsonl").read_text().splitlines(keepends=True)
    (run / "curve.jsonl").write_text("".join(lines[:-3]))
    assert cli.main(["report", str(results / "miniature")]) == 0
    said = capsys.readouterr().err
    wrong = f"{run} is left out: curve.jsonl is damaged ({len(lines) - 3} evaluations, where run.json counts {len(lines)})"
    assert wrong in said
    page = (results / "miniature" / "report" / "savings.md").read_text()
    assert "bert2bert" not in page and "not reached" not in page
    assert again(results, monkeypatch) == {"bert2bert-seed0"} and losses(results) == before
    assert (results / "miniature" / "replaced" / "bert2bert-seed0-1" / "notes.txt").read_text() == "mine"
    assert again(results, monkeypatch) == set()


def test_a_source_that_is_damaged_is_trained_again(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a digest, as of an earlier version: only if it cannot be read; what it holds is taken as before."""
    folder = results / "miniature"
    file, before = folder / "source-seed0" / "model.safetensors", losses(results)
    whole = file.read_bytes()

    def damage(content: bytes, digest: bool = True) -> set[str]:
        shutil.rmtree(folder / "bert2bert-seed0")
        file.write_bytes(content)
        if not digest:
            record = json.loads((file.parent / "run.json").read_text())
            earlier = {key: value for key, value in record.items() if key not in ("sha256", "evaluations")}
            (file.parent / "run.json").write_text(json.dumps(earlier))
        return again(results, monkeypatch)

    flips = bytearray(whole)
    flips[-400:] = bytes(400)
    capsys.readouterr()
    assert damage(bytes(flips)) == {"source-seed0", "bert2bert-seed0"}
    assert f"{file} is damaged (sha256 differs): training it again" in capsys.readouterr().err
    assert losses(results) == before and file.read_bytes() == whole
    assert damage(bytes(flips), digest=False) == {"bert2bert-seed0"} and losses(results) != before
    assert damage(whole[:-8], digest=False) == {"source-seed0", "bert2bert-seed0"} and losses(results) == before
    assert f"{file} is damaged (" in capsys.readouterr().err


def test_checkpoints_of_a_run_that_was_killed_when_it_had_ended_are_removed(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its record and their removal. Nothing is trained for it."""
    folder = results / "miniature"
    for name in ("scratch-seed0", "source-seed0"):
        left = folder / name / "checkpoints"
        left.mkdir()
        for file in ("phase-0.safetensors", "phase-0-step-3.safetensors", "branch-4.safetensors", "config.json", "notes.txt"):
            (left / file).write_text("left")
    shutil.rmtree(folder / "bert2bert-seed0")  # else nobody asks for the source
    assert again(results, monkeypatch) == {"bert2bert-seed0"}
    assert {path.name for path in folder.rglob("checkpoints/*")} == {"notes.txt"}
