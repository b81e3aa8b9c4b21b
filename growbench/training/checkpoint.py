"""Checkpoints of a run: all that training needs to continue as if it had never stopped. Safetensors with JSON inside; no pickle.

A run resumes by replay. Its method's generator runs again from the start. A phase that had ended is loaded instead of trained,
and the phase that was under way continues at its last checkpoint. A run that branches off another one resumes from that one's
files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench.console import say
from growbench.files import replacing
from growbench.training import optimizer_state
from growbench.training.optimizer_state import ParameterIndex, StoredTensor
from growbench.training.records import RunState

FORMAT = "3"
KEPT = 2  # newest checkpoints of the present phase


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
    def load(cls, path: Path) -> Checkpoint:
        """Read a file. Raises OSError, SafetensorError or ValueError if it cannot be read."""
        with safe_open(path, framework="pt") as file:
            texts = file.metadata()
            if texts.get("format") != FORMAT:
                raise ValueError("it was written by another version of growbench")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cls(tensors, _decoded(json.loads(texts["optimizer"]), tensors), RunState.read(texts["state"]))

    def save(self, path: Path) -> None:
        """Write a file, in full or not at all. Raises OSError, SafetensorError, or ValueError for data that cannot be stored."""
        tensors = dict(self.tensors)
        optimizer = _encoded(self.optimizer, tensors, self.optimizer["class"])
        texts = {"format": FORMAT, "state": self.state.text(), "optimizer": json.dumps(optimizer)}
        with replacing(path) as draft:
            save_file(_apart(tensors), draft, texts)

    def restore(self, model: nn.Module, optimizer: Optimizer, rng: torch.Generator, device: torch.device) -> None:
        """Bring model, optimizer (its state to `device`) and random states back, in place.

        Raises ValueError if the checkpoint is of another model or optimizer.
        """
        own = _tensors(model)
        if own.keys() != {key.removeprefix("model.") for key in self.tensors if key.startswith("model.")}:
            raise ValueError("the checkpoint is of another model")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(self.tensors[f"model.{name}"])
        optimizer_state.restore(optimizer, self.optimizer, device)
        rng.set_state(self.tensors["rng.task"])
        torch.set_rng_state(self.tensors["rng.cpu"])
        if "rng.cuda" in self.tensors and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self.tensors["rng.cuda"])


def _encoded(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """An optimizer's contents as JSON. Adds its tensors to `tensors`. Raises ValueError for what `path` cannot store."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, ParameterIndex):
        return {"parameter": value.index}
    if isinstance(value, StoredTensor):
        tensors[f"optimizer.{value.number}"] = value.value
        return {"tensor": value.number, "on_host": value.on_host}
    if type(value) in (list, tuple):
        items = [_encoded(each, tensors, f"{path}[{place}]") for place, each in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict:
        pairs = [(key, f"{path}[{key!r}]") for key in value]
        return {"dict": [[_encoded(key, tensors, at), _encoded(value[key], tensors, at)] for key, at in pairs]}
    raise ValueError(
        f"{path} is of type {type(value).__name__}; an optimizer may hold tensors, numbers, strings, None, "
        "and lists, tuples and dictionaries of them"
    )


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse."""
    if type(value) is list:
        return [_decoded(each, tensors) for each in value]
    if type(value) is not dict:
        return value
    if "parameter" in value:
        return ParameterIndex(value["parameter"])
    if "tensor" in value:
        number = value["tensor"]
        return StoredTensor(tensors[f"optimizer.{number}"], number, value["on_host"])
    if "tuple" in value:
        return tuple(_decoded(each, tensors) for each in value["tuple"])
    return {_decoded(key, tensors): _decoded(each, tensors) for key, each in value["dict"]}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory that share no memory, as safetensors requires."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        found[name] = value
    return found


def random_states() -> RandomStates:
    """Of torch's generators on the CPU and on the CUDA device, by their names in a checkpoint."""
    states = {"rng.cpu": torch.get_rng_state()}
    return states | {"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else states


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers, tied ones once. Empty parameters are left out."""
    persistent = model.state_dict(keep_vars=True)
    named = {**dict(model.named_parameters()), **{name: b for name, b in model.named_buffers() if name in persistent}}
    return {name: tensor for name, tensor in named.items() if tensor.numel()}


class Checkpoints:
    """The checkpoint files of one run: the end of each phase, the newest ones of the present phase, and branches."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes  # of several processes, only one does

    def ended(self, phase: int) -> Checkpoint | None:
        """The end of a phase, by its number; None if it has not ended, or its file cannot be read."""
        return _read(self.folder / f"phase-{phase}.safetensors")

    def newest(self, phase: int) -> Checkpoint | None:
        """The newest readable one within a phase."""
        return next((found for path in self._within(phase) if (found := _read(path))), None)

    def save_end(self, phase: int, checkpoint: Checkpoint) -> None:
        self._save(f"phase-{phase}", checkpoint)

    def save_step(self, phase: int, step: int, checkpoint: Checkpoint) -> None:
        self._save(f"phase-{phase}-step-{step}", checkpoint)
        if self.writes:
            for path in self._within(phase)[KEPT:]:
                path.unlink()

    def save_branch(self, scored_steps: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint for runs that branch off after so many scored steps."""
        self._save(f"branch-{scored_steps}", checkpoint)

    def branch(self, scored_steps: int) -> Checkpoint | None:
        """The checkpoint for a branch; None unless the ends of all phases before it are kept too."""
        found = _read(self.folder / f"branch-{scored_steps}.safetensors")
        before = range(len(found.state.phases)) if found else ()
        return found if all((self.folder / f"phase-{phase}.safetensors").is_file() for phase in before) else None

    def branch_off(self, trunk: Checkpoints, branch: Checkpoint) -> None:
        """Start this run at a branch of another one. A run that already has checkpoints keeps them."""
        number = len(branch.state.phases)
        if self.writes and not any(self.folder.glob("phase-*")):
            for phase in range(number):
                shutil.copy2(trunk.folder / f"phase-{phase}.safetensors", self.folder)
            self.save_step(number, branch.state.phase.done, branch)

    def remove(self) -> None:
        """Delete the files, when the run has ended and no other one will branch off."""
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint. If that fails, as on a full disk, say why and let training continue."""
        if self.writes:
            path = self.folder / f"{name}.safetensors"
            try:
                checkpoint.save(path)
            except (OSError, SafetensorError, ValueError) as error:
                say(f"{path}: this checkpoint could not be kept: {error}")

    def _within(self, phase: int) -> list[Path]:
        """The files within a phase, the newest first."""
        pattern = re.compile(rf"phase-{phase}-step-(\d+)\.safetensors")
        found = [(int(match[1]), path) for path in self.folder.glob("*") if (match := pattern.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]


def _read(path: Path) -> Checkpoint | None:
    if not path.is_file():
        return None
    try:
        return Checkpoint.load(path)
    except (OSError, SafetensorError, ValueError) as error:
        say(f"{path}: this checkpoint cannot be read and is passed over: {error}")
        return None
