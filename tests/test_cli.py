"""The command line: what goes wrong is one line and an exit code, what is done is kept, stored files keep their contract."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from growbench import cli, commands, registry
from growbench.errors import FailedAlone
from growbench.method import Method
from growbench.training.trainer import Trainer
from tests.processes import Answer
from tests.processes import answer as growbench

LOOSE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from growbench.method import Method, Phase, Phases, Task, task_loss

class Mine(Method):
    "Start from scratch, a little differently."
    paper: ClassVar[str] = "https://example.org"
    uses_source: ClassVar[bool] = False

    def phases(self, task: Task) -> Phases:
        {before}
        yield Phase(model={model}, loss=loss)

def poisoned(model):
    next(model.parameters()).data.fill_(torch.nan)
    return model

def loss(model, batch, step):
    if step == 3:
        {at_step_3}
    return task_loss(model, batch, step)
"""
TEN_LINES = """
from dataclasses import dataclass
from growbench.method import Method, Phase, Phases, Task, deepen

class Copy(Method):
    \"\"\"Train a target of one layer for a share of the budget, then repeat the layer.\"\"\"
    paper, uses_source = "https://example.org", False
    share: float = 0.5
    def phases(self, task: Task) -> Phases:
        weights = deepen(task.read(task.build()), [0] * task.target_config.layers)
        trained = yield Phase(model=task.model_from(weights), share=self.share)
        yield Phase(model=trained.model)
"""

CURVE_KEYS = {"step", "phase", "tokens", "val_loss", "train_loss", "lr", "flops", "seconds"}
RUN_KEYS = {
    "status", "experiment", "method", "origin", "seed", "config", "cost", "final_val_loss", "steps", "tokens",
    "peak_memory_bytes", "phases", "versions", "hardware", "data", "error",
}  # fmt: skip
ACCOUNTS = {"source", "growth", "operator", "teacher", "train", "evaluation", "compilation", "optimizer", "overhead"}
SAVINGS = [
    f"{unit}_saving_{ledger}{end}"
    for unit in ("flops", "seconds")
    for ledger in ("reuse", "build")
    for end in ("", "_low", "_high")
]
SAVINGS_KEYS = {"method", "seeds", "reached", "target_loss", *SAVINGS, "published_flops_saving", "published_seconds_saving"}
PLOTS = ("loss_vs_flops", "loss_vs_seconds", "savings", "savings_curve", "cost_breakdown")
DRAWN = "loss_vs_flops"  # tests/report/test_report.py has all drawn


def run_folders(folder: Path) -> dict[str, dict[str, Any]]:
    """Every run.json below a results folder, by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/*/run.json"))}


def curve(folder: Path, run: str) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"*/{run}/curve.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def loose(folder: Path, name: str, at_step_3: str = "pass", before: str = "pass", model: str = "task.build()") -> Path:
    """A loose method that trains as scratch does, but for what it does at step 3, or before its first phase, or its model."""
    path = folder / f"{name}.py"
    path.write_text(LOOSE.format(at_step_3=at_step_3, before=before, model=model))
    return path


# one or more of each kind that a run treats apart; tests/methods/test_methods.py trains and plans all
KINDS = (
    "scratch", "stackbert", "mslt", "bert2bert", "ki", "ligo", "progressive_net", "random_source", "shuffled_source",
    "scratch_short", "scratch_restart",
)  # fmt: skip


class Done(NamedTuple):
    """The miniature experiment, run with methods of every kind."""

    experiment: Path
    results: Path
    answer: Answer


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
    write_miniature: Callable[..., Path],
    figures: Callable[..., AbstractContextManager[None]],
) -> Done:
    folder = tmp_path_factory.mktemp("done")
    experiment = write_miniature(folder)
    with figures(DRAWN):
        run = growbench("run", experiment, "--methods", ",".join(KINDS), "--results", folder / "results")
        return Done(experiment, folder / "results", run)


# What is refused


Refused = Callable[..., str]


@pytest.fixture
def refused(miniature: Path, tmp_path: Path) -> Refused:
    """Run a command that must be refused: exit code 2, one line on stderr, which is given back, and no file in the results."""

    def run(*arguments: object, experiment: object = miniature, command: str = "run") -> str:
        results = tmp_path / "results"
        options = [] if "--results" in arguments or command != "run" else ["--results", results]
        answer = growbench(command, experiment, *options, *arguments)
        assert answer.code == 2, answer
        assert len(answer.err.splitlines()) == 1 and answer.err.startswith("growbench"), answer.err
        assert not answer.out
        assert not [path for path in results.rglob("*") if path.is_file()]
        return answer.err

    return run


def test_unknown_names_are_refused(refused: Refused) -> None:
    """Experiment, method, key, architecture: each names what was asked for and what there is."""
    assert "unknown experiment 'gpt2-tyni': did you mean gpt2-tiny?" in refused(experiment="gpt2-tyni")
    assert "unknown method 'liggo': did you mean ligo?" in refused("--methods", "liggo")
    assert "unknown key train.stpes: did you mean steps?" in refused("--set", "train.stpes=3")
    assert "unknown key ligo.operator_stpes: did you mean operator_steps?" in refused("--set", "ligo.operator_stpes=3")
    message = refused("--set", "liggo.operator_steps=3")
    assert "'liggo', which is no method and no table of an experiment: did you mean ligo?" in message and len(message) < 200
    assert "'gpt3': did you mean gpt2?" in refused("--set", "architecture=gpt3")


def test_bad_values_are_refused(refused: Refused) -> None:
    """Key, value and what is allowed, before anything trains."""
    assert "train.steps = 'many': must be a valid integer" in refused("--set", "train.steps=many")
    assert "--set 'train.steps': must be key=value" in refused("--set", "train.steps")
    assert "target: width = 32 is not divisible by heads = 5" in refused("--set", "target.heads=5")
    assert "source.width = 64 is larger than target.width = 32" in refused("--set", "source.width=64")
    message = refused("--set", "target.heads=2")
    assert message.startswith("growbench: bert2bert: ") and "heads are copied whole: target.width / target.heads = 16" in message


@pytest.mark.parametrize("seeds", ["", "one", "1,1", "1.5", "1,,2"])
def test_bad_seeds_are_refused(refused: Refused, seeds: str) -> None:
    assert "--seeds" in refused("--seeds", seeds)


def test_a_seed_beyond_64_bits_is_refused(refused: Refused) -> None:
    assert "seeds" in refused("--seeds", 2**64)


@pytest.mark.parametrize("budgets", ["1,nan", "nan", "0.5,2", "0.5", "0,1"])
def test_bad_budgets_are_refused(refused: Refused, budgets: str) -> None:
    assert "--budgets" in refused("--protocol", "ladder", "--budgets", budgets)


def test_to_stop_at_a_target_takes_one(refused: Refused) -> None:
    """Scratch's mean loss is another with every seed that is added."""
    assert "--target-loss" in refused("--stop-at-target")


def test_a_hyperparameter_that_is_no_number_is_refused(refused: Refused) -> None:
    assert "must be a finite number" in refused("--methods", "ligo", "--set", "ligo.operator_lr=nan")


@pytest.mark.parametrize("loss", ["low", "nan", "inf"])
def test_a_target_loss_must_be_a_number(refused: Refused, loss: str) -> None:
    assert "--target-loss" in refused("--target-loss", loss, "--methods", "scratch")


def test_a_wrong_option_is_refused(refused: Refused) -> None:
    assert "--device" in refused("--device", "tpu")
    assert "--protocol" in refused("--protocol", "double")
    assert "--no-such-option" in refused("--no-such-option")
    assert "plots" in refused(experiment="plots", command="list")
    assert "--rounds 3: must be at least 5" in refused("--rounds", 3, command="bench")
    muon = refused("--set", "train.optimizer=muon", command="bench")
    assert "train.optimizer = 'muon': the loops are compared with 'adamw' alone" in muon


def test_cuda_without_cuda_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda: there is no CUDA device; allowed here: auto, cpu" in refused("--device", "cuda")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"too few words", "training tokens; one batch of 4 sequences of 16 needs 65"),
        (b"", "is empty"),
        (b" \n\n \n", "training tokens"),
        (b"text\n\n" * 99 + b"\0\1\2", "is binary, not text"),
        ("Grüße\n\n".encode("latin-1") * 99, "is not UTF-8 text"),
        (None, "no file matches"),
    ],
    ids=["too small", "empty", "blank", "binary", "not UTF-8", "absent"],
)
def test_a_corpus_that_cannot_be_used_is_refused(refused: Refused, tmp_path: Path, content: bytes | None, reason: str) -> None:
    """By the file's name and the reason."""
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    message = refused("--set", f"data.corpus=files:{path}")
    assert reason in message and str(path) in message


def test_a_missing_gensim_gives_the_pip_line(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim", None)
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "cache"))  # where no test has left the sample
    assert 'pip install "growbench[samples]"' in refused(experiment="gpt2-tiny")


def test_a_folder_that_cannot_be_written_is_refused(refused: Refused, tmp_path: Path, done: Done) -> None:
    """Results, token cache, report: the line names the folder and the option that changes it."""
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    message = refused("--results", below)
    assert f"cannot write results to {below}" in message and "--results" in message
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROWBENCH_CACHE", str(below))
        message = refused()
        assert str(below) in message and "GROWBENCH_CACHE" in message
    message = refused("--out", below, experiment=done.results / "miniature", command="report")
    assert str(below) in message and "--out" in message


def test_a_broken_method_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    """Absent, raising, ending its process: before anything trains."""
    path = tmp_path / "mine.py"
    assert f"method file {path} does not exist" in refused("--methods", path)
    path.write_text("raise SystemExit")
    assert "mine.py, line 1: SystemExit" in refused("--methods", path)
    path.write_text("import os; os._exit(0)")
    assert f"{path}: its process ended by itself, with exit code 0 while the method was" in refused("--methods", path)


def test_a_report_of_nothing_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        assert str(tmp_path / folder) in refused(experiment=tmp_path / folder, command="report")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run gpt2-tyni", "growbench: unknown experiment 'gpt2-tyni': did you mean gpt2-tiny?"),
        ("run --set train.steps=many", "growbench: train.steps = 'many': must be a valid integer"),
        ("", "growbench: the following arguments are required: COMMAND"),
        ("fly", "growbench: argument COMMAND: invalid choice: 'fly'"),
        ("run --sed 3", "growbench: unrecognized arguments: --sed; growbench run --help lists all"),
        (
            "run --methods ligo, bert2bert",
            "growbench run: argument --methods: 'ligo,': must not end with a comma; write names without",
        ),
        ("check ligo, bert2bert", "growbench check: argument METHODS: 'ligo,': must not end with a comma; write names without"),
    ],
)
def test_the_shell_sees_exit_code_2_and_one_line(tmp_path: Path, arguments: str, message: str) -> None:
    command = [sys.executable, "-m", "growbench", *arguments.split()]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(message) and len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_process_that_fails_alone_ends_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 1, and without what Python does at its end, in which it would wait for the others."""

    def fails(*_: object) -> int:
        raise FailedAlone("ligo-seed0 failed in this process alone")

    ended: list[int] = []
    monkeypatch.setattr(commands, "run", fails)
    monkeypatch.setattr(os, "_exit", ended.append)
    cli.main(["run"])
    assert ended == [1]
    assert capsys.readouterr().err == "ligo-seed0 failed in this process alone\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["list"], ["list", "methods"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    """They answer at once."""
    code = """
import sys
from growbench.cli import main
try:
    main(sys.argv[1:])
except SystemExit as exit:
    assert not exit.code
heavy = {"torch", "transformers", "numpy", "pandas", "matplotlib", "pydantic", "tqdm", "huggingface_hub"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


def test_every_command_has_its_function() -> None:
    """They are known to the parser by name alone."""
    groups = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    for sub in next(groups).choices.values():
        assert callable(getattr(commands, sub.get_default("command")))


def test_list_names_everything_with_a_line() -> None:
    """Methods, experiments, architectures; or one of the three."""
    everything = growbench("list")
    assert everything.code == 0
    for name in ("ligo", "stackbert", "gpt2-tiny", "bert", "gpt2"):
        (line, *_) = (line for line in everything.out.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 2, line
    assert "gpt2-tiny" not in growbench("list", "methods").out


# What is done


def test_methods_of_every_kind_finish(done: Done) -> None:
    """The source is trained once for all; each method that starts from it is charged for it, the others are not."""
    assert done.answer.code == 0, done.answer.err
    runs = run_folders(done.results)
    assert set(runs) == {"source-seed0", *(f"{name}-seed0" for name in KINDS)}
    assert {run["status"] for run in runs.values()} == {"finished"}
    charged = {run["cost"]["flops"]["source"] for name, run in runs.items() if name in ("ligo-seed0", "bert2bert-seed0")}
    assert charged == {runs["source-seed0"]["cost"]["flops"]["train"]}
    assert runs["scratch-seed0"]["cost"]["flops"]["source"] == runs["stackbert-seed0"]["cost"]["flops"]["source"] == 0


def test_a_run_keeps_its_contract(done: Done) -> None:
    """The keys that others read, and values that agree with one another."""
    runs = run_folders(done.results)
    assert len(runs) == len(KINDS) + 1
    for name, run in runs.items():
        assert run.keys() >= RUN_KEYS, name
        assert run["cost"]["flops"].keys() == run["cost"]["seconds"].keys() == ACCOUNTS
        assert all(value >= 0 for unit in run["cost"].values() for value in unit.values()), run["cost"]
        assert (run["experiment"], run["seed"], run["error"]) == ("miniature", 0, None)
        assert name == f"{run['method']}-seed0"
        assert run["tokens"] == run["steps"] * 4 * 16
        assert run["steps"] == sum(phase["steps"] for phase in run["phases"])
        assert run["peak_memory_bytes"] > 0
        assert run["versions"].keys() >= {"python", "growbench", "torch", "transformers"}
        assert run["data"].keys() >= {"name", "fingerprint"}
        assert run["hardware"].keys() >= {"device", "name", "threads"}


def test_a_curve_keeps_its_contract(done: Done) -> None:
    """Cumulative costs never fall, and end at what the run was charged; the last loss is the final one."""
    runs = run_folders(done.results)
    assert len(runs) == len(KINDS) + 1
    for name, run in runs.items():
        rows = curve(done.results, name)
        for row in rows:
            assert row.keys() >= CURVE_KEYS, name
        for key in ("step", "tokens", "flops", "seconds"):
            assert [row[key] for row in rows] == sorted(row[key] for row in rows), (name, key)
        last = rows[-1]
        assert (last["step"], last["tokens"]) == (run["steps"], run["tokens"])
        assert last["val_loss"] == pytest.approx(run["final_val_loss"], abs=0.1)  # of a part, and of all, of a small split
        assert run["final_test_loss"] == pytest.approx(run["final_val_loss"], abs=0.2)
        assert run["final_test_loss"] != run["final_val_loss"], name
        charged = {
            unit: sum(cost[account] for account in ("growth", "operator", "teacher", "train"))
            for unit, cost in run["cost"].items()
        }
        assert last["flops"] == charged["flops"], name
        assert last["seconds"] == pytest.approx(charged["seconds"], abs=0.05), name  # a method's end, after its last phase


def test_scratch_learns(done: Done) -> None:
    """The miniature is no experiment, but its loss does fall."""
    rows = curve(done.results, "scratch-seed0")
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.1


def test_no_draft_is_left(done: Done) -> None:
    names = {path.name for path in done.results.rglob("*") if path.is_file() and path.parent.name.endswith("-seed0")}
    assert names == {"run.json", "curve.jsonl", "documents.npy", "model.safetensors", "optimizer.safetensors"}


def test_the_report_keeps_its_contract(done: Done) -> None:
    """A page that needs no other file, the table's columns, plots as CSV, PNG and SVG; the command prints table and path."""
    report = done.results / "miniature" / "report"
    page = (report / "index.html").read_text()
    links = set(re.findall(r'href="(http[^"]*)"', page))
    assert 'src="http' not in page and links <= set(registry.papers().values())
    with (report / "savings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() >= SAVINGS_KEYS
    assert {row["method"] for row in rows} >= set(KINDS) - {"scratch"}
    assert all((report / f"{plot}.csv").stat().st_size > 100 for plot in PLOTS)
    assert all((report / f"{DRAWN}.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    assert all(name in done.answer.out for name in KINDS)
    assert str(report / "index.html") in done.answer.out


def test_what_is_done_is_not_done_again(done: Done) -> None:
    """The same command trains nothing; --set to another value of one method trains that one only."""
    times = {path: path.stat().st_mtime_ns for path in done.results.glob("*/*/*") if path.parent.name != "report"}
    assert len(times) > 2 * len(KINDS)
    answer = growbench("run", done.experiment, "--methods", ",".join(KINDS), "--results", done.results)
    assert answer.code == 0
    assert answer.err.count(" is done") == len(KINDS)
    assert times == {path: path.stat().st_mtime_ns for path in done.results.glob("*/*/*") if path.parent.name != "report"}


def test_a_source_has_a_batch_of_its_own(miniature: Path, tmp_path: Path) -> None:
    """As planned, recorded and charged."""
    results = tmp_path / "results"
    assert growbench("run", miniature, "--methods", "bert2bert", "--set", "source.batch=2", "--results", results).code == 0
    runs = run_folders(results)
    assert (runs["source-seed0"]["tokens"], runs["bert2bert-seed0"]["tokens"]) == (12 * 2 * 16, 12 * 4 * 16)
    per_step = runs["source-seed0"]["phases"][0]["flops_per_step"]["train"]
    assert runs["bert2bert-seed0"]["cost"]["flops"]["source"] == 12 * per_step


def test_a_signal_after_a_runs_last_step_ends_the_command_after_that_run(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is whole and stored; the next one does not begin."""
    train = Trainer.run

    def run(self: Trainer, method: Method) -> None:
        train(self, method)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "run", run)
    results = tmp_path / "results"
    assert growbench("run", miniature, "--methods", "scratch_short", "--results", results).code == 130
    (stored,) = results.glob("*/*/run.json")
    assert json.loads(stored.read_text())["status"] == "finished"


def test_another_corpus_of_the_same_name_is_trained_again(miniature: Path, corpus: Path, tmp_path: Path) -> None:
    """A run is done only for the data that it saw."""
    own = tmp_path / "corpus.txt"
    own.write_text(corpus.read_text())
    arguments = ("run", miniature, "--methods", "scratch", "--results", tmp_path / "results", "--set", f"data.corpus=files:{own}")
    assert growbench(*arguments).code == 0
    assert "is done" in growbench(*arguments).err
    own.write_text(own.read_text().replace("the", "an"))
    answer = growbench(*arguments)
    assert answer.code == 0 and "training it again" in answer.err


def test_a_source_model_that_was_lost_is_trained_again(miniature: Path, tmp_path: Path) -> None:
    """Results without weights, as they are committed, can be added to."""
    results = tmp_path / "results"
    assert growbench("run", miniature, "--methods", "bert2bert", "--results", results).code == 0
    (weights,) = results.glob("*/source-seed0/model.safetensors")
    weights.unlink()
    assert growbench("run", miniature, "--methods", "bert2bert", "--results", results).code == 0
    assert not weights.exists(), "nothing needed it"
    assert growbench("run", miniature, "--methods", "ligo", "--results", results).code == 0
    assert weights.is_file()


def test_report_of_a_folder_elsewhere(done: Done, tmp_path: Path) -> None:
    """`growbench report` makes the same tables from stored runs, of one experiment or of a folder of them, by another target."""
    table = (done.results / "miniature" / "report" / "savings.csv").read_text()
    answer = growbench("report", done.results / "miniature", "--out", tmp_path / "here")
    assert answer.code == 0, answer.err
    assert (tmp_path / "here" / "savings.csv").read_text() == table
    assert str(tmp_path / "here" / "index.html") in answer.out


def test_dry_run_trains_nothing(miniature: Path, tmp_path: Path) -> None:
    """It prints every method with its steps, tokens and FLOPs, and writes no result."""
    answer = growbench("run", miniature, "--dry-run", "--results", tmp_path / "results", "--methods", "ligo,stackbert")
    assert answer.code == 0, answer.err
    rows = {line.split()[0]: line.split() for line in answer.out.splitlines() if line.strip()}
    assert {"scratch", "ligo", "stackbert"} <= set(rows) and "bert2bert" not in rows
    assert (rows["scratch"][1], rows["ligo"][1]) == ("12", "15")
    assert not (tmp_path / "results").exists()


def test_flops_agree_with_fvcore(miniature_bert: Path) -> None:
    answer = growbench("flops", miniature_bert)
    assert answer.code == 0, answer.err
    assert answer.out.count(": equal") == 2


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, write_miniature: Callable[..., Path]) -> Done:
    """A run in which methods fail in many ways, and one is fine."""
    folder = tmp_path_factory.mktemp("failed")
    good = folder / "copy.py"
    good.write_text(TEN_LINES)
    files = [
        loose(folder, "raises", at_step_3="raise RuntimeError('broken on purpose')"),
        loose(folder, "not_a_number", at_step_3="return task_loss(model, batch) * float('nan')"),
        loose(folder, "out_of_memory", at_step_3="__import__('torch').empty(2**50)"),
        loose(folder, "poisoned", model="poisoned(task.build())"),
        loose(folder, "exits", at_step_3="raise SystemExit(0)"),
        loose(folder, "interrupts", at_step_3="raise KeyboardInterrupt"),
        loose(folder, "ends", at_step_3="__import__('os')._exit(0)"),
        good,
    ]
    experiment = write_miniature(folder)
    methods = ",".join(map(str, files))
    return Done(
        experiment, folder / "results", growbench("run", experiment, "--methods", methods, "--results", folder / "results")
    )


def test_a_method_that_fails_leaves_the_others(failed: Done) -> None:
    """Exit code 1; the run says at which step and why, its curve is kept; the others finish; the report names the failure."""
    assert failed.answer.code == 1
    assert "Traceback" not in failed.answer.err
    runs = run_folders(failed.results)
    assert {name.removesuffix("-seed0"): run["status"] for name, run in runs.items()} == {
        "scratch": "finished",
        "raises": "failed",
        "not_a_number": "failed",
        "out_of_memory": "failed",
        "poisoned": "failed",
        "exits": "failed",
        "interrupts": "failed",
        "copy": "finished",
    }
    raised = runs["raises-seed0"]["error"]
    assert (raised["step"], raised["message"]) == (3, "RuntimeError: broken on purpose")
    assert "Traceback" in raised["traceback"] and "raises.py" in raised["traceback"]
    assert [row["step"] for row in curve(failed.results, "raises-seed0")] == [0, 1, 2, 3]
    assert runs["not_a_number-seed0"]["error"]["step"] == 4  # the fourth step's loss
    assert "nan" in runs["not_a_number-seed0"]["error"]["message"]
    assert "allocate" in runs["out_of_memory-seed0"]["error"]["message"]
    assert runs["poisoned-seed0"]["error"]["step"] == 0
    place = LOOSE[: LOOSE.index("{at_step_3}")].count("\n") + 1
    for line in (
        f"exits-seed0        failed: exits.py, line {place}: raised SystemExit(0), which would end the whole program",
        f"interrupts-seed0   failed: interrupts.py, line {place}: raised KeyboardInterrupt(), which would end the whole program",
        "ends               failed: its process ended by itself, with exit code 0 before its runs were finished",
    ):
        assert line in failed.answer.err
    page = (failed.results / "miniature" / "report" / "index.html").read_text()
    assert "broken on purpose" in page and "not_a_number" in page and "poisoned" in page


def test_a_plugin_of_ten_lines_is_a_method(failed: Done) -> None:
    """Two phases, the first a share of the budget, stored and reported as any other."""
    run = run_folders(failed.results)["copy-seed0"]
    assert [phase["steps"] for phase in run["phases"]] == [6, 6]
    assert run["origin"].startswith("copy.py sha256:")
    with (failed.results / "miniature" / "report" / "savings.csv").open() as file:
        assert "copy" in {row["method"] for row in csv.DictReader(file)}


def test_what_is_stored_is_json(failed: Done) -> None:
    """Even of a run whose loss is not a number, for which JSON has no word."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    stored = {f"{path.parent.name}/{path.name}": path.read_text() for path in failed.results.glob("*/*-seed0/*.json*")}
    names = ("copy", "exits", "interrupts", "not_a_number", "out_of_memory", "poisoned", "raises", "scratch")
    unfinished = {"ends-seed0/curve.jsonl"}
    assert stored.keys() - unfinished == {f"{name}-seed0/{file}" for name in names for file in ("run.json", "curve.jsonl")}
    for name, text in stored.items():
        for part in [text] if name.endswith(".json") else text.splitlines():
            json.loads(part, parse_constant=refuse)


def test_a_method_that_fails_at_once_leaves_the_others(miniature: Path, tmp_path: Path) -> None:
    """As above, though no step of it succeeds."""
    path = loose(tmp_path, "raises", at_step_3="raise RuntimeError('broken on purpose')")
    path.write_text(path.read_text().replace("step == 3", "step == 0"))
    results = tmp_path / "results"
    assert growbench("run", miniature, "--methods", path, "--results", results).code == 1
    status = {name: run["status"] for name, run in run_folders(results).items()}
    assert status == {"scratch-seed0": "finished", "raises-seed0": "failed"}


def test_a_method_may_look_at_its_weights(miniature: Path, tmp_path: Path) -> None:
    """Values of weights are there when a method runs: norms, singular values, a choice that depends on them."""
    path = loose(tmp_path, "looks", before="assert next(task.build().parameters()).norm().item() > 0")
    answer = growbench("run", miniature, "--methods", path, "--results", tmp_path / "results")
    assert answer.code == 0, answer.err


def test_a_budget_too_small_for_a_method_is_refused(refused: Refused) -> None:
    """StackBERT's first stage is an eighth of the budget: of 3 steps nothing."""
    line = "stackbert: phase 'depth 1': 0 steps of a budget of 3: must have at least one"
    assert line in refused("--methods", "stackbert", "--set", "train.steps=3")


def test_a_source_that_diverges_leaves_the_others(miniature: Path, tmp_path: Path) -> None:
    """Exit code 1: methods without a source finish, those with one are failed, and the line says why."""
    diverge = ["--set", "source.lr=1e30", "--set", "source.clip=1e30"]
    results = tmp_path / "results"
    answer = growbench("run", miniature, "--methods", "ligo,stackbert", "--results", results, *diverge)
    assert answer.code == 1
    status = {name: run["status"] for name, run in run_folders(results).items()}
    assert (status["source-seed0"], status["scratch-seed0"], status["stackbert-seed0"]) == ("failed", "finished", "finished")


@pytest.mark.parametrize(
    ("function", "arguments", "resumes"),
    [
        ("run", ["run"], True),
        ("run", ["run", "--dry-run"], False),
        ("tune", ["tune"], True),
        ("check", ["check", "--aa", "gpt2-tiny"], True),
        ("check", ["check", "ligo"], False),
        ("report", ["report", "results/gpt2-tiny"], False),
    ],
)
def test_only_what_is_resumed_says_so(
    function: str, arguments: list[str], resumes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, function, interrupted)
    assert cli.main(arguments) == 130
    assert ("the same command resumes" in capsys.readouterr().err) == resumes


def test_an_interrupt_keeps_what_was_done(miniature: Path, tmp_path: Path) -> None:
    """Exit code 130; the run is stored as interrupted with its curve, those before it are kept, and the next call goes on."""
    path = loose(tmp_path, "interrupted", at_step_3="import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    results = tmp_path / "results"
    command = ["run", miniature, "--methods", path, "--results", results]
    answer = growbench(*command)
    assert answer.code == 130
    assert answer.err.splitlines()[-1] == "growbench: interrupted; finished work is kept, and the same command resumes"
    assert "Traceback" not in answer.err
    runs = run_folders(results)
    assert (runs["scratch-seed0"]["status"], runs["interrupted-seed0"]["status"]) == ("finished", "interrupted")
    assert [row["step"] for row in curve(results, "interrupted-seed0")] == [0, 1, 2, 3, 4]
    loose(tmp_path, "interrupted")
    assert growbench(*command).code == 0
    assert run_folders(results)["interrupted-seed0"]["status"] == "finished"


def test_output_may_be_cut_short() -> None:
    """As by `| head -1`, or by a reader that is gone before the first line."""
    command = f"{sys.executable} -c 'from growbench.cli import main; import sys; sys.exit(main())' list"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} | head -1"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr, len(ended.stdout.splitlines())) == (0, "", 1)
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(["bash", "-c", command], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_stop_at_target_ends_a_run_early(miniature: Path, tmp_path: Path) -> None:
    """At the first evaluation at or below --target-loss, which the report then takes as its target."""
    results = tmp_path / "results"
    answer = growbench("run", miniature, "--methods", "scratch", "--target-loss", 5.6, "--stop-at-target", "--results", results)
    assert answer.code == 0, answer.err
    losses = [row["val_loss"] for row in curve(results, "scratch-seed0")]
    assert losses[-1] <= 5.6 < min(losses[:-1])
    assert run_folders(results)["scratch-seed0"]["steps"] < 12
    with (results / "miniature" / "report" / "savings.csv").open() as file:
        assert {float(row["target_loss"]) for row in csv.DictReader(file)} <= {5.6}
