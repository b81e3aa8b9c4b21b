"""`growbench reproduce`: what today's code makes again is stamped and counts as done; what it does not make is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from growbench import cli, registry
from growbench.config import loading
from growbench.config.schema import PROTOCOL
from growbench.errors import UsageError
from growbench.planning.budgets import Budgets
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.runs.jobs import Setting
from growbench.tools.reproduce import Comparison, compare, experiment_of, judge
from growbench.training.parallel import Parallel
from tests.conftest import Once, WriteMiniature

RESULTS = Path(__file__).parents[2] / "results"
METHODS = ("scratch", "ligo", "stackbert", "random_source")
SETTINGS = ("--set", "train.schedule=wsd", "--set", "ligo.operator_lr=0.01", "--set", "random_source.like=interpolation")


class Results:
    """The miniature benchmark's results, and the commands on them."""

    def __init__(self, experiment: Path, folder: Path) -> None:
        self.experiment, self.folder = experiment, folder

    def __truediv__(self, run: str) -> Path:
        return self.folder / "miniature" / run

    def run(self, *arguments: str) -> int:
        shared = ["--methods", ",".join(METHODS), "--results", str(self.folder), *SETTINGS]
        return cli.main(["run", str(self.experiment), *shared, *arguments])

    def reproduce(self, *runs: str, steps: str | None = None) -> int:
        return cli.main(["reproduce", *(str(self / run) for run in runs), *(["--steps", steps] if steps else [])])

    def change(self, run: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a stored run's record."""
        record = json.loads((self / run / "run.json").read_text())
        change(record)
        (self / run / "run.json").write_text(json.dumps(record))

    def change_row(self, run: str, row: int, **changes: Any) -> None:
        """Change an evaluation of a stored run, as if the run had made it so."""
        rows = [json.loads(line) for line in (self / run / "curve.jsonl").read_text().splitlines()]
        rows[row] |= changes
        curve = "".join(f"{json.dumps(each)}\n" for each in rows)
        (self / run / "curve.jsonl").write_text(curve)
        sha256 = hashlib.sha256(curve.encode()).hexdigest()
        self.change(run, lambda record: record["sha256"].update({"curve.jsonl": sha256}))

    def stamp(self, run: str) -> dict[str, Any]:
        stamp: dict[str, Any] = json.loads((self / run / "reproduced.json").read_text())
        return stamp


@pytest.fixture(scope="module")
def trained(write_miniature: WriteMiniature, once: Once) -> Results:
    """Four methods, two of them at smaller budgets too, trained once."""

    def train(folder: Path) -> None:
        experiment = loading.load(str(write_miniature(folder)), SETTINGS[1::2])
        setting = Setting(experiment, folder / "results" / "miniature", Parallel(torch.device("cpu")))
        shares = {"scratch": (1.0,), "ligo": (0.5, 0.75, 1.0), "stackbert": (0.5, 1.0), "random_source": (1.0,)}
        for found in registry.get_all(METHODS, experiment.methods):
            assert Benchmark(setting, Budgets(shares[found.name])).run([found], [0])

    folder = once("to be reproduced", train)
    return Results(folder / "miniature.toml", folder / "results")


@pytest.fixture
def results(trained: Results, tmp_path: Path) -> Results:
    """A copy to spoil."""
    shutil.copytree(trained.folder, tmp_path / "results")
    return Results(trained.experiment, tmp_path / "results")


def made_by_earlier_code(record: dict[str, Any]) -> None:
    """As it was stored before methods had a digest, and models some of their keys."""
    record["origin"] = "growbench 0.1.0"
    for which in ("source", "target"):
        if which in record["config"]["experiment"]:
            del record["config"]["experiment"][which]["kv_heads"]


def test_what_todays_code_makes_again_is_bit_identical_and_stamped(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    """All growth and two evaluations more, or as many steps as are asked for; with what made them, and where."""
    capsys.readouterr()
    assert results.reproduce("scratch-seed0", "ligo-seed0", "source-seed0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[::2]] == [
        "scratch-seed0 2 of 12 steps, 3 evaluations: bit-identical",
        "ligo-seed0 5 of 15 steps, 7 evaluations: bit-identical",
        "source-seed0 2 of 12 steps, 3 evaluations: bit-identical",
    ]
    stamp = results.stamp("ligo-seed0")
    assert (stamp["steps"], stamp["evaluations"], stamp["largest_difference"]) == (5, 7, 0.0)
    assert stamp["origin"] == registry.get("ligo").origin and stamp["config"]["method"]["operator_lr"] == 0.01
    for said in (stamp["versions"]["commit"], stamp["versions"]["torch"], stamp["hardware"]["name"], stamp["date"]):
        assert said in lines[3]
    assert results.reproduce("ligo-seed0", steps="all") == 0
    assert results.stamp("ligo-seed0")["steps"] == 15


@pytest.mark.parametrize("run", ["stackbert-seed0", "stackbert-seed0-budget0.5", "random_source-seed0"])
def test_a_run_is_made_again_to_its_end(results: Results, run: str) -> None:
    assert results.reproduce(run, steps="all") == 0
    assert results.stamp(run)["largest_difference"] == 0.0


def test_runs_that_branched_off_a_longer_one_are_made_again_as_its_branches(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they share is trained once, in whatever order they are named."""
    runs = ["ligo-seed0-budget0.75", "ligo-seed0-budget0.5"]
    for run in runs:
        assert json.loads((results / run / "run.json").read_text())["inherited"]
    capsys.readouterr()
    assert results.reproduce(*runs, steps="all") == 0
    out, err = capsys.readouterr()
    assert out.count("bit-identical") == 2 and [results.stamp(run)["steps"] for run in runs] == [12, 9]
    trunk = [line for line in err.splitlines() if line.startswith("ligo-seed0  ") and " step " in line]
    assert len(trunk) == len(set(trunk)) > 0


def test_a_run_of_earlier_code_counts_as_done_once_it_was_reproduced(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its stamp it would be trained again."""
    for run in ("scratch-seed0", "ligo-seed0"):
        results.change(run, made_by_earlier_code)
    assert results.reproduce("scratch-seed0") == 0
    capsys.readouterr()
    assert results.run() == 0
    said = capsys.readouterr().err
    assert "scratch-seed0      is done" in said and "ligo-seed0         was made by other code of its method" in said
    assert json.loads((results / "scratch-seed0" / "run.json").read_text())["origin"] == "growbench 0.1.0"
    assert json.loads((results / "ligo-seed0" / "run.json").read_text())["origin"] == registry.get("ligo").origin


def test_too_few_steps_do_not_make_it_count_as_done(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    """LiGO's operator is learned in the first three; the target begins to be trained after them."""
    results.change("ligo-seed0", made_by_earlier_code)
    assert results.reproduce("ligo-seed0", steps="3") == 0
    assert "does not show that today's code makes the run" in capsys.readouterr().out
    run = store.load(results / "ligo-seed0")
    assert run is not None and run.record.origin == "growbench 0.1.0"


def test_a_source_whose_model_is_not_on_file_is_trained_again(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    """And compared with its own run, to its end; runs that lie beside one another share it."""
    (results / "source-seed0" / "model.safetensors").unlink()
    capsys.readouterr()
    assert results.reproduce("ligo-seed0", "ligo-seed0-budget0.5") == 0
    out, err = capsys.readouterr()
    assert err.count("source-seed0       has no stored model that today's code made: training it again") == 1
    assert "source-seed0       12 of 12 steps, 13 evaluations: bit-identical" in out
    assert results.stamp("source-seed0")["steps"] == 12
    assert not (results / "source-seed0" / "model.safetensors").exists()


def test_a_source_that_is_made_otherwise_fails_the_runs_grown_from_it(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if these are equal as far as they were made again."""
    results.change("source-seed0", made_by_earlier_code)
    results.change_row("source-seed0", -1, val_loss=5.0)
    assert results.reproduce("ligo-seed0", steps="1") == 1
    out = capsys.readouterr().out
    assert "source-seed0       12 of 12 steps, 13 evaluations: DIFFERENT: losses differ by up to" in out
    assert "ligo-seed0         1 of 15 steps, 2 evaluations: bit-identical" in out


def test_on_one_machine_every_bit_counts(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    """What is different is not stamped, and loses the stamp that it had."""
    assert results.reproduce("scratch-seed0") == 0
    losses = [row["val_loss"] for row in map(json.loads, (results / "scratch-seed0" / "curve.jsonl").read_text().splitlines())]
    results.change_row("scratch-seed0", 2, val_loss=losses[2] + 1e-7)
    capsys.readouterr()
    assert results.reproduce("scratch-seed0") == 1
    assert "DIFFERENT: losses differ by up to 1e-07 from step 2 on, on the same hardware" in capsys.readouterr().out
    assert not (results / "scratch-seed0" / "reproduced.json").exists()


@pytest.mark.parametrize(
    ("elsewhere", "reason"),
    [
        (lambda record: record["hardware"].update(name="Another CPU"), "it ran on device cpu, name Another CPU"),
        (lambda record: record["hardware"].update(stepping=""), "it ran on a CPU of unknown stepping"),
        (lambda record: record["hardware"].update(earlier="a GPU"), "it was resumed on other hardware"),
        (lambda record: record["versions"].update(torch="1.0"), "it ran with torch 1.0"),
    ],
)
def test_on_another_machine_rounding_may_differ(
    results: Results, capsys: pytest.CaptureFixture[str], elsewhere: Callable[[dict[str, Any]], None], reason: str
) -> None:
    results.change("scratch-seed0", elsewhere)
    row = json.loads((results / "scratch-seed0" / "curve.jsonl").read_text().splitlines()[1])
    results.change_row("scratch-seed0", 1, val_loss=row["val_loss"] + 0.002)
    assert results.reproduce("scratch-seed0") == 0
    assert f"equal but for rounding: losses differ by up to 0.002 from step 1 on; {reason}" in capsys.readouterr().out
    assert results.stamp("scratch-seed0")["largest_difference"] == pytest.approx(0.002)
    results.change_row("scratch-seed0", 1, val_loss=row["val_loss"] + 0.02)
    assert results.reproduce("scratch-seed0") == 1
    assert "more than rounding does (0.01)" in capsys.readouterr().out


def test_each_run_is_made_again_on_its_own_number_of_threads(results: Results) -> None:
    threads = torch.get_num_threads()
    try:
        for run, number in ("scratch-seed0", 1), ("stackbert-seed0", 2):
            results.change(run, lambda record, n=number: record["hardware"].update(threads=n, name="Another CPU"))  # type: ignore[misc]
        assert results.reproduce("scratch-seed0", "stackbert-seed0") == 0
    finally:
        torch.set_num_threads(threads)
    assert [results.stamp(run)["hardware"]["threads"] for run in ("scratch-seed0", "stackbert-seed0")] == [1, 2]


@pytest.mark.parametrize(
    ("key", "value"), [("flops", 1), ("lr", 0.5), ("tokens", 3), ("scored", False), ("phase", "other"), ("train_loss", None)]
)
def test_nothing_but_losses_is_rounded(results: Results, capsys: pytest.CaptureFixture[str], key: str, value: object) -> None:
    """On whatever machine."""
    results.change("scratch-seed0", lambda record: record["hardware"].update(name="Another CPU"))
    results.change_row("scratch-seed0", 1, **{key: value})
    assert results.reproduce("scratch-seed0") == 1
    said = "no evaluation at step 1 in phase 'other'" if key == "phase" else f"{key} at step 1 is "
    assert f"DIFFERENT: {said}" in capsys.readouterr().out


REFUSALS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unfinished": (lambda record: record.update(status="interrupted"), "has not finished: interrupted"),
    "other data": (
        lambda record: record["config"]["experiment"].update(fingerprint="abc"),
        "was trained on other data: files:",
    ),
    "data gone": (lambda record: record["config"]["experiment"]["data"].update(corpus="files:/absent"), "/absent"),
    "loose file": (lambda record: record.update(method="mine"), "no built-in or installed method is named 'mine'"),
    "hyperparameter gone": (lambda record: record["config"]["method"].update(absent=1), "unknown key scratch.absent"),
    "key of the experiment gone": (
        lambda record: record["config"]["experiment"]["train"].update(absent=1),
        "unknown key train.absent",
    ),
    "section gone": (lambda record: record["config"]["experiment"].update(absent={}), "not known today: absent"),
    "checkpoint gone": (
        lambda record: record["config"]["experiment"].update(pretrained={"checkpoint": "/absent/model", "sha256": "a"}),
        "source = '/absent/model': not a folder, and could not be fetched from the hub",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_reproduced_is_said_in_one_line(results: Results, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """Before anything is trained."""
    change, said = REFUSALS[case]
    results.change("scratch-seed0", change)
    capsys.readouterr()
    assert results.reproduce("scratch-seed0") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"growbench: {results / 'scratch-seed0'} cannot be reproduced: ") and said in error
    assert error.count("\n") == 1


def test_a_folder_without_a_run_is_refused_and_the_others_are_made(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.reproduce("absent", "scratch-seed0") == 2
    out, err = capsys.readouterr()
    assert "absent cannot be reproduced: holds no run.json that can be read" in err and "bit-identical" in out


def test_a_run_on_a_gpu_needs_one(results: Results, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    results.change("scratch-seed0", lambda record: record["hardware"].update(device="cuda"))
    assert results.reproduce("scratch-seed0") == 2
    assert "was trained on CUDA, and there is no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["0", "-1", "many", "1.5"])
def test_steps_are_a_number_or_all(results: Results, capsys: pytest.CaptureFixture[str], steps: str) -> None:
    with pytest.raises(SystemExit) as ended:
        results.reproduce("scratch-seed0", steps=steps)
    assert ended.value.code == 2
    assert "must be a whole number, at least 1, or all" in capsys.readouterr().err


def test_only_evaluations_up_to_the_last_step_are_compared() -> None:
    """One at that step belongs to it if it was made: at the end of a phase the next one begins with another."""
    rows: list[dict[str, Any]] = [
        {"step": step, "phase": phase, "val_loss": loss, "train_loss": None, "seconds": 1.0}
        for step, phase, loss in ((0, "a", 5.0), (2, "a", 4.0), (2, "b", 4.5), (4, "b", 3.0))
    ]
    again = [row | {"seconds": 9.0} for row in rows]
    assert compare(rows, again, 4) == Comparison(4)
    assert compare(rows, again[:2], 2) == Comparison(2)
    assert compare(rows[2:], again, 4) == Comparison(2)
    assert compare(rows, again[:3], 4) == Comparison(3)
    assert compare(rows, again[:2], 4).mismatch == "no evaluation at step 2 in phase 'b'"
    again[1] |= {"val_loss": 4.25}
    assert compare(rows, again, 4) == Comparison(4, 0.25, 2)
    assert compare([], again, 4).mismatch == "no evaluation to compare with"


def test_an_accuracy_may_flip_where_losses_are_rounded() -> None:
    stored = [{"step": 1, "phase": "a", "val_loss": 1.0, "val_accuracy": 0.5}]
    found = compare(stored, [stored[0] | {"val_accuracy": 0.625}], 1)
    assert found == Comparison(1, 0.0, 1)
    assert judge(found, "")[0] is False and judge(found, "it ran on a CPU of unknown stepping")[0] is True


def test_the_configuration_of_every_committed_run_is_known_today() -> None:
    """Read back, it says the same of all that it says."""
    folders = {path.parent for path in RESULTS.rglob("run.json")}
    for run in filter(None, map(store.load, sorted(folders))):
        written = json.loads((run.folder / "run.json").read_text())["config"]["experiment"]
        if written.get("protocol", 1) != PROTOCOL:
            with pytest.raises(UsageError, match=f"was made under protocol 1; today's code follows protocol {PROTOCOL}"):
                experiment_of(run.record)
        config = replace(run.record.config, experiment={**written, "protocol": PROTOCOL})
        today = json.loads(json.dumps(experiment_of(replace(run.record, config=config)).identity()))
        for section in written.keys() - {"fingerprint", "protocol"}:
            old, new = written[section], today[section]
            assert (old == new) if isinstance(old, str) else (old.items() <= new.items()), (run.folder, section)
