"""Going on where a run stopped, bit by bit, for every method; and the branches of the ladder."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn, optim

from growbench.cli import main
from growbench.config.loading import load
from growbench.config.schema import Experiment
from growbench.costs.accounts import Account, Ledger, Part, Unit
from growbench.costs.energy import EnergyCounter
from growbench.errors import Interrupted
from growbench.method import schedule
from growbench.planning import plan
from growbench.planning.branches import branching_steps, shared
from growbench.planning.budgets import Budgets
from growbench.registry import Found, get, get_all
from growbench.runs import execution, store
from growbench.runs.benchmark import Benchmark
from growbench.runs.jobs import Setting
from growbench.training import trainer
from growbench.training.checkpoint import Checkpoint, Checkpoints
from growbench.training.parallel import Parallel
from growbench.training.records import PhaseRecord, PhaseUnderWay, RunState
from growbench.training.step import Step
from tests.conftest import Once
from tests.training.optimizers import OPTIMIZERS, Eventful, Optimized, Rewarmed

ALONE = Parallel(torch.device("cpu"))
OPTIONS: dict[str, dict[str, Any]] = {
    "ligo": {"operator_steps": 3},
    "msg": {"order": "together", "share": 0.6},
    "stackbert": {"state": "grown", "rewarm_steps": 3},
}
STATE = RunState(
    steps=7,
    tokens=448,
    scored_steps=4,
    rows=8,
    waited=0.25,
    val_loss=5.1,
    phases=[PhaseRecord(name="learn", steps=3, flops_per_step={Account.OPERATOR: 1e9 / 3}, growth_flops=17)],
    flops={Account.TRAIN: 2**60 + 1},
    seconds={Account.TRAIN: 0.1},
    phase=PhaseUnderWay(done=4, evaluated=4, step_seconds=[0.1], train_loss=math.inf, growth={"optimizer": "new"}),
    losses=[5.2],
    overhead=1.5,
    reached=False,
    evaluation_flops=99,
)


class Killed(Interrupted):
    """As a SIGKILL: nothing may catch it."""


@pytest.fixture
def experiment(miniature: Path) -> Experiment:
    """Every evaluation leaves a checkpoint, and dropout makes the random state matter."""
    found = load(str(miniature), ["train.steps=6"])
    return replace(found, target=replace(found.target, dropout=0.1), source=replace(found.source, dropout=0.1))


@pytest.fixture(autouse=True)
def at_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is run here can be."""
    monkeypatch.setattr(plan, "refuse", lambda *_: None)


def run_with_kill(benchmark: Benchmark, found: Found, kill_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one method, and die when it is about to take its `kill_at`-th step, probes included, the source's not."""
    steps = 0

    def counted(self: trainer.Trainer, *arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += self.output.progress.label.startswith(found.name)
        if steps == kill_at:
            raise Killed
        return loss(self, *arguments)

    def unless_killed(self: store.RunFolder, record: Any, validation: Any) -> bool:
        return record.method == found.name or close(self, record, validation)

    loss, close = trainer.Trainer._batch, store.RunFolder.close
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.Trainer, "_batch", counted)
        patch.setattr(store.RunFolder, "close", unless_killed)  # a killed process writes no record
        benchmark.run([found], [0])


def with_source(experiment: Experiment, folder: Path, once: Once) -> None:
    """Begin a results folder with the experiment's source, which is trained once for all of its tests."""
    train = experiment.source_train

    def fill(trained: Path) -> None:
        assert Benchmark(Setting(experiment, trained, ALONE)).run([], [0], sources_of=[0])

    trained = once(f"source of {train.steps} steps, {train.schedule}, {experiment.source.dropout}", fill)
    shutil.copytree(trained / "source-seed0", folder / "source-seed0")


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A run's curve and record, but for seconds."""
    run = store.load(folder)
    assert run is not None
    curve = [{key: value for key, value in row.items() if key != "seconds"} for row in run.curve]
    losses = ("final_val_loss", "final_test_loss")
    record = {key: getattr(run.record, key) for key in ("status", "steps", "tokens", *losses, "config")}
    record["documents"] = run.documents.tolist() if run.documents is not None else None
    accounts = {key: value for key, value in run.record.cost.flops.items() if key != "overhead"}  # replay probes again
    phases = [replace(phase, median_step_seconds=None, seconds=None, cpu_seconds=None) for phase in run.record.phases]
    return curve, record | {"flops": accounts, "phases": phases}


@pytest.mark.parametrize("name", ["mslt", "ki", "ligo", "msg", "progressive_net", "rewarmed"])
def test_a_killed_run_goes_on_to_the_same_bits(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once: Once, name: str
) -> None:
    """One method of each kind; `python -m tests.soak.crash` kills all. `rewarmed`: Muon, new entries at a rate of their own."""
    found = Found(name, Rewarmed("muon"), "here") if name == "rewarmed" else get(name, OPTIONS.get(name))
    for each in ("whole", "killed"):
        with_source(experiment, tmp_path / each, once)
    Benchmark(Setting(experiment, tmp_path / "whole", ALONE)).run([found], [0])
    whole = outcome(tmp_path / "whole" / f"{name}-seed0")
    resumed = Benchmark(Setting(experiment, tmp_path / "killed", ALONE))
    for kill_at in (3, 6):  # in the first phase, and later; probes are steps too
        run_with_kill(resumed, found, kill_at, monkeypatch)
    resumed.run([found], [0])
    curve, record = outcome(resumed.setting.folder / f"{name}-seed0")
    assert curve == whole[0]
    assert record == whole[1]
    assert not (resumed.setting.folder / f"{name}-seed0" / "checkpoints").exists()


def joules_of_steps(monkeypatch: pytest.MonkeyPatch, each: float) -> None:
    """Counters of a machine that takes so many joules for a step, and nothing else."""
    taken, update = [0.0], Step.update

    def counted(self: Step) -> None:
        taken[0] += each
        update(self)

    monkeypatch.setattr(Step, "update", counted)
    monkeypatch.setattr(execution, "counters", lambda device, processes: [EnergyCounter(Part.GPU, lambda: taken[0])])


def test_the_energy_of_a_resumed_run_is_that_of_its_steps(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done after the last checkpoint and is done again is not counted twice."""
    joules_of_steps(monkeypatch, 3.6e6)
    benchmark = Benchmark(Setting(experiment, tmp_path, ALONE))
    run_with_kill(benchmark, get("scratch"), 6, monkeypatch)
    benchmark.run([get("scratch")], [0])
    run = store.load(tmp_path / "scratch-seed0")
    assert run and run.record.energy_kwh == {Part.GPU: {Account.TRAIN: pytest.approx(6)}}


def test_energy_that_was_measured_in_part_is_not_stored(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = Benchmark(Setting(experiment, tmp_path, ALONE))
    with monkeypatch.context() as patch:
        patch.setattr(execution, "counters", lambda device, processes: [])
        run_with_kill(benchmark, get("scratch"), 6, monkeypatch)
    joules_of_steps(monkeypatch, 1)
    benchmark.run([get("scratch")], [0])
    run = store.load(tmp_path / "scratch-seed0")
    assert run and run.record.energy_kwh == {}


def test_a_run_goes_on_only_with_the_same_configuration(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = get("scratch")
    run_with_kill(Benchmark(Setting(experiment, tmp_path / "a", ALONE)), scratch, 6, monkeypatch)
    changed = replace(experiment, train=replace(experiment.train, lr=2e-3))
    Benchmark(Setting(changed, tmp_path / "a", ALONE)).run([scratch], [0])
    Benchmark(Setting(changed, tmp_path / "b", ALONE)).run([scratch], [0])
    assert outcome(tmp_path / "a" / "scratch-seed0") == outcome(tmp_path / "b" / "scratch-seed0")


def test_an_unreadable_checkpoint_is_passed_over(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = get("scratch")
    Benchmark(Setting(experiment, tmp_path / "whole", ALONE)).run([scratch], [0])
    killed = Benchmark(Setting(experiment, tmp_path / "killed", ALONE))
    run_with_kill(killed, scratch, 6, monkeypatch)
    folder = tmp_path / "killed" / "scratch-seed0" / "checkpoints"
    files = sorted(folder.glob("phase-0-step-*"), key=lambda path: int(path.stem.rpartition("-")[2]))
    assert len(files) == 2  # the newest two are kept
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    killed.run([scratch], [0])
    assert outcome(tmp_path / "killed" / "scratch-seed0") == outcome(tmp_path / "whole" / "scratch-seed0")


def damaged(file: Path) -> None:
    """With one bit flipped."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_run_whose_files_were_damaged_ends_with_the_same_bits(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in its second phase. It takes what is good, else it begins anew; no run fails for it."""
    stackbert = get("stackbert")
    Benchmark(Setting(experiment, tmp_path / "whole", ALONE)).run([stackbert], [0])
    run_with_kill(Benchmark(Setting(experiment, tmp_path / "killed", ALONE)), stackbert, 9, monkeypatch)
    for what in ("the end of a phase", "all checkpoints", "the curve"):
        folder = shutil.copytree(tmp_path / "killed", tmp_path / what) / "stackbert-seed0"
        files = list((folder / "checkpoints").glob("*.safetensors"))
        assert any(file.name.startswith("phase-1-step-") for file in files), "killed in the second phase"
        if what == "the curve":
            (folder / "curve.jsonl").write_text("".join((folder / "curve.jsonl").read_text().splitlines(keepends=True)[:3]))
        for file in files:
            if what == "all checkpoints" or (what == "the end of a phase" and file.name == "phase-0.safetensors"):
                damaged(file)
        assert Benchmark(Setting(experiment, tmp_path / what, ALONE)).run([stackbert], [0])
        assert "this checkpoint cannot be used and is passed over: " in capsys.readouterr().err
        assert outcome(folder) == outcome(tmp_path / "whole" / "stackbert-seed0"), what


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False)
    rng = torch.Generator()
    Checkpoint.of(model, torch.optim.AdamW(model.parameters()), rng, STATE).save(tmp_path / "x.safetensors")
    loaded = Checkpoint.load(tmp_path / "x.safetensors")
    assert loaded.state == STATE
    with pytest.raises(ValueError, match="another model"):
        loaded.restore(other, torch.optim.AdamW(other.parameters()), rng, torch.device("cpu"))


# --- any optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_goes_on_from_a_checkpoint(tmp_path: Path, name: str) -> None:
    """To the bits that it would have come to: whatever state it has."""
    (model, optimizer), (other, again) = ((made, OPTIMIZERS[name](made)) for made in map(two_layers, (0, 1)))
    train(model, optimizer, 3)
    Checkpoint.of(model, optimizer, torch.Generator(), STATE).save(tmp_path / "x.safetensors")
    Checkpoint.load(tmp_path / "x.safetensors").restore(other, again, torch.Generator(), torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, optimizer, 3)
    train(other, again, 3)
    for old, one, two in zip(before, model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two) and not (one.requires_grad and torch.equal(one, old))


def two_layers(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.linspace(-1, 1, 8).view(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["SGD", "CombinedOptimizer", "Eventful", "Lookahead"])
def test_a_killed_run_goes_on_with_any_optimizer(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Killed in the first phase and in the second one, which goes on with the first one's optimizer.

    One without state, one that holds others, one that holds more than tensors, one around another.
    """
    found = Found("scratch", Optimized(name), "here")
    Benchmark(Setting(experiment, tmp_path / "whole", ALONE)).run([found], [0])
    killed = Benchmark(Setting(experiment, tmp_path / "killed", ALONE))
    for phase, kill_at in enumerate((4, 7)):
        run_with_kill(killed, found, kill_at, monkeypatch)
        left = (tmp_path / "killed" / "scratch-seed0" / "checkpoints").glob("phase-*-step-*.safetensors")
        assert max(path.name for path in left).startswith(f"phase-{phase}-")
    killed.run([found], [0])
    assert outcome(killed.setting.folder / "scratch-seed0") == outcome(tmp_path / "whole" / "scratch-seed0")


def test_a_checkpoint_keeps_what_an_optimizer_holds(tmp_path: Path) -> None:
    """Types, tensors that are held twice, and references to parameters included."""
    made = []
    for steps in (3, 0):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optimizer = Eventful(model.parameters(), lr=0.1)
        for _ in range(steps):
            model(torch.ones(2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        made.append((model, optimizer))
    (model, optimizer), (fresh_model, fresh) = made
    Checkpoint.of(model, optimizer, torch.Generator(), STATE).save(tmp_path / "x.safetensors")
    loaded = Checkpoint.load(tmp_path / "x.safetensors")
    loaded.restore(fresh_model, fresh, torch.Generator(), torch.device("cpu"))
    assert (fresh.calls, fresh.norms, fresh.rule) == (3, optimizer.norms, torch.atan)
    assert fresh.param_groups[0]["decay"] == 0.97**3 == optimizer.param_groups[0]["decay"]
    assert torch.equal(fresh.average, optimizer.average) and fresh.also_average[0] is fresh.average
    assert fresh.first is next(fresh_model.parameters())
    for one, other in zip(model.parameters(), fresh_model.parameters(), strict=True):
        old, new = optimizer.state[one], fresh.state[other]
        assert (type(new["seen"]), new["seen"], new["window"]) == (int, 3, old["window"])
        assert torch.equal(new["last"]["gradient"], old["last"]["gradient"])
    with pytest.raises(ValueError, match="another optimizer"):
        loaded.restore(fresh_model, optim.AdamW(fresh_model.parameters()), torch.Generator(), torch.device("cpu"))


def test_training_goes_on_without_a_checkpoint_that_cannot_hold_the_optimizer(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_a_set(model: nn.Module) -> optim.Optimizer:
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        optimizer.state[next(model.parameters())]["seen"] = [{1, 2}]
        return optimizer

    monkeypatch.setitem(OPTIMIZERS, "with a set", with_a_set)
    assert Benchmark(Setting(experiment, tmp_path, ALONE)).run([Found("scratch", Optimized("with a set"), "here")], [0])
    said = capsys.readouterr().err.splitlines()
    path = tmp_path / "scratch-seed0" / "checkpoints" / "phase-0.safetensors"
    assert (
        f"{path}: this checkpoint could not be kept: SGD['state'][parameter 0]['seen'][0] is of type set; "
        "an optimizer may hold tensors, numbers, strings, None, and lists, tuples and dictionaries of them"
    ) in said


def test_a_checkpoint_of_an_earlier_version_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "phase-0.safetensors"
    save_file({"rng.cpu": torch.get_rng_state()}, path, {"state": "{}"})
    assert Checkpoints(tmp_path / "checkpoints").ended(0) is None
    assert capsys.readouterr().err == f"{path}: this checkpoint cannot be used and is passed over: " + (
        "it was written by another version of growbench\n"
    )


# --- the ladder

WSD = ["train.schedule=wsd", "train.decay=0.4", "train.steps=10"]
RUNGS = Budgets((0.4, 0.7, 1.0))


def climb(experiment: Experiment, folder: Path, names: list[str]) -> dict[str, store.Run]:
    Benchmark(Setting(experiment, folder, ALONE), RUNGS).run(get_all(names, OPTIONS), [0])
    return {run.folder.name: run for run in store.load_all(folder)}


@pytest.fixture
def wsd(miniature: Path) -> Experiment:
    return load(str(miniature), WSD)


@pytest.fixture
def climbed(wsd: Experiment, once: Once) -> dict[str, store.Run]:
    """Scratch's ladder, trained once."""
    folder = once("climbed", lambda folder: climb(wsd, folder, ["scratch"]))
    return {run.folder.name: run for run in store.load_all(folder)}


def alone(experiment: Experiment, folder: Path, name: str) -> store.Run:
    """A run of its own at a shorter budget."""
    Benchmark(Setting(experiment, folder, ALONE)).run([get(name, OPTIONS.get(name))], [0])
    run = store.load(folder / f"{name}-seed0")
    assert run is not None
    return run


def test_a_kill_between_an_evaluation_and_its_checkpoint_leaves_no_row_twice(
    wsd: Experiment, climbed: dict[str, store.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that branches off a longer one: the rows that were written after the last checkpoint are written anew."""
    rung = "scratch-seed0-budget0.7"
    whole = climbed[rung]
    save, close = Checkpoints.save_step, store.RunFolder.close
    for kill_at in (2, 2):
        saved = 0

        def until_killed(self: Checkpoints, *arguments: Any, kill_at: int = kill_at) -> None:
            nonlocal saved
            saved += self.folder.parent.name == rung
            if saved == kill_at:
                raise Killed
            save(self, *arguments)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Checkpoints, "save_step", until_killed)
            patch.setattr(store.RunFolder, "close", lambda self, *each: self.path.name == rung or close(self, *each))
            climb(wsd, tmp_path / "killed", ["scratch"])
        assert len((tmp_path / "killed" / rung / "curve.jsonl").read_text().splitlines()) > 1, "killed after an evaluation"
    again = climb(wsd, tmp_path / "killed", ["scratch"])[rung]
    steps = [json.loads(line)["step"] for line in (again.folder / "curve.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) == [row["step"] for row in whole.curve]
    assert again.cut == 0 and again.final_loss == whole.final_loss


@pytest.mark.parametrize("name", ["ligo", "mslt"])
def test_a_rung_is_bit_by_bit_the_run_alone_at_its_budget(
    miniature: Path, wsd: Experiment, tmp_path: Path, once: Once, name: str
) -> None:
    """From the source of the full budget."""
    with_source(wsd, tmp_path / "ladder", once)
    rungs = climb(wsd, tmp_path / "ladder", [name])
    for budget in (0.4, 0.7):
        shorter = load(str(miniature), [*WSD, f"train.steps={round(10 * budget)}", "source.steps=10"])
        with_source(wsd, tmp_path / f"{budget}", once)
        own, rung = alone(shorter, tmp_path / f"{budget}", name), rungs[f"{name}-seed0-budget{budget}"]
        assert rung.record.final_val_loss == own.record.final_val_loss
        assert rung.record.steps == own.record.steps
        assert [row["val_loss"] for row in rung.curve] == [row["val_loss"] for row in own.curve]
        for account in (Account.TRAIN, Account.OPERATOR, Account.GROWTH):  # charged as if alone
            assert rung.record.cost.flops[account] == own.record.cost.flops[account]
        if name == "mslt":  # its stages are shares of the budget: nothing is shared
            assert rung.record.inherited is None
        else:
            stable = schedule.stable_steps(wsd.train, round(10 * budget))
            each = rung.record.phases[-1].flops_per_step[Account.TRAIN]
            operator, growth = (rung.record.cost.flops[account] for account in (Account.OPERATOR, Account.GROWTH))
            assert rung.record.inherited is not None and rung.record.inherited.seconds is not None
            assert rung.record.inherited.flops == stable * each + operator + growth
            found = get(name, OPTIONS.get(name))
            assert shared(plan.plan(shorter, found, 300), stable) == rung.record.inherited.flops
            assert 0 < rung.record.inherited.seconds < rung.cost(Unit.SECONDS, Ledger.REUSE)
    assert not list((tmp_path / "ladder").glob("*/checkpoints"))


def test_a_linear_schedule_shares_no_trunk(miniature: Path, wsd: Experiment) -> None:
    linear = load(str(miniature))
    shorter = replace(wsd, train=replace(wsd.train, steps=8))
    assert branching_steps(linear, [replace(linear, train=replace(linear.train, steps=8))], get("scratch").method, 300) == [None]
    sharing = ("scratch", "ligo", "net2net", "random_source")
    shares = ("ki", "lag", "mslt", "raptr", "scratch_short", "stackbert")  # their stages, guidance or schedules are of the budget
    methods = {name: get(name, OPTIONS.get(name)).method for name in (*sharing, *shares)}
    steps = {name: step for name, method in methods.items() for step in branching_steps(wsd, [shorter], method, 300)}
    assert steps == dict.fromkeys(sharing, 5) | dict.fromkeys(shares)  # eight steps less two fifths


def test_a_rung_whose_trunk_kept_no_branch_is_trained_alone(
    wsd: Experiment, climbed: dict[str, store.Run], tmp_path: Path
) -> None:
    Benchmark(Setting(wsd, tmp_path / "a", ALONE)).run([get("scratch")], [0])  # single first
    Benchmark(Setting(wsd, tmp_path / "a", ALONE), RUNGS).run([get("scratch")], [0])
    for name, run in climbed.items():
        later = store.load(tmp_path / "a" / name)
        assert later is not None and later.record.final_val_loss == run.record.final_val_loss
        assert later.record.inherited is None


def test_a_signal_lets_the_step_end_and_the_run_go_on_from_it(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM and SIGINT in steps that are no evaluation's: saved, 130, and the last call ends as an uninterrupted one."""
    make, loss = trainer.Trainer.__init__, trainer.Trainer._batch

    def evaluates_seldom(self: trainer.Trainer, *arguments: Any) -> None:
        make(self, *arguments)
        self.every = 8  # as with a budget of 800 steps

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 1e9)
    monkeypatch.setattr(trainer.Trainer, "__init__", evaluates_seldom)
    arguments = ["run", str(miniature), "--methods", "scratch", "--set", "train.steps=20", "--results"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    steps = 0

    def signalled(self: trainer.Trainer, *rest: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps in signals:
            os.kill(os.getpid(), signals[steps])
        return loss(self, *rest)

    signals = {6: signal.SIGTERM, 18: signal.SIGINT}  # probes count too: the first, after resuming again, a hidden one
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_batch", signalled)
        for done in (5, 15):
            assert main([*arguments, str(tmp_path / "stopped")]) == 130
            stopped = store.load(tmp_path / "stopped" / "miniature" / "scratch-seed0")
            assert stopped is not None and stopped.record.status == "interrupted" and stopped.record.steps == done
    assert main([*arguments, str(tmp_path / "stopped")]) == 0
    assert stopped is not None and outcome(stopped.folder) == outcome(tmp_path / "whole" / "miniature" / "scratch-seed0")
