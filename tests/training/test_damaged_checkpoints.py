"""Whatever is wrong with a checkpoint, it is named and passed over, the older one is taken, and no good one is lost."""

from __future__ import annotations

import errno
import json
import math
import pickle
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn, optim

from growbench.training import checkpoint
from growbench.training.checkpoint import Checkpoint, Checkpoints
from tests.test_trust import Bomb
from tests.training.test_checkpoint import STATE

Write = Callable[..., Path]


def made(width: int = 3) -> tuple[nn.Module, optim.Optimizer]:
    """A model and its optimizer after a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
    optimizer = optim.AdamW(model.parameters())
    model(torch.randn(4, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def of_step(step: int, width: int = 3, rows: int = 0) -> Checkpoint:
    model, optimizer = made(width)
    with torch.no_grad():
        next(model.parameters()).fill_(step)
    state = replace(STATE, rows=rows, phases=[], phase=replace(STATE.phase, done=step))
    return Checkpoint.of(model, optimizer, torch.Generator(), state)


def fits(found: Checkpoint) -> None:
    found.check(*made())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Of steps 1 and 2 of a phase."""
    (tmp_path / "checkpoints").mkdir()
    found = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        found.save_step(0, step, of_step(step))
    return found


def reopened(checkpoints: Checkpoints) -> Checkpoints:
    """As another process opens them."""
    return Checkpoints(checkpoints.folder, curve=checkpoints.curve)


def step_of(checkpoints: Checkpoints) -> int | None:
    """The step of the newest usable one, and that it is what was written."""
    found = checkpoints.newest(0, fits)
    if found is None:
        return None
    expected = of_step(found.state.phase.done)
    assert found.state == expected.state
    assert all(torch.equal(found.tensors[key], expected.tensors[key]) for key in expected.tensors if key != "rng.cpu")
    return found.state.phase.done


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One bit, in the header every second time; or cut short, or a run of zeros."""
    damaged, header = bytearray(content), 8 + struct.unpack("<Q", content[:8])[0]
    damaged[rng.randrange(rng.choice([header, len(content)]))] ^= 1 << rng.randrange(8)
    match rng.randrange(6):
        case 0:
            del damaged[rng.randrange(len(damaged)) :]
        case 1:
            at = rng.randrange(len(damaged))
            damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
    return bytes(damaged)


def test_of_80_damaged_files_none_is_used(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    """Each costs one line, and the older checkpoint is taken."""
    newest, rng = checkpoints.folder / "phase-0-step-2.safetensors", random.Random(0)
    whole = newest.read_bytes()
    for _ in range(80):
        newest.write_bytes(flipped(whole, rng))
        assert step_of(reopened(checkpoints)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{newest}: this checkpoint cannot be used and is passed over: ")
    newest.write_bytes(whole)
    assert step_of(reopened(checkpoints)) == 2


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    """With other content, as a whole safetensors file."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        texts = file.metadata()
    change(tensors, texts)
    save_file(tensors, path, texts)


def sealed(change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> Callable[[Path], None]:
    """A file whose digest is right: its content is of no use for another reason."""

    def rewrite(path: Path) -> None:
        def seal(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
            change(tensors, texts)
            texts["sha256"] = checkpoint._sha256(tensors, texts)

        rewritten(path, seal)

    return rewrite


def with_state(**changes: Any) -> Callable[[Path], None]:
    return sealed(lambda _, texts: texts.update(state=json.dumps(json.loads(texts["state"]) | changes)))


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), ""),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), ""),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ""),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("unpickled")))), ""),
    "a link to nothing": (lambda path: (path.unlink(), path.symlink_to("nothing")), ""),
    "a header that claims more": (lambda path: path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:]), ""),
    "no digest": (lambda path: rewritten(path, lambda _, texts: texts.pop("sha256")), "sha256"),
    "a tensor changed": (lambda path: rewritten(path, lambda tensors, _: tensors["model.0.bias"].add_(1)), "sha256 differs"),
    "a text changed": (lambda path: rewritten(path, lambda _, texts: texts.update(state="{}")), "sha256 differs"),
    "another shape": (sealed(lambda tensors, _: tensors.update({"model.0.bias": torch.zeros(4)})), "another model"),
    "another type": (sealed(lambda tensors, _: tensors.update({"model.0.bias": torch.zeros(3).half()})), "another model"),
    "a tensor less": (sealed(lambda tensors, _: tensors.pop("model.0.bias")), "another model"),
    "no random state": (sealed(lambda tensors, _: tensors.pop("rng.task")), "rng.task"),
    "half a random state": (sealed(lambda tensors, _: tensors.update({"rng.cpu": tensors["rng.cpu"][:99].clone()})), ""),
    "another optimizer": (
        sealed(lambda _, texts: texts.update(optimizer=texts["optimizer"].replace("AdamW", "SGD"))),
        "optimizer",
    ),
    "a parameter that is none": (
        sealed(lambda _, texts: texts.update(optimizer=texts["optimizer"].replace('"parameter": 0', '"parameter": 9'))),
        "another optimizer",
    ),
    "deep nesting": (sealed(lambda _, texts: texts.update(optimizer="[" * 100_000 + "]" * 100_000)), ""),
    "a state without steps": (with_state(steps=None), "steps"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_cannot_be_used_is_passed_over(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str], what: str) -> None:
    damage, reason = UNUSABLE[what]
    damage(checkpoints.folder / "phase-0-step-2.safetensors")
    again = reopened(checkpoints)
    assert step_of(again) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "phase-0-step-2.safetensors: this checkpoint cannot be used and is passed over: " in line and reason in line
    assert not (checkpoints.folder / "unpickled").exists()
    again.save_step(0, 3, of_step(3))
    again.save_step(0, 4, of_step(4))
    names = {path.name for path in checkpoints.folder.iterdir() if path.is_file()}
    assert names == {"phase-0-step-3.safetensors", "phase-0-step-4.safetensors"}
    assert step_of(reopened(checkpoints)) == 4


def test_a_bad_one_does_not_count_among_those_that_are_kept(checkpoints: Checkpoints) -> None:
    """It would push out a good one."""
    (checkpoints.folder / "phase-0-step-9.safetensors").write_bytes(b"damaged")
    again = reopened(checkpoints)
    assert step_of(again) == 2
    again.save_step(0, 3, of_step(3))
    assert {path.name for path in checkpoints.folder.iterdir()} == {f"phase-0-step-{step}.safetensors" for step in (2, 3)}


def test_if_all_are_damaged_the_phase_begins_anew(checkpoints: Checkpoints) -> None:
    for path in checkpoints.folder.iterdir():
        path.write_bytes(b"")
    assert step_of(reopened(checkpoints)) is None


def test_a_checkpoint_counts_the_evaluations_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a curve that lacks some or has others, an older checkpoint may still know the beginning."""
    curve, folder = tmp_path / "curve.jsonl", tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2):
        curve.write_text("".join(f'{{"step": {each}}}\n' for each in range(1, step + 1)))
        Checkpoints(folder, curve=curve).save_step(0, step, of_step(step, rows=step))
    for content, expected in (
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2),  # was written after it, and is dropped
        ('{"step": 1}\n{"step": 7}\n', 1),
        ('{"step": 1}\n', 1),
        ("", None),
    ):
        curve.write_text(content)
        found = Checkpoints(folder, curve=curve).newest(0)
        assert (found.state.rows if found else None) == expected
        assert ("does not hold the 2 evaluations that it counts" in capsys.readouterr().err) == (expected != 2)


def test_a_checkpoint_of_the_earlier_format_is_read_as_before(checkpoints: Checkpoints) -> None:
    def older(_: object, texts: dict[str, str]) -> None:
        texts["format"] = "3"
        del texts["sha256"]

    rewritten(checkpoints.folder / "phase-0-step-2.safetensors", older)
    assert step_of(reopened(checkpoints)) == 2


@pytest.mark.parametrize(("seconds", "pause"), [(0.1, 0), (3, 0), (6, 60), (30, 540)])
def test_checkpoints_that_take_long_are_written_less_often(checkpoints: Checkpoints, seconds: float, pause: float) -> None:
    """At most a twentieth of the time goes into them: 6 s every two minutes."""
    checkpoints.seconds = seconds
    assert checkpoints.pause() == pause and seconds / (60 + pause) <= 0.05


# --- a disk with little room


@pytest.fixture
def disk(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """With room for so many checkpoints."""
    room = {"files": math.inf}

    def write(tensors: Any, path: Path, texts: Any) -> None:
        if len(list(checkpoints.folder.iterdir())) >= room["files"]:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path, texts)

    monkeypatch.setattr(checkpoint, "save_file", write)
    return room


def names_in(checkpoints: Checkpoints) -> set[str]:
    return {path.name.removesuffix(".safetensors") for path in checkpoints.folder.iterdir()}


def test_on_a_full_disk_the_older_one_makes_room(
    checkpoints: Checkpoints, disk: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    disk["files"] = 2
    for step in range(3, 7):
        checkpoints.save_step(0, step, of_step(step))
        assert names_in(checkpoints) == {f"phase-0-step-{step - 1}", f"phase-0-step-{step}"}
    assert capsys.readouterr().err == ""


def test_the_last_good_one_never_makes_room(
    checkpoints: Checkpoints, disk: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    disk["files"] = 1
    (checkpoints.folder / "phase-0-step-9.safetensors").write_bytes(b"damaged")
    again = reopened(checkpoints)
    assert step_of(again) == 2
    again.save_step(0, 3, of_step(3))
    assert names_in(again) == {"phase-0-step-2"} and step_of(reopened(again)) == 2
    assert "phase-0-step-3.safetensors: this checkpoint could not be kept: I/O error: No space left" in capsys.readouterr().err


def test_ends_of_phases_and_branches_never_make_room(checkpoints: Checkpoints, disk: dict[str, float]) -> None:
    """Replay needs the ends, other runs the branches; what is left within a phase that has ended does make room."""
    checkpoints.save_end(0, of_step(3))
    checkpoints.save_branch(3, of_step(3))
    disk["files"] = 3
    checkpoints.save_step(1, 1, of_step(1))
    assert names_in(checkpoints) == {"phase-0", "branch-3", "phase-1-step-1"}
    checkpoints.save_step(1, 2, of_step(2))
    assert names_in(checkpoints) == {"phase-0", "branch-3", "phase-1-step-1"}


def test_another_error_makes_no_room(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    checkpoints.save_step(0, 3, of_step(3))
    assert names_in(checkpoints) == {"phase-0-step-1", "phase-0-step-2"}


# --- what is removed, and what is not


def test_files_of_other_names_stay(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "config.json").write_text("{}")
    (checkpoints.folder / "phase-0.safetensors.0123abcd.part").write_text("a draft of a killed process")
    for name in ("notes.txt", "phase-0-step-1.safetensors.backup", "mine.part"):
        (checkpoints.folder / name).write_text("mine")
    checkpoints.remove()
    assert {path.name for path in checkpoints.folder.iterdir()} == {"notes.txt", "phase-0-step-1.safetensors.backup", "mine.part"}
    for path in checkpoints.folder.iterdir():
        path.unlink()
    checkpoints.remove()
    assert not checkpoints.folder.exists()


def test_a_run_that_was_killed_while_it_branched_off_branches_off_again(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    checkpoints.save_end(0, of_step(2))
    branch = replace(of_step(5), state=replace(of_step(5).state, phases=STATE.phases))
    checkpoints.save_branch(5, branch)
    (tmp_path / "rung").mkdir()
    rung = Checkpoints(tmp_path / "rung")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save_step", killed)
        rung.branch_off(checkpoints, branch)
    assert names_in(rung) == {"phase-0"}
    rung.branch_off(checkpoints, branch)
    found = rung.newest(1)
    assert found is not None and found.state.phase.done == 5
    rung.save_step(1, 6, of_step(6))
    rung.branch_off(checkpoints, branch)
    assert (found := rung.newest(1)) is not None and found.state.phase.done == 6, "a run that has begun goes on"


def test_a_trunk_whose_phase_end_is_damaged_has_no_branch(checkpoints: Checkpoints) -> None:
    checkpoints.save_end(0, of_step(2))
    checkpoints.save_branch(5, replace(of_step(5), state=replace(of_step(5).state, phases=STATE.phases)))
    assert reopened(checkpoints).branch(5) is not None
    (checkpoints.folder / "phase-0.safetensors").write_bytes(b"damaged")
    assert reopened(checkpoints).branch(5) is None
