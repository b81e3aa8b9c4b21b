"""Records: every committed run is read, whatever version stored it, and says what its run.json says."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

import growbench
from growbench.costs.accounts import CHARGED, Account, Ledger, Unit
from growbench.costs.hardware import Hardware
from growbench.runs import records, store
from growbench.runs.records import Cost, RunConfig, RunCosts, RunError, RunRecord, RunStatus
from growbench.training.records import PhaseRecord

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(path.parent for path in RESULTS.rglob("run.json"))
RENAMED = {"elsewhere": "earlier"}

RECORD = RunRecord(
    status=RunStatus.FAILED,
    experiment="e",
    title="E",
    method="m",
    seed=3,
    config=RunConfig({"train": {"betas": [0.9, 0.99]}}, {"share": 0.5}, budget_share=0.4, stop_at_loss=5.0),
    cost=RunCosts({Account.TRAIN: 10, Account.SOURCE: None}, {Account.TRAIN: 2.5, Account.EVALUATION: 1.0}),
    inherited=Cost(3.0, 0.5),
    steps=7,
    tokens=70,
    phases=[PhaseRecord(name="train", steps=7, scored=True, flops_per_step={Account.TRAIN: 10 / 7})],
    hardware=Hardware(device="cpu", name="Some CPU", threads=2, micro_batch=8),
    error=RunError(7, "ValueError: no", "Traceback"),
)


def test_there_are_committed_runs() -> None:
    assert len(COMMITTED) > 200


@pytest.mark.parametrize("folder", sorted({folder.parent for folder in COMMITTED}), ids=lambda path: path.name)
def test_committed_runs_say_what_their_files_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read by hand, key by key, in the layout of either version; and their curves line by line."""
    store.say_once.cache_clear()
    runs = store.load_all(folder)
    assert [run.folder for run in runs] == [path for path in COMMITTED if path.parent == folder]
    assert len(capsys.readouterr().err.splitlines()) == sum(run.cut > 0 for run in runs)
    for run in runs:
        text = (run.folder / "run.json").read_text()
        raw, record = json.loads(text), RunRecord.read(text)  # without what a stamp may say
        rows = [json.loads(line) for line in (run.folder / "curve.jsonl").read_text().splitlines()]
        assert run.curve == rows and run.cut == 0
        assert record.cost.flops == raw["cost"]["flops"] and record.cost.seconds == raw["cost"]["seconds"]
        assert record.energy_kwh == raw.get("energy_kwh", {})
        for unit in Unit:
            spent = raw["cost"][unit]
            charged = sum(spent[account] for account in ("growth", "operator", "teacher", "train"))
            assert run.cost(unit, Ledger.REUSE) == charged and run.cost(unit, Ledger.BUILD) == charged + spent["source"]
        assert record.config.experiment == raw["config"]["experiment"] and record.config.method == raw["config"]["method"]
        version_1 = "schema_version" not in raw
        share = raw.get("budget", 1.0) if version_1 else raw["config"]["budget_share"]
        assert record.budget_share == share and run.name == run.folder.name
        phases = [without_none(dataclasses.asdict(phase)) for phase in record.phases]
        assert phases == [without_none(phase) for phase in raw["phases"]]
        inherited = raw.get("inherited")
        assert record.inherited == (Cost(inherited["flops"], inherited["seconds"]) if inherited else None)
        for key in ("status", "experiment", "title", "method", "origin", "seed", "steps", "tokens", "parameters", "versions"):
            assert getattr(record, key) == raw[key], key
        for key in ("final_val_loss", "final_val_accuracy", "peak_memory_bytes", "waited_seconds", "data"):
            assert getattr(record, key) == raw.get(key), key
        hardware = {RENAMED.get(key, key): value for key, value in raw["hardware"].items()}
        assert record.hardware.settings() == Hardware(**hardware).settings()


def without_none(phase: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in phase.items() if value is not None}


def test_a_record_comes_back_as_it_was_written() -> None:
    assert RunRecord.read(RECORD.text()) == RECORD
    assert json.loads(RECORD.text())["schema_version"] == 3


def test_a_record_of_version_2_has_no_test_loss() -> None:
    """Its validation loss stands as it is; only the number of the version is today's."""
    old = json.loads(dataclasses.replace(RECORD, final_val_loss=2.5).text()) | {"schema_version": 2}
    del old["final_test_loss"], old["final_test_accuracy"]
    assert RunRecord.read(json.dumps(old)) == dataclasses.replace(RECORD, final_val_loss=2.5)


def test_names_of_version_1_are_read() -> None:
    """A file as it was written before records had a version: budget, stop_at and elsewhere have other names now."""
    old = json.loads(RECORD.text())
    del old["schema_version"]
    config = {"experiment": old["config"]["experiment"], "method": old["config"]["method"], "budget": 0.4, "stop_at": 5.0}
    old |= {"budget": 0.4, "config": config, "hardware": {"device": "cpu", "name": "Some CPU", "elsewhere": "device cuda"}}
    found = RunRecord.read(json.dumps(old))
    assert found.config == RECORD.config and found.budget_share == 0.4
    assert found.hardware == Hardware(device="cpu", name="Some CPU", earlier="device cuda")


def test_a_figure_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(RECORD, final_val_loss=float("nan")).text()


def test_what_a_source_cost_is_charged_in_one_ledger_and_may_be_stated_later() -> None:
    costs = RunCosts(dict.fromkeys(Account, 1), {**dict.fromkeys(Account, 1), Account.SOURCE: None})
    assert costs.charged(Unit.FLOPS) == len(CHARGED) and costs.charged(Unit.FLOPS, Ledger.BUILD) == len(CHARGED) + 1
    assert costs.charged(Unit.SECONDS, Ledger.BUILD) != costs.charged(Unit.SECONDS, Ledger.BUILD), "NaN"
    stated = costs.with_source(Cost(seconds=5.0))
    assert stated.charged(Unit.SECONDS, Ledger.BUILD) == len(CHARGED) + 5 and stated.flops == costs.flops


def test_seconds_compare_on_equal_hardware_whatever_prepares_the_data() -> None:
    cpu = Hardware(device="cpu", name="Some CPU", threads=2)
    assert cpu == dataclasses.replace(cpu, workers=4) and hash(cpu) == hash(dataclasses.replace(cpu, workers=4))
    for other in ({"threads": 1}, {"micro_batch": 4}, {"processes": "2 replicated"}, {"earlier": "device cuda"}):
        assert cpu != dataclasses.replace(cpu, **other)
    assert str(cpu) == "device cpu, name Some CPU, threads 2"


def test_a_checkout_that_is_not_installed_knows_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the checkout on the path alone, no package metadata says a version of growbench."""
    installed = records.version

    def without_growbench(package: str) -> str:
        if package == "growbench":
            raise PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(records, "version", without_growbench)
    assert records.versions()["growbench"] == growbench.__version__


def test_the_commit_is_that_of_growbenchs_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a word where the code was changed since; unknown in an installation, even inside of another repository."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit() -> str:
        return records.commit.__wrapped__()  # type: ignore[attr-defined]

    package = tmp_path / "growbench"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(records.growbench, "__file__", str(package / "__init__.py"))
    assert commit() == "unknown"
    with monkeypatch.context() as patch:
        patch.setenv("GROWBENCH_COMMIT", "of the copy")
        assert commit() == "of the copy"
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert commit() == "unknown"
    git("add", ".")
    git("commit", "-q", "-m", "second")
    assert commit() == git("rev-parse", "HEAD") and re.fullmatch("[0-9a-f]{40}", commit())
    (tmp_path / "notes.txt").write_text("not code")
    assert commit() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True")
    assert commit() == f"{git('rev-parse', 'HEAD')}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"
