"""Checkpoints of a run: all that training needs to continue as if it had never stopped. Safetensors with JSON inside; no pickle.

A run resumes by replay. Its method's generator runs again from the start. A phase that had ended is loaded instead of trained,
and the phase that was under way continues at its last checkpoint. A run that branches off another one resumes from that one's
files.

A file holds the sha256 of its content and of the evaluations that its run had made. A file that is damaged, or that does not fit
the run, is named and passed over: an older one takes its place, or the phase is trained from its start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench.console import say
from growbench.elapsed import Part, elapsed
from growbench.files import no_room, remove_drafts, replacing
from growbench.training import optimizer_state
from growbench.training.encoding import apart, decoded, encoded
from growbench.training.records import RunState

FORMAT = "4"
WITHOUT_DIGEST = "3"  # the format of earlier versions, which is read too

# the files in a run's folder of checkpoints
OWN = re.compile(r"(?:phase-(\d+)(?:-step-\d+)?|branch-\d+)\.safetensors|(?:config|hardware)\.json")


RandomStates = dict[str, Tensor]  # of torch's own generators


@dataclass(frozen=True)
class Checkpoint:
    """A model, its optimizer, the random states and the run's counters at one step."""

    tensors: Mapping[str, Tensor]  # of the model and of the random generators
    optimizer: dict[str, Any]  # as growbench.training.optimizer_state.contents returns it
    state: RunState

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        rng: torch.Generator,
        state: RunState,
        randomness: RandomStates | None = None,
    ) -> Checkpoint:
        """A checkpoint of the present step. `rng`: the task's generator. `randomness`: torch's random states; None: present."""
        tensors = {f"model.{name}": tensor for name, tensor in _tensors(model).items()}
        tensors |= {"rng.task": rng.get_state()} | (randomness or random_states())
        return cls(tensors, optimizer_state.contents(optimizer), state)

    @classmethod
    def load(cls, path: Path, curve: Path | None = None) -> Checkpoint:
        """Read a file. `curve`: its run's curve.jsonl, which must hold the evaluations that the checkpoint counts.

        Raises an exception if it cannot be read or is damaged: safetensors and JSON have many for a damaged file.
        """
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if texts.get("format") not in (FORMAT, WITHOUT_DIGEST):
            raise ValueError("it was written by another version of growbench")
        if texts["format"] == FORMAT and texts["sha256"] != _sha256(tensors, texts):
            raise ValueError("it is damaged (sha256 differs)")
        state = RunState.read(texts["state"])
        if curve:
            found = rows_digest(curve, state.rows)
            if not found or texts.get("curve", found) != found:
                raise ValueError(f"{curve.name} does not hold the {state.rows} evaluations that it counts")
        return cls(tensors, decoded(json.loads(texts["optimizer"]), tensors), state)

    def save(self, path: Path, curve: Path | None = None) -> None:
        """Write a file, in full or not at all. `curve`: its run's curve.jsonl, if that is to be checked when it is read.

        Raises OSError, SafetensorError, or ValueError for data that cannot be stored.
        """
        tensors = dict(self.tensors)
        optimizer = encoded(self.optimizer, tensors, self.optimizer["class"])
        texts = {"format": FORMAT, "state": self.state.text(), "optimizer": json.dumps(optimizer)}
        if curve:
            texts["curve"] = rows_digest(curve, self.state.rows)
        contents = apart(tensors)
        texts["sha256"] = _sha256(contents, texts)
        with replacing(path) as draft:
            save_file(contents, draft, texts)

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Raise an exception if the checkpoint cannot be restored to this model and this optimizer. Changes nothing."""
        own = {f"model.{name}": (tensor.shape, tensor.dtype) for name, tensor in _tensors(model).items()}
        if own != {key: (each.shape, each.dtype) for key, each in self.tensors.items() if key.startswith("model.")}:
            raise ValueError("the checkpoint is of another model")
        optimizer_state.check(optimizer, self.optimizer)
        for name in ("rng.task", "rng.cpu"):
            torch.Generator().set_state(self.tensors[name])

    def restore(self, model: nn.Module, optimizer: Optimizer, rng: torch.Generator, device: torch.device) -> None:
        """Bring model, optimizer (its state to `device`) and random states back, in place. As `check`, raises before a change."""
        self.check(model, optimizer)
        with torch.no_grad():
            for name, tensor in _tensors(model).items():
                tensor.copy_(self.tensors[f"model.{name}"])
        optimizer_state.restore(optimizer, self.optimizer, device)
        rng.set_state(self.tensors["rng.task"])
        torch.set_rng_state(self.tensors["rng.cpu"])
        if "rng.cuda" in self.tensors and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self.tensors["rng.cuda"])


def _sha256(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """The digest of a file's content: of names, types, shapes and values of its tensors, and of its texts."""
    digest = hashlib.sha256()
    for key in sorted(texts.keys() - {"sha256"}):
        digest.update(f"{key} {texts[key]}\0".encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rows_digest(curve: Path, rows: int) -> str:
    """The sha256 of the first rows of a curve.jsonl. Empty if there are not so many."""
    lines = curve.read_bytes().splitlines()[:rows] if curve.is_file() else []
    return digest_of(lines).hexdigest() if len(lines) == rows else ""


def digest_of(lines: Iterable[bytes]) -> hashlib._Hash:
    """The sha256 of lines that are given without their ends: so it does not change where these are written otherwise."""
    return hashlib.sha256(b"".join(line + b"\n" for line in lines))


def random_states() -> RandomStates:
    """Of torch's generators on the CPU and on the CUDA device, by their names in a checkpoint."""
    states = {"rng.cpu": torch.get_rng_state()}
    return states | {"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else states


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers, tied ones once. Empty parameters are left out."""
    persistent = model.state_dict(keep_vars=True)
    named = {**dict(model.named_parameters()), **{name: b for name, b in model.named_buffers() if name in persistent}}
    return {name: tensor for name, tensor in named.items() if tensor.numel()}


Fits = Callable[[Checkpoint], None]  # raises an exception for a checkpoint that is not of the phase at hand


class Checkpoints:
    """The checkpoint files of one run: the end of each phase, the newest ones of the present phase, and branches.

    `curve`: the run's curve.jsonl, which must hold what a checkpoint counts; None: that is not checked.
    """

    def __init__(self, folder: Path, writes: bool = True, curve: Path | None = None) -> None:
        self.folder, self.curve = folder, curve
        self.writes = writes  # of several processes, only one does
        self.seconds = 0.0  # that writing the last file took
        self._useless: set[Path] = set()  # files that were passed over

    def pause(self) -> float:
        """Seconds beyond a minute to wait with the next one, so that writing takes at most a twentieth of the time."""
        return 20 * max(0.0, self.seconds - 3)

    def ended(self, phase: int, fits: Fits | None = None) -> Checkpoint | None:
        """The end of a phase, by its number; None if it has not ended, or its file cannot be used."""
        return self._read(self._end(phase), fits)

    def newest(self, phase: int, fits: Fits | None = None) -> Checkpoint | None:
        """The newest one within a phase that can be used."""
        return next((found for path in self._within(phase) if (found := self._read(path, fits))), None)

    def save_end(self, phase: int, checkpoint: Checkpoint) -> None:
        self._save(self._end(phase), checkpoint)

    def save_step(self, phase: int, step: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint within a phase, beside the one before it: one of them may get damaged."""
        path = self.folder / f"phase-{phase}-step-{step}.safetensors"
        before = self._usable(phase)
        if self._save(path, checkpoint):
            _remove(each for each in self._within(phase) if each not in (path, *before[:1]))

    def save_branch(self, scored_steps: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint for runs that branch off after so many scored steps."""
        self._save(self._branch(scored_steps), checkpoint)

    def branch(self, scored_steps: int) -> Checkpoint | None:
        """The checkpoint for a branch; None unless the ends of all phases before it can be used too."""
        found = self._read(self._branch(scored_steps))
        return found if found and all(self.ended(phase) for phase in range(len(found.state.phases))) else None

    def branch_off(self, trunk: Checkpoints, branch: Checkpoint) -> None:
        """Start this run at a branch of another one. A run that has got as far keeps its checkpoints."""
        number = len(branch.state.phases)
        if self.writes and not any(phase >= number for phase in self._phases()):
            for phase in range(number):
                with replacing(self._end(phase)) as draft:
                    shutil.copyfile(trunk._end(phase), draft)
            self.save_step(number, branch.state.phase.done, branch)

    @elapsed.part(Part.CHECKPOINTS)
    def remove(self) -> None:
        """Delete the files, when the run has ended and no other one will branch off. Files of other names stay."""
        if self.writes and self.folder.is_dir():
            _remove(path for path in self.folder.iterdir() if OWN.fullmatch(path.name))
            with suppress(OSError):
                remove_drafts(self.folder)
                self.folder.rmdir()

    @elapsed.part(Part.CHECKPOINTS)
    def _save(self, path: Path, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint; on a full disk, those that resuming does not need make room. Returns whether it was written.

        If it cannot be written, say why and let training continue.
        """
        if not self.writes:
            return False
        started = time.perf_counter()
        try:
            try:
                checkpoint.save(path, self.curve)
            except (OSError, SafetensorError) as error:
                if not (no_room(error) and self._make_room()):
                    raise
                checkpoint.save(path, self.curve)
        except (OSError, SafetensorError, ValueError) as error:
            say(f"{path}: this checkpoint could not be kept: {error}")
            return False
        self._useless.discard(path)
        self.seconds = time.perf_counter() - started
        return True

    def _make_room(self) -> bool:
        """Remove all but what resuming needs: ends of phases, the newest of the others, branches. Whether there was any."""
        spare = list(self._useless)
        for phase in self._phases():
            ended = self._end(phase).is_file() and self._end(phase) not in self._useless
            spare += self._usable(phase)[0 if ended else 1 :]
        return _remove(spare)

    def _read(self, path: Path, fits: Fits | None = None) -> Checkpoint | None:
        """A checkpoint; None if there is none. One that cannot be used is named, whatever is wrong with it."""
        if path in self._useless or not os.path.lexists(path):
            return None
        try:
            found = Checkpoint.load(path, self.curve)
            if fits:
                fits(found)
            return found
        except Exception as error:  # safetensors, JSON, pydantic and torch have many for a damaged file
            self._useless.add(path)
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"{path}: this checkpoint cannot be used and is passed over: {reason}")
            return None

    def _end(self, phase: int) -> Path:
        return self.folder / f"phase-{phase}.safetensors"

    def _branch(self, scored_steps: int) -> Path:
        return self.folder / f"branch-{scored_steps}.safetensors"

    def _phases(self) -> set[int]:
        """The numbers of the phases that have files."""
        return {int(match[1]) for path in self.folder.glob("phase-*") if (match := OWN.fullmatch(path.name))}

    def _within(self, phase: int) -> list[Path]:
        """The files within a phase, the newest first."""
        pattern = re.compile(rf"phase-{phase}-step-(\d+)\.safetensors")
        found = [(int(match[1]), path) for path in self.folder.glob("*") if (match := pattern.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def _usable(self, phase: int) -> list[Path]:
        """Those of them that were not passed over."""
        return [path for path in self._within(phase) if path not in self._useless]


def _remove(paths: Iterable[Path]) -> bool:
    """Delete files, as far as that is possible. Returns whether one was deleted."""
    removed = False
    for path in list(paths):
        with suppress(OSError):
            path.unlink()
            removed = True
    return removed
