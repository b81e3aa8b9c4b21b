"""The state of an optimizer at the end of a model's training, in a file beside the model's: growth can start from it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from growbench.files import replacing
from growbench.method import Trained
from growbench.training import optimizer_state
from growbench.training.encoding import apart, decoded, encoded


def save(path: Path, trained: Trained) -> None:
    """Write a file, in full or not at all. It holds all but the model.

    Raises OSError, SafetensorError, or ValueError for data that cannot be stored.
    """
    tensors: dict[str, Tensor] = {}
    contents = optimizer_state.contents(trained.optimizer)
    known = {"steps": trained.steps, "loss": trained.loss, "optimizer": encoded(contents, tensors, contents["class"])}
    with replacing(path) as draft:
        save_file(apart(tensors), draft, {"trained": json.dumps(known)})


def restore(path: Path, optimizer: Optimizer, device: torch.device) -> tuple[int, float]:
    """Give an optimizer the state in a file, and return the steps that were trained and the last loss (nats).

    Raises ValueError if it is another optimizer's, and other exceptions if the file is damaged.
    """
    with safe_open(path, framework="pt") as file:
        known = json.loads((file.metadata() or {})["trained"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    optimizer_state.restore(optimizer, decoded(known["optimizer"], tensors), device)
    return known["steps"], known["loss"]
