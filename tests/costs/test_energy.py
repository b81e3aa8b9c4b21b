"""Energy by account, from counters whose values are known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from growbench import cli
from growbench.costs import energy
from growbench.costs.accounts import Account, Part
from growbench.costs.energy import JOULES_PER_KWH, EnergyCounter, EnergyMeter
from growbench.runs import execution, store
from growbench.training.evaluation import Evaluation
from growbench.training.step import Step

CPU = torch.device("cpu")


def values(*joules: float) -> Callable[[], float]:
    return iter(joules).__next__


def failing() -> Iterator[float]:
    yield 1.0
    raise OSError("gone")


def test_what_is_between_start_and_charge_is_charged() -> None:
    meter = EnergyMeter([EnergyCounter(Part.GPU, values(5, 8, 20, 30)), EnergyCounter(Part.CPU, values(1, 2, 3, 4))])
    meter.start()
    meter.charge(Account.TRAIN)
    meter.charge(Account.TRAIN)  # no interval was begun
    meter.start()
    meter.charge(Account.EVALUATION)
    assert meter.kwh() == {
        "gpu": {Account.TRAIN: 3 / JOULES_PER_KWH, Account.EVALUATION: 10 / JOULES_PER_KWH},
        "cpu": {Account.TRAIN: 1 / JOULES_PER_KWH, Account.EVALUATION: 1 / JOULES_PER_KWH},
    }


def test_several_counters_of_a_part_add_up_and_may_wrap() -> None:
    meter = EnergyMeter([EnergyCounter(Part.CPU, values(90, 20), wraps_at=100), EnergyCounter(Part.CPU, values(0, 5))])
    meter.start()
    meter.charge(Account.TRAIN)
    assert meter.kwh() == {"cpu": {Account.TRAIN: 35 / JOULES_PER_KWH}}


@pytest.mark.parametrize(
    "counters",
    [[], [EnergyCounter(Part.GPU, values(5, 5))], [EnergyCounter(Part.GPU, failing().__next__)]],
    ids=["no counter", "one that stands still", "one that fails"],
)
def test_what_was_not_measured_is_missing_and_never_0(counters: list[EnergyCounter]) -> None:
    meter = EnergyMeter(counters)
    meter.start()
    meter.charge(Account.TRAIN)
    assert meter.kwh() == {}


def test_a_part_that_was_not_measured_before_has_no_figure_for_the_whole_run() -> None:
    meter = EnergyMeter(
        [EnergyCounter(Part.GPU, itertools.count().__next__), EnergyCounter(Part.CPU, itertools.count().__next__)]
    )
    meter.resume({"cpu": {**dict.fromkeys(Account, 0.0), "train": 7.0}})
    meter.start()
    meter.charge(Account.TRAIN)
    assert meter.kwh() == {"cpu": {Account.TRAIN: 8 / JOULES_PER_KWH}}


def write_zones(folder: Path, **zones: str) -> None:
    for number, (name, energy_uj) in enumerate(zones.items()):
        zone = folder / f"intel-rapl:{number}"
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name.replace('_', '-')}\n")
        (zone / "energy_uj").write_text(energy_uj)
        (zone / "max_energy_range_uj").write_text("262143328850\n")


def test_cpu_packages_and_their_memory_are_counted_and_not_their_cores_again(tmp_path: Path) -> None:
    write_zones(tmp_path, package_0="3000000\n", core="2000000\n", dram="500000\n", package_1="4000000\n", psys="9000000\n")
    found = energy.cpu_counters(tmp_path)
    assert [(counter.part, counter.read()) for counter in found] == [("cpu", 3.0), ("cpu", 0.5), ("cpu", 4.0)]
    assert found[0].wraps_at == pytest.approx(262143.32885)


def test_a_counter_that_cannot_be_read_leaves_its_part_unmeasured(tmp_path: Path) -> None:
    assert energy.cpu_counters(tmp_path / "none") == []
    write_zones(tmp_path, package_0="3000000\n", package_1="")
    assert energy.cpu_counters(tmp_path) == []


def fake_nvml(monkeypatch: pytest.MonkeyPatch, joules: dict[str, float]) -> None:
    """NVML of GPUs with these uuids, and torch's names for them in this order."""

    def handle(uuid: str) -> str:
        if uuid.removeprefix("GPU-") not in joules:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid.removeprefix("GPU-")

    names = list(joules)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: 1000 * joules[handle])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=[*names, "mig"][device.index]))


def test_gpus_are_found_by_their_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, {"a": 4.0, "b": 6.0})
    found = energy.gpu_counters([torch.device("cuda", 1), torch.device("cuda", 0)])
    assert [(counter.part, counter.read()) for counter in found] == [("gpu", 6.0), ("gpu", 4.0)]
    assert energy.gpu_counters([torch.device("cuda", 0), torch.device("cuda", 2)]) == []  # a part of a GPU has no counter


def test_without_a_driver_no_gpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert energy.gpu_counters([torch.device("cuda", 0)]) == []


def test_processes_on_one_machine_are_measured_together_and_on_several_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, {"a": 4.0, "b": 6.0})
    monkeypatch.setattr(energy, "cpu_counters", list)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [each.read() for each in energy.counters(torch.device("cuda", 0), processes=2)] == [4.0, 6.0]
    assert energy.counters(torch.device("cuda", 0), processes=4) == []


@pytest.fixture
def counted_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes 2 J for a step, 100 J for an evaluation, and nothing else."""
    joules = [0.0]

    def costing(function: Callable[..., Any], each: float) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            joules[0] += each
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(Step, "update", costing(Step.update, 2))
    monkeypatch.setattr(Evaluation, "scores", costing(Evaluation.scores, 100))
    monkeypatch.setattr(execution, "counters", lambda device, processes: [EnergyCounter(Part.CPU, lambda: joules[0])])


@pytest.mark.usefixtures("counted_joules")
def test_a_run_stores_the_energy_of_its_accounts(miniature: Path, tmp_path: Path) -> None:
    assert cli.main(["run", str(miniature), "--methods", "ligo", "--results", str(tmp_path)]) == 0
    stored = {run.name: run.record.energy_kwh for run in store.load_all(tmp_path / "miniature")}
    assert stored["scratch-seed0"]["cpu"][Account.TRAIN] * JOULES_PER_KWH == pytest.approx(2 * 12)
    ligo = {account: kwh * JOULES_PER_KWH for account, kwh in stored["ligo-seed0"]["cpu"].items()}
    assert ligo == pytest.approx({Account.OPERATOR: 2 * 3, Account.TRAIN: 2 * 12})


def test_a_machine_that_tells_nothing_stores_nothing(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "counters", lambda device, processes: [])
    assert cli.main(["run", str(miniature), "--methods", "scratch", "--results", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "miniature" / "scratch-seed0" / "run.json").read_text())["energy_kwh"] == {}
