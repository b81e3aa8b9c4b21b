"""Which precision runs have where the experiment leaves it at auto: the fast one here, or that of the runs beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from growbench import cli
from growbench.config import loading
from growbench.config.schema import Experiment, Machine, Training
from growbench.costs import hardware
from growbench.errors import Interrupted
from growbench.runs import store
from growbench.runs.jobs import settled
from growbench.training import trainer
from growbench.training.parallel import Parallel
from growbench.training.precision import precision_of

CPU = torch.device("cpu")


@pytest.fixture
def miniature(write_miniature: Callable[..., Path], tmp_path: Path) -> Path:
    """The miniature experiment's file, with precision auto."""
    file = write_miniature(tmp_path)
    text, own = file.read_text(), 'precision = "float32"\n'
    assert own in text
    file.write_text(text.replace(own, ""))
    return file


def _fast(patch: pytest.MonkeyPatch, precision: str) -> None:
    """From now on a CPU on which this precision is the fast one."""
    patch.setattr(hardware, "_cpuinfo", lambda: {"flags": "avx512_bf16" if precision == "bf16" else ""})
    hardware.fast_precision.cache_clear()


@pytest.fixture(autouse=True)
def fast_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        _fast(patch, "float32")
        yield
    hardware.fast_precision.cache_clear()


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx512f avx512_bf16 sse", "bf16"),
        ("amx_bf16 amx_tile", "bf16"),
        ("avx2 avx512f avx512_vnni amx_int8", "float32"),
        (None, "float32"),  # as on other systems than Linux
    ],
)
def test_bf16_is_fast_where_the_processor_multiplies_in_it(monkeypatch: pytest.MonkeyPatch, flags: str | None, fast: str) -> None:
    fast_precision = hardware.fast_precision.__wrapped__  # without its cache
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: {} if flags is None else {"flags": flags})
    assert fast_precision("cpu") == fast
    assert fast_precision("cuda") == "bf16"


@pytest.mark.parametrize(
    ("training", "machine", "found"),
    [
        ("auto", "auto", "bf16"),
        ("auto", "float32", "float32"),
        ("float32", "bf16", "float32"),
        ("bf16", "float32", "bf16"),
    ],
)
def test_the_experiment_decides_before_the_machine(
    monkeypatch: pytest.MonkeyPatch, training: Any, machine: Any, found: str
) -> None:
    _fast(monkeypatch, "bf16")
    assert precision_of(Training(1, 1, 1.0, precision=training), Machine(precision=machine), CPU) == found


def test_a_machine_in_another_precision_has_the_same_experiment(miniature: Path) -> None:
    experiment = loading.load(str(miniature))
    assert loading.load(str(miniature), ["machine.precision=bf16"]).identity() == experiment.identity()
    assert loading.load(str(miniature), ["train.precision=bf16"]).identity() != experiment.identity()


def _run(miniature: Path, results: Path, methods: str, *more: str) -> int:
    return cli.main(["run", str(miniature), "--methods", methods, "--results", str(results), *more])


def _precisions(results: Path) -> dict[str, str]:
    return {run.name: run.record.hardware.precision for run in store.load_all(results / "miniature")}


def test_runs_on_such_a_processor_are_in_bf16_and_come_out_again(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`reproduce` trains a run in its own precision, on whatever processor."""
    _fast(monkeypatch, "bf16")
    assert _run(miniature, tmp_path, "bert2bert") == 0
    assert set(_precisions(tmp_path).values()) == {"bf16"} and len(_precisions(tmp_path)) == 3
    assert "precision:" not in capsys.readouterr().err
    _fast(monkeypatch, "float32")
    assert cli.main(["reproduce", *(str(tmp_path / "miniature" / f"{name}-seed0") for name in ("bert2bert", "scratch"))]) == 0


def test_a_run_with_a_source_in_another_precision_is_not_reproduced(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own training would be that of another source."""
    assert _run(miniature, tmp_path, "bert2bert") == 0
    _change(tmp_path / "miniature" / "source-seed0", precision="bf16")
    capsys.readouterr()
    runs = [str(tmp_path / "miniature" / f"{name}-seed0") for name in ("scratch", "bert2bert")]
    assert cli.main(["reproduce", *runs]) == 2
    said = capsys.readouterr()
    assert "bit-identical" in said.out and "is in float32, and its source was trained in bf16" in said.out + said.err


def test_later_runs_take_the_precision_of_earlier_ones(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(miniature, tmp_path, "scratch") == 0
    _fast(monkeypatch, "bf16")
    capsys.readouterr()
    for more in (["--dry-run"], []):
        assert _run(miniature, tmp_path, "stackbert", *more) == 0
        said = capsys.readouterr()
        told = f"precision: float32, as of the runs in {tmp_path / 'miniature'}, though bf16 is faster here"
        assert said.err.count(told) == (1 if more else 0)  # once a process
        assert not more or "float32 on cpu" in said.out
    assert set(_precisions(tmp_path).values()) == {"float32"}
    # what is said by hand goes before, and makes no other experiment: scratch still counts, and still decides for later runs
    assert _run(miniature, tmp_path, "mslt", "--set", "machine.precision=bf16") == 0
    assert _run(miniature, tmp_path, "scratch_short") == 0
    assert _precisions(tmp_path) == {
        "scratch-seed0": "float32", "stackbert-seed0": "float32", "mslt-seed0": "bf16", "scratch_short-seed0": "float32",
    }  # fmt: skip
    assert not (tmp_path / "miniature" / store.REPLACED).exists()
    page = (tmp_path / "miniature" / "report" / "index.html").read_text()
    assert "Trained in bf16: mslt-seed0; all others in float32." in page


@pytest.mark.parametrize("precision", ["float32", "bf16"])  # one of them is not the fast one here
def test_workers_take_it_too(miniature: Path, tmp_path: Path, precision: str) -> None:
    assert _run(miniature, tmp_path, "scratch", "--set", f"machine.precision={precision}") == 0
    assert _run(miniature, tmp_path, "scratch", "--seeds", "0,1,2", "--workers", "2") == 0
    assert set(_precisions(tmp_path).values()) == {precision} and len(_precisions(tmp_path)) == 3


def _change(folder: Path, **hardware: str) -> None:
    record = json.loads((folder / store.RECORD).read_text())
    record["hardware"] |= hardware
    (folder / store.RECORD).write_text(json.dumps(record))


@pytest.fixture
def experiment(miniature: Path) -> Experiment:
    return loading.load(str(miniature))


@pytest.fixture
def of_scratch(miniature: Path, tmp_path: Path) -> Path:
    """The run's folder, in bf16, in `results`."""
    assert _run(miniature, tmp_path / "results", "scratch", "--set", "machine.precision=bf16") == 0
    return tmp_path / "results" / "miniature" / "scratch-seed0"


def _settled(experiment: Experiment, *folders: Path) -> str:
    return settled(experiment, Parallel(CPU), *folders).machine.precision


def test_only_runs_that_compare_decide(experiment: Experiment, of_scratch: Path, tmp_path: Path) -> None:
    folder = of_scratch.parent
    assert _settled(experiment, folder) == "bf16"
    assert _settled(experiment, tmp_path / "absent", folder) == "bf16"
    assert _settled(experiment, tmp_path / "absent") == "float32"
    assert _settled(replace(experiment, machine=Machine(precision="float32")), folder) == "float32"
    longer = replace(experiment, train=replace(experiment.train, steps=experiment.train.steps + 1))
    assert _settled(longer, folder) == "float32"
    _change(of_scratch, device="cuda")
    assert _settled(experiment, folder) == "float32"
    for other in ("", "fp8"):  # as in an early record, and in a damaged one
        _change(of_scratch, device="cpu", precision=other)
        assert _settled(experiment, folder) == "float32"
    assert cli.main(["reproduce", str(of_scratch)]) == 2


def test_a_run_that_has_only_begun_decides_too(experiment: Experiment, of_scratch: Path) -> None:
    """It may be going on, or its process may have been killed: it goes on in its own precision."""
    config = json.loads((of_scratch / store.RECORD).read_text())["config"]
    (of_scratch / store.RECORD).unlink()
    for name, content in ("config.json", {"run": config}), ("hardware.json", ["a GPU", "device cpu, threads 1, precision bf16"]):
        assert _settled(experiment, of_scratch.parent) == "float32"
        (of_scratch / "checkpoints").mkdir(exist_ok=True)
        (of_scratch / "checkpoints" / name).write_text(json.dumps(content))
    assert _settled(experiment, of_scratch.parent) == "bf16"
    for damaged in ("", "[]", "[3]", "{}", '["precision bf16"]'):
        (of_scratch / "checkpoints" / "hardware.json").write_text(damaged)
        assert _settled(experiment, of_scratch.parent) == "float32"
    (of_scratch / "checkpoints" / "hardware.json").write_text('["device cpu, precision bf16"]')
    for experiment_as_stored in (3, "text", [1], {}, {"train": 3}, {"train": {"precision": "auto"}}):
        content = json.dumps({"run": {"experiment": experiment_as_stored}})
        (of_scratch / "checkpoints" / "config.json").write_text(content)
        assert _settled(experiment, of_scratch.parent) == "float32"


def test_a_killed_run_goes_on_in_its_precision(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: store.CurveFile, row: Any) -> None:
        if row["step"] == 6:
            raise Interrupted
        append(self, row)

    append = store.CurveFile.append
    with monkeypatch.context() as patch:
        patch.setattr(store.CurveFile, "append", killed)
        patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(store.RunFolder, "close", lambda *_: False)  # nor is a record written
        _fast(patch, "bf16")
        assert _run(miniature, tmp_path, "scratch") == 130
    _fast(monkeypatch, "float32")
    assert not _precisions(tmp_path)
    assert _run(miniature, tmp_path, "scratch") == 0
    run = store.load(tmp_path / "miniature" / "scratch-seed0")
    assert run is not None and run.record.hardware.precision == "bf16" and not run.record.hardware.earlier


def test_a_run_of_a_source_decides_as_well(miniature: Path, experiment: Experiment, tmp_path: Path) -> None:
    assert _run(miniature, tmp_path, "bert2bert", "--only", "source-seed0", "--set", "machine.precision=bf16") == 0
    assert [*_precisions(tmp_path)] == ["source-seed0"]
    assert _settled(experiment, tmp_path / "miniature") == "bf16"
    shutil.copytree(tmp_path / "miniature" / "source-seed0", tmp_path / "miniature" / "ki-seed0")
    _change(tmp_path / "miniature" / "ki-seed0", precision="float32")
    assert _settled(experiment, tmp_path / "miniature") == "bf16"  # before other methods, which may grow it


def test_all_processes_of_a_run_take_one_precision(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of them may be on a processor that is slow in bf16."""
    monkeypatch.setattr(Parallel, "any_process", lambda self, *flags: [True for _ in flags])
    _fast(monkeypatch, "bf16")
    assert _settled(experiment, tmp_path) == "float32"


def test_trials_of_tuning_take_it_too(miniature: Path, tmp_path: Path) -> None:
    assert _run(miniature, tmp_path, "scratch", "--set", "machine.precision=bf16") == 0
    asked = ["tune", str(miniature), "--methods", "stackbert", "--trials", "1", "--seeds", "7", "--results", str(tmp_path)]
    assert cli.main(asked) == 0
    trials = store.load_all(tmp_path / "miniature" / store.TUNING)
    assert {run.record.hardware.precision for run in trials} == {"bf16"}
