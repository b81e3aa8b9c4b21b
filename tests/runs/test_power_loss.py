"""After a power loss at any moment all is readable, at most the present step is lost, and the run goes on to the same end."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from growbench.costs.hardware import Hardware
from growbench.data import cache
from growbench.files import write_text
from growbench.runs import store
from growbench.runs.records import RunStatus
from growbench.training.checkpoint import Checkpoint, Checkpoints
from growbench.training.records import HeldOutLoss
from tests.power_loss import Disk, State, recorded
from tests.runs.test_records import RECORD
from tests.training.test_checkpoint import STATE

HARDWARE = Hardware(device="cpu", name="Some CPU", threads=1)
PHASES, STEPS = 2, 2


class Training:
    """A run of some steps at the level of the store: each gives a row and a checkpoint. Counts the steps that are taken."""

    def __init__(self, folder: Path, identity: str = "first", disk: Disk | None = None) -> None:
        self.folder, self.identity, self.disk, self.taken = folder / "method-seed0", identity, disk, 0
        self.model = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.5)
        self.rng = torch.Generator().manual_seed(0)

    def run(self) -> None:
        run = store.RunFolder(self.folder, {"run": self.identity}, HARDWARE)
        checkpoints = Checkpoints(run.checkpoints, curve=run.curve.path)
        rows = 0
        for phase in range(PHASES):
            found = checkpoints.ended(phase) or checkpoints.newest(phase)
            done = 0
            if found:
                found.restore(self.model, self.optimizer, self.rng, torch.device("cpu"))
                done, rows = found.state.phase.done, found.state.rows
            for step in range(done + 1, STEPS + 1):
                self._step()
                del run.curve[rows:]
                run.curve.append({"step": phase * STEPS + step, "val_loss": self.model.weight.sum().item()} | ROW)
                rows += 1
                checkpoints.save_step(phase, step, self._checkpoint(phase, step, rows))
                self._mark(phase * STEPS + step)
            if done < STEPS:
                checkpoints.save_end(phase, self._checkpoint(phase, STEPS, rows))
        documents = HeldOutLoss(np.array([1.0, 3.0]), np.array([5, 5]))
        assert run.close(replace(RECORD, status=RunStatus.FINISHED, final_val_loss=2.0), documents)
        self._mark(math.inf)
        checkpoints.remove()

    def _step(self) -> None:
        self.taken += 1
        self.optimizer.zero_grad()
        self.model(torch.rand(2, generator=self.rng)).sum().backward()
        self.optimizer.step()

    def _checkpoint(self, phase: int, step: int, rows: int) -> Checkpoint:
        state = replace(STATE, rows=rows, phases=STATE.phases * phase, phase=replace(STATE.phase, done=step))
        return Checkpoint.of(self.model, self.optimizer, self.rng, state)

    def _mark(self, steps: float) -> None:
        if self.disk:
            self.disk.mark = steps


ROW = {"flops": 1, "seconds": 1.0, "scored": True, "phase": "train"}


def left(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


Each = Callable[[Disk], Iterator[tuple[State, Path]]]


@pytest.fixture
def each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Each:
    """Lays out each state of a disk in a folder of its own. Nothing that has its name may be found damaged."""

    def states(disk: Disk) -> Iterator[tuple[State, Path]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda number: None)  # what is flushed from now on is of no interest
            for state in disk.states:
                folder = tmp_path / "after"
                folder.mkdir()
                state.write(folder)
                store.say_once.cache_clear()
                cache._checked.clear()
                yield state, folder
                assert capsys.readouterr().err == "", state.moment
                shutil.rmtree(folder)

    return states


def test_a_file_that_is_not_flushed_may_be_lost(tmp_path: Path) -> None:
    """The simulation itself: renamed without a flush, a file may be there and empty; written in place, it may be as before."""
    (tmp_path / "there").write_text("old")
    with recorded(tmp_path) as disk:
        (tmp_path / "draft").write_text("new")
        os.replace(tmp_path / "draft", tmp_path / "there")
    assert [state.files.get("there") for state in disk.states] == [b"old", b"old", b"old", b"", b"new"]
    with recorded(tmp_path) as disk:
        write_text(tmp_path / "there", "newest")
    assert {state.files["there"] for state in disk.states} == {b"new", b"newest"}
    assert disk.states[-1].files == {"there": b"newest"}


def test_a_run_goes_on_to_the_same_end(tmp_path: Path, each: Each) -> None:
    """With all steps whose checkpoint had been written; and a run that had ended has ended."""
    (whole := tmp_path / "whole").mkdir()
    with recorded(whole) as disk:
        Training(whole, disk=disk).run()
    assert len(disk.states) > 40
    for state, folder in each(disk):
        before = store.load_all(folder)
        assert [run.finished for run in before] == [True] * len(before) and (before or state.mark != math.inf)
        if before:
            Checkpoints(folder / "method-seed0" / "checkpoints").remove()
        else:
            again = Training(folder)
            again.run()
            assert again.taken <= PHASES * STEPS - (state.mark or 0), state.moment
        assert left(folder) == left(whole), state.moment


def test_a_finished_run_that_makes_way_is_kept_with_what_stands_beside_it(tmp_path: Path, each: Each) -> None:
    (results := tmp_path / "results").mkdir()
    Training(results).run()
    (results / "method-seed0" / "notes.txt").write_text("mine")
    old = left(results / "method-seed0")
    with recorded(results) as disk:
        Training(results, "second").run()
    for state, folder in each(disk):
        kept = [path.parent for path in folder.rglob("notes.txt")]
        assert kept and all(left(path) == old for path in kept), state.moment
        if folder / "method-seed0" not in kept:
            if store.load(folder / "method-seed0"):
                Checkpoints(folder / "method-seed0" / "checkpoints").remove()
            else:
                Training(folder, "second").run()
            assert left(folder / "method-seed0") == left(results / "method-seed0"), state.moment


def test_data_are_prepared_in_full_or_not_at_all(tmp_path: Path, each: Each, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path) -> None:
        for name in ("train.bin", "tokenizer.json"):
            (folder / name).write_text(name)

    def prepare(folder: Path) -> list[str]:
        monkeypatch.setenv("GROWBENCH_CACHE", str(folder))
        return cache.cached([], fill, lambda found: [(found / name).read_text() for name in ("train.bin", "tokenizer.json")])

    (whole := tmp_path / "whole").mkdir()
    with recorded(whole) as disk:
        prepare(whole)
    for _, folder in each(disk):
        assert prepare(folder) == ["train.bin", "tokenizer.json"]
