"""The store survives: what cannot be read is named and left out, and the rest is used."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from growbench import cli, report
from growbench.analysis.comparison import analyse
from growbench.costs.accounts import Account, Unit
from growbench.errors import Interrupted, UsageError
from growbench.runs import jobs, store
from growbench.training import checkpoint, trainer
from growbench.training.checkpoint import Checkpoint, Checkpoints
from tests.processes import ended, mount_alone, remount, start
from tests.training.test_checkpoint import STATE

RECORD: dict[str, Any] = {
    "status": "finished", "experiment": "e", "title": "E", "method": "scratch", "seed": 0, "steps": 2, "tokens": 20,
    "config": {"experiment": {"train": {"steps": 2}}, "method": {}}, "phases": [{"steps": 2, "median_step_seconds": 0.5}],
    "cost": {unit: {"train": 10.0} for unit in Unit}, "final_val_loss": 2.0,
    "hardware": {"device": "cpu", "name": "Some CPU", "threads": 1, "precision": "float32"},
}  # fmt: skip
ROWS = [
    {"step": step, "val_loss": 3.0 - step, "flops": 5.0 * step, "seconds": 5.0 * step, "scored": True, "phase": "train"}
    for step in range(3)
]


def stored(folder: Path, record: str = json.dumps(RECORD), curve: str = "".join(json.dumps(row) + "\n" for row in ROWS)) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record)
    (folder / "curve.jsonl").write_text(curve)
    return folder


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("", "Expecting value"),
        ('{"status": "fin', "Unterminated string"),
        ("[1, 2]", "is not a run's record"),
        ('{"name": "somebody else\'s file"}', "status is missing"),
        (json.dumps(RECORD | {"seed": "zero"}), "seed: Input should be a valid integer"),
        (json.dumps(RECORD | {"cost": {"flops": {}}}), "cost.seconds: Field required"),
        (json.dumps(RECORD | {"cost": {"flops": {"coffee": 1}, "seconds": {}}}), "cost.flops.coffee"),
        (json.dumps(RECORD | {"schema_version": 4}), "schema_version = 4: this growbench reads up to 3"),
        (json.dumps(RECORD | {"config": {}}), "config.experiment: Field required"),
        (json.dumps(RECORD | {"final_val_loss": float("nan")}), "Out of range float values are not JSON compliant"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_and_the_others_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: str, reason: str
) -> None:
    stored(tmp_path / "scratch-seed0")
    broken = stored(tmp_path / "ligo-seed0", record)
    comparison = analyse(tmp_path)
    assert comparison.methods == ["scratch"]
    said = capsys.readouterr().err
    assert said.startswith(f"{broken} is left out: run.json cannot be read: ") and reason in said
    assert store.load(broken) is None
    assert capsys.readouterr().err == "", "said once"


def test_a_record_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path / "ligo-seed0")
    (folder / "run.json").write_bytes(b"\xff\xfe\x00")
    assert store.load(folder) is None
    assert f"{folder} is left out" in capsys.readouterr().err


def test_a_curve_is_used_up_to_what_is_no_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(row) for row in ROWS]
    for number, garbage in enumerate(
        [
            "{",
            "\0\0\0",
            "3",
            '{"step": 1}',
            '{"step": 1, "val_loss": "low", "flops": 0, "seconds": 0}',
            lines[1].replace("2.0", "NaN"),
        ]
    ):
        folder = stored(tmp_path / f"ligo-seed{number}", curve="\n".join([lines[0], garbage, *lines[1:]]))
        run = store.load(folder)
        assert run is not None and run.curve == ROWS[:1]
        assert "line 2 is not an evaluation: it and the 2 after it are left out" in capsys.readouterr().err


LINES = [json.dumps(row) for row in ROWS]
COUNTED = RECORD | {
    "evaluations": 3,
    "sha256": {"curve.jsonl": hashlib.sha256("".join(f"{line}\n" for line in LINES).encode()).hexdigest()},
}


@pytest.mark.parametrize(
    ("curve", "wrong"),
    [
        (None, "is missing"),
        ("", "is damaged (0 evaluations, where run.json counts 3)"),
        ("\n".join(LINES[:2]), "is damaged (2 evaluations, where run.json counts 3)"),
        ("\n".join([*LINES, LINES[2]]), "is damaged (4 evaluations, where run.json counts 3)"),
        ("\n".join([LINES[0], LINES[1].replace("2.0", "2.1"), LINES[2]]), "is damaged (sha256 differs)"),
        ("\n".join([LINES[0], LINES[1], "\0" * 20]), "is damaged (sha256 differs)"),
    ],
)
def test_a_finished_run_whose_curve_is_damaged_is_named_and_left_out(
    curve: str | None, wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shorter curve would say that the run has not reached the target."""
    stored(tmp_path / "scratch-seed0", json.dumps(COUNTED))
    folder = stored(tmp_path / "ligo-seed0", json.dumps(COUNTED | {"method": "ligo"}), curve or "")
    if curve is None:
        (folder / "curve.jsonl").unlink()
    assert analyse(tmp_path).methods == ["scratch"]
    assert capsys.readouterr().err == f"{folder} is left out: curve.jsonl {wrong}: growbench run trains the run again\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_curve_whose_line_ends_were_rewritten_is_no_damaged_one(end: str, tmp_path: Path) -> None:
    """As git does on Windows, or an editor that drops the last line end."""
    folder = stored(tmp_path / "scratch-seed0", json.dumps(COUNTED))
    (folder / "curve.jsonl").write_bytes(end.join(LINES).encode())
    run = store.load(folder)
    assert run is not None and run.curve == ROWS


def test_a_run_without_digests_counts_as_before_unless_its_curve_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(tmp_path / "scratch-seed0", curve=LINES[0])
    run = store.load(folder)
    assert run is not None and run.curve == ROWS[:1]
    (folder / "curve.jsonl").unlink()
    assert store.load(folder) is None and "curve.jsonl is missing" in capsys.readouterr().err


@given(cut=st.integers(0, 200))
def test_a_curve_cut_off_anywhere_keeps_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    folder = stored(tmp_path_factory.mktemp("cut") / "ligo-seed0", curve=text[:cut])
    run = store.load(folder)
    whole = text[:cut].count("\n") + (text[cut : cut + 1] == "\n")
    assert run is not None and run.curve == ROWS[:whole]


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, content)
    return file.getvalue()


DOCUMENTS = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)  # a mean loss of 2, as RECORD has


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ""),
        (b"PK\x03\x04", ""),
        (_saved(DOCUMENTS)[:-4], ""),
        (_saved(DOCUMENTS[:, 0]), "shape (2,)"),
        (_saved(DOCUMENTS[:, :1]), "shape (2, 1)"),
        (_saved(DOCUMENTS[:0]), "shape (0, 2)"),
        (_saved(DOCUMENTS.astype(complex)), "complex128"),
        (_saved(DOCUMENTS.astype(str)), "<U32"),
        (_saved(DOCUMENTS * np.nan), "not finite"),
        (_saved(DOCUMENTS * [1, 0]), "without labels"),
        (_saved(np.add(DOCUMENTS, [1, 0])), "is of another run: its mean loss is 3.0000, the run's 2.0000"),
    ],
)
def test_documents_that_are_damaged_or_of_another_run_count_as_not_recorded(
    content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("scratch", "ligo"):
        folder = stored(tmp_path / f"{method}-seed0", json.dumps(RECORD | {"method": method}))
        (folder / store.DOCUMENTS).write_bytes(_saved(DOCUMENTS))
    (folder / store.DOCUMENTS).write_bytes(content)
    assert "0.0000 (not recorded; not recorded)" in report.make(tmp_path).read_text()
    said = capsys.readouterr().err
    assert "ligo-seed0/documents.npy cannot be read, and counts as not recorded: " in said and reason in said


def test_a_record_of_an_older_version_is_used(tmp_path: Path) -> None:
    """What came later has the value that it had then, and the page does without."""
    run = store.load(stored(tmp_path / "scratch-seed0"))
    assert run is not None
    record = run.record
    assert (record.budget_share, record.inherited, record.peak_memory_bytes, record.error) == (1.0, None, None, None)
    assert "E" in report.make(tmp_path).read_text()


def test_a_finished_run_of_another_configuration_is_put_aside(miniature: Path, tmp_path: Path) -> None:
    """Each time; the report is of what came last."""
    arguments = ["run", str(miniature), "--methods", "scratch", "--results", str(tmp_path / "results"), "--set"]
    rates = [1e-3, 2e-3, 1e-3]
    for rate in rates:
        assert cli.main([*arguments, f"train.lr={rate}"]) == 0
    folder = tmp_path / "results" / "miniature"
    stored = [folder / "replaced" / "scratch-seed0-1", folder / "replaced" / "scratch-seed0-2", folder / "scratch-seed0"]
    runs = [store.load(path) for path in stored]
    assert [run.record.config.experiment["train"]["lr"] for run in runs if run] == rates
    assert runs[0] is not None and runs[2] is not None and runs[0].curve[-1]["val_loss"] == runs[2].curve[-1]["val_loss"]
    assert [run.folder.name for run in store.load_all(folder)] == ["scratch-seed0"]


def test_impossible_sizes_are_refused_before_the_data_are_read(
    write_miniature: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature = write_miniature(tmp_path, "modernbert", tmp_path / "absent.txt")
    assert cli.main(["run", str(miniature), "--results", str(tmp_path / "results"), "--set", "target.width=36"]) == 2
    assert "rotary positions need an even head size" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_full_disk_fails_the_run_and_loses_nothing(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run under way is marked failed with the reason, what it had measured is kept, and the others go on."""
    append = store.CurveFile.append

    def until_full(self: store.CurveFile, row: Any) -> None:
        if "stackbert" in str(self.path) and self.rows == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, row)

    arguments = ["run", str(miniature), "--methods", "stackbert,mslt", "--results", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(store.CurveFile, "append", until_full)
        assert cli.main(arguments) == 1
    assert "stackbert-seed0    failed: OSError: [Errno 28] No space left on device" in capsys.readouterr().err
    runs = {run.folder.name: run for run in store.load_all(tmp_path / "miniature")}
    assert {name: run.record.status for name, run in runs.items()} == {
        "scratch-seed0": "finished", "stackbert-seed0": "failed", "mslt-seed0": "finished"
    }  # fmt: skip
    assert len(runs["stackbert-seed0"].curve) == 4
    assert cli.main(arguments) == 0, "with room again, the failed run is trained anew"


def on_small_disks(arguments: Sequence[str]) -> int:
    """In a process of its own, which sees a disk of its own."""
    experiment, disk = arguments
    mount_alone(disk, "size=40k")  # holds records and curves, but no checkpoint, small model or report
    trainer.CHECKPOINT_SECONDS = 0.0

    def growbench(*arguments: str) -> None:
        print(f"exit code {cli.main(list(arguments))}", file=sys.stderr)

    run = ["run", experiment, "--results", f"{disk}/results", "--methods"]
    growbench(*run, "stackbert,ligo")
    remount(disk, "size=9m")
    growbench(*run, "stackbert,ligo")
    remount(disk, "ro")
    growbench(*run, "mslt")
    growbench("report", f"{disk}/results/miniature")
    growbench("report", f"{disk}/results/miniature", "--out", f"{experiment}-report")
    os.environ["GROWBENCH_CACHE"] = f"{disk}/cache"
    growbench(*run, "mslt", "--results", f"{experiment}-results")
    return 0


def test_a_small_disk_and_a_read_only_one(miniature: Path, tmp_path: Path) -> None:
    """Real ones. What does not fit is named and the rest is kept; with room again, only what is missing is trained."""
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of their own")
    (disk := tmp_path / "disk").mkdir()
    ((_, said),) = ended([start([str(miniature), str(disk)], on_small_disks)])
    assert "Traceback" not in said
    small, enough, read_only, report, report_elsewhere, cache, _ = re.split(r"(?<=exit code \d)\n", said)
    assert small.endswith("exit code 1")
    for line in (
        "phase-0-step-1.safetensors: this checkpoint could not be kept",
        "scratch-seed0      finished",
        "stackbert-seed0    finished",
        "source-seed0       failed",
        "ligo-seed0         needs the small model, whose training failed",
        f"cannot write the report to {disk}/results/miniature/report: No space left on device",
    ):
        assert line in small, line
    assert enough.endswith("exit code 0")
    for line in (
        "scratch-seed0      is done",
        "stackbert-seed0    is done",
        "source-seed0       finished",
        "ligo-seed0         finished",
    ):
        assert line in enough, line
    refused = f"growbench: cannot write results to {disk}/results/miniature: Read-only file system; choose another folder"
    assert read_only.startswith(refused) and read_only.endswith("exit code 2")
    assert report.startswith(f"growbench: cannot write the report to {disk}") and report.endswith("exit code 2")
    assert report_elsewhere == "exit code 0" and (tmp_path / "miniature.toml-report" / "index.html").exists()
    assert cache.startswith(f"growbench: cannot write the cache {disk}/cache") and cache.endswith("exit code 2")
    assert not (tmp_path / "miniature.toml-results" / "miniature").exists()


def with_little_room(arguments: Sequence[str]) -> int:
    """In a process of its own: checkpoints of a growing step on a disk that holds two of them and a half."""
    disk = Path(arguments[0])
    model = torch.nn.Linear(100, 500)
    held = Checkpoint.of(model, torch.optim.SGD(model.parameters()), torch.Generator(), STATE)
    held.save(disk.parent / "one")
    mount_alone(str(disk), f"size={(disk.parent / 'one').stat().st_size * 5 // 2 // 1024}k")
    checkpoints = Checkpoints(disk)
    for step in range(1, 7):
        checkpoints.save_step(0, step, held)
        print(*sorted(path.stem.rpartition("-")[2] for path in disk.iterdir()))
    (disk / "big").write_bytes(bytes(disk_room(disk)))
    checkpoints.save_step(0, 7, held)
    print(
        *sorted(path.stem.rpartition("-")[2] for path in disk.iterdir() if path.suffix), Checkpoints(disk).newest(0) is not None
    )
    return 0


def disk_room(disk: Path) -> int:
    return os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize


def test_a_results_folder_with_little_room_keeps_the_newest_checkpoints(tmp_path: Path) -> None:
    """On a real disk. When nothing fits any more, it keeps the last one that did."""
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of their own")
    (disk := tmp_path / "disk").mkdir()
    ((out, said),) = ended([start([str(disk)], with_little_room)])
    assert out.splitlines()[:6] == ["1", "1 2", "2 3", "3 4", "4 5", "5 6"]
    assert out.splitlines()[6] in ("6 7 True", "6 True"), "the older one makes room where that is enough"
    assert said == "" or "phase-0-step-7.safetensors: this checkpoint could not be kept" in said


def test_a_record_that_cannot_be_written_is_said_and_the_run_resumed(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last bytes on the disk: the methods after it run, and the next call makes the record from the last checkpoint."""
    write, arguments = store._write, ["run", str(miniature), "--methods", "stackbert", "--results", str(tmp_path)]

    def full(folder: Path, record: Any) -> None:
        if record.method == "scratch":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, record)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", full)
        assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert "run.json cannot be written: No space left on device" in said and "stackbert-seed0    finished" in said
    monkeypatch.setattr(trainer.Trainer, "_train", None)  # nothing is trained again
    assert cli.main(arguments) == 0


def test_a_run_that_was_resumed_elsewhere_says_so(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seconds are of two machines, and are excluded from comparison with either."""
    arguments = ["run", str(miniature), "--methods", "stackbert", "--results", str(tmp_path)]
    append = store.CurveFile.append

    def interrupted(self: store.CurveFile, row: Any) -> None:
        append(self, row)
        if "stackbert" in str(self.path) and self.rows == 6:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(store.CurveFile, "append", interrupted)
        patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(jobs, "device_name", lambda device: "Another one")
        assert cli.main(arguments) == 130
    assert cli.main(arguments) == 0
    run = store.load(tmp_path / "miniature" / "stackbert-seed0")
    assert run is not None and run.finished
    another = "device cpu, name Another one, threads 1, precision float32(, stepping [0-9.]+)?"
    assert re.fullmatch(another, run.record.hardware.earlier)
    assert "begun on device cpu, name Another one" in (tmp_path / "miniature" / "report" / "index.html").read_text()


def test_seconds_of_a_source_trained_elsewhere_are_not_known(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its FLOPs are: they are the same everywhere."""
    arguments = ["run", str(miniature), "--methods", "bert2bert", "--results", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "device_name", lambda device: "Another one")
        assert cli.main(arguments) == 0
    for name in ("bert2bert-seed0", "scratch-seed0"):
        shutil.rmtree(tmp_path / "miniature" / name)
    assert cli.main(arguments) == 0
    source, grown = (store.load(tmp_path / "miniature" / f"{name}-seed0") for name in ("source", "bert2bert"))
    assert source is not None and grown is not None
    assert grown.record.cost.flops[Account.SOURCE] == source.record.cost.flops[Account.TRAIN]
    assert grown.record.cost.seconds[Account.SOURCE] is None
    table = (tmp_path / "miniature" / "report" / "savings.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith("| bert2bert"))
    assert row.count("unknown") == 1, "the time saved with the source charged"
    page = (tmp_path / "miniature" / "report" / "index.html").read_text()
    assert (
        "No seconds of the training of the source compare, hence no saving in seconds with it charged: bert2bert-seed0." in page
    )


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    assert cli.main(["run", str(miniature), "--methods", "scratch", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "phase-0-step-1.safetensors: this checkpoint could not be kept: I/O error: No space left on device" in said
    assert not list(tmp_path.rglob("*.part"))


def row(step: int, train_loss: float | None = 1.0, **values: Any) -> dict[str, Any]:
    return {
        "step": step,
        "val_loss": 2.0,
        "train_loss": train_loss,
        "flops": 1,
        "seconds": 1.0,
        "scored": True,
        "phase": "train",
    } | values


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([(0, None), (5, 1.0), (5, None), (9, 1.0)], [0, 1, 2, 3]),  # two phases: the second begins where the first ended
        ([(567, 1.0), (574, 1.0), (567, 1.0), (574, 1.0), (581, 1.0)], [2, 3, 4]),  # all again
        ([(0, None), (5, 1.0), (9, 1.0), (5, 1.0), (9, 1.0)], [0, 3, 4]),
        ([(0, None), (0, None), (5, 1.0)], [1, 2]),
        ([(0, None), (5, 1.0), (5, None), (9, 1.0), (5, None), (9, 1.0)], [0, 1, 4, 5]),  # the second phase again
        ([(0, None), (5, 1.0), (5, None), (5, 1.0), (5, None), (9, 1.0)], [0, 3, 4, 5]),
    ],
)
def test_of_evaluations_that_were_made_again_the_last_ones_count(
    steps: list[tuple[int, float | None]], kept: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ligo-seed0"
    folder.mkdir()
    rows = [row(step, loss, seconds=float(place)) for place, (step, loss) in enumerate(steps)]
    (folder / "curve.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (folder / "run.json").write_text(json.dumps(RECORD))
    run = store.load(folder)
    assert run is not None
    assert [each["seconds"] for each in run.curve] == kept and run.cut == len(rows) - len(kept)
    said = capsys.readouterr().err
    assert (f"{run.cut} evaluations were made again after an interruption" in said) == (run.cut > 0)


def test_a_curve_with_fewer_evaluations_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    """Else the next ones would stand in the wrong place, and be written again after an interruption."""
    curve = store.CurveFile(tmp_path / "curve.jsonl")
    for step in range(3):
        curve.append(row(step))
    del curve[3:]
    with pytest.raises(UsageError, match="has 3 evaluations, its run's checkpoint 5: the same command trains the run again"):
        del curve[5:]
    assert curve.rows == 3


def test_a_trunks_rows_that_were_copied_in_part_are_copied_again(tmp_path: Path) -> None:
    trunk = store.CurveFile(tmp_path / "trunk.jsonl")
    for step in range(6):
        trunk.append(row(step))
    whole = trunk.path.read_text().splitlines(keepends=True)
    (tmp_path / "curve.jsonl").write_text("".join(whole[:2]) + whole[2][:10])  # as after a kill while they were copied
    curve = store.CurveFile(tmp_path / "curve.jsonl")
    curve.begin_as(trunk.path, 4)
    assert curve.rows == 4 and curve.path.read_text() == "".join(whole[:4])
    curve.append(row(9))
    curve.begin_as(trunk.path, 4)
    assert curve.rows == 5, "a run that has begun goes on"
