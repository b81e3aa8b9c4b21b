"""Step times measured alone: what is stored stays until the same is measured again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from growbench.costs.hardware import Hardware
from growbench.runs import step_seconds
from growbench.runs.step_seconds import MethodSeconds, PhaseSeconds, StepSeconds


def measured(*methods: str, seconds: float = 0.5, experiment: str = "one", machine: str = "a") -> StepSeconds:
    phase = PhaseSeconds(name="train", steps=10, step_seconds=seconds, spread=0.01, error=0.001, growth_seconds=0)
    method = MethodSeconds(origin="growbench x", config="c", commit="d", date="2026-01-01", phases=[phase])
    hardware = Hardware(device="cpu", name=machine, threads=2, precision="float32")
    return StepSeconds(hardware=hardware, versions={"torch": "2"}, experiment=experiment, methods=dict.fromkeys(methods, method))


def test_what_is_stored_reads_back(tmp_path: Path) -> None:
    assert step_seconds.read(tmp_path) == []
    step_seconds.store(tmp_path / "new", measured("scratch"))
    assert step_seconds.read(tmp_path / "new") == [measured("scratch")]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["step_seconds.json"]


def test_a_second_measurement_adds_methods_and_renews_its_own(tmp_path: Path) -> None:
    step_seconds.store(tmp_path, measured("scratch", "ligo"))
    step_seconds.store(tmp_path, measured("scratch", "ki", seconds=0.6))
    (joined,) = step_seconds.read(tmp_path)
    assert {name: method.phases[0].step_seconds for name, method in joined.methods.items()} == {
        "scratch": 0.6,
        "ligo": 0.5,
        "ki": 0.6,
    }


def test_measurements_that_are_stored_at_once_all_stay(tmp_path: Path) -> None:
    """Threads stand for processes: the lock holds between either."""
    names = [f"method{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: step_seconds.store(tmp_path, measured(name)), names))
    (joined,) = step_seconds.read(tmp_path)
    assert sorted(joined.methods) == names


@pytest.mark.parametrize("changed", [{"experiment": "another"}, {"versions": {"torch": "3"}}])
def test_measurements_of_another_experiment_or_version_are_not_mixed(tmp_path: Path, changed: dict[str, object]) -> None:
    step_seconds.store(tmp_path, measured("scratch", "ligo"))
    newer = replace(measured("scratch"), **changed)
    step_seconds.store(tmp_path, newer)
    assert step_seconds.read(tmp_path) == [newer]


def test_other_machines_keep_theirs(tmp_path: Path) -> None:
    for machine in ("a", "b"):
        step_seconds.store(tmp_path, measured("scratch", machine=machine))
    step_seconds.store(tmp_path, measured("scratch", machine="a", seconds=0.7))
    found = {each.hardware.name: each.methods["scratch"].phases[0].step_seconds for each in step_seconds.read(tmp_path)}
    assert found == {"a": 0.7, "b": 0.5}


@pytest.mark.parametrize("damage", ["-0.5", "0", "NaN", "Infinity", "1e999"])
def test_a_time_that_no_step_takes_is_refused(tmp_path: Path, damage: str) -> None:
    file = step_seconds.store(tmp_path, measured("scratch", seconds=0.25))
    file.write_text(file.read_text().replace("0.25", damage))
    with pytest.raises(ValueError, match=r"methods\.scratch\.phases\.0\.step_seconds: Input should be"):
        step_seconds.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        ('{"schema_version": 1, "machines": [{}]}', "machines.0.hardware: Field required"),
        ('{"schema_version": 9, "machines": []}', "schema_version = 9: this growbench reads 1"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_replaced(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "step_seconds.json").write_text(text)
    with pytest.raises(ValueError, match=r"step_seconds\.json") as refused:
        step_seconds.read(tmp_path)
    assert said in str(refused.value)
    step_seconds.store(tmp_path, measured("scratch"))
    assert step_seconds.read(tmp_path) == [measured("scratch")]


def test_digests_leave_out_what_no_step_depends_on() -> None:
    of_experiment, of_method = step_seconds.digest_of_experiment, step_seconds.digest_of_method
    assert of_experiment({"train": {"batch": 8}, "fingerprint": "a"}) == of_experiment({"train": {"batch": 8}})
    assert of_experiment({"train": {"batch": 8}}) != of_experiment({"train": {"batch": 9}})
    assert of_method({"steps": 3, "train.lr": 0.1}) == of_method({"steps": 3}) != of_method({"steps": 4})
