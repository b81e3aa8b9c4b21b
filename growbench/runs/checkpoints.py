"""Folders with checkpoints of models' libraries: which files they hold, whether these are whole, what the models compute.

Beside a checkpoint that growbench wrote lies growbench.json: what the model is, and the sha256 of the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from growbench import architectures
from growbench.architectures import Architecture
from growbench.architectures.library import CONFIG
from growbench.config import plain
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError, reason
from growbench.files import sha256

CARD = "growbench.json"


INDEX = "model.safetensors.index.json"


SINGLE = "model.safetensors"  # holds all weights, where there is no index
WEIGHTS = "model*.safetensors"
FILES = (CONFIG, WEIGHTS, INDEX, CARD)


TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json")


COMPANIONS = (  # other files that go with a checkpoint's configuration and weights, as far as it has them
    *TOKENIZERS, "added_tokens.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "chat_template.*",
    "generation_config.json", "preprocessor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip


MODEL_CARD = "README.md"


SAME = 1e-4  # relative difference of logits: less is rounding


def folder_of(checkpoint: str, where: str) -> Path:
    """The folder of a checkpoint, fetched from the hub if it is an id. `where`: the request, as errors name it.

    Raises UsageError if it is neither a folder nor on the hub.
    """
    from huggingface_hub import snapshot_download

    folder = Path(checkpoint)
    if os.path.isdir(folder):  # no error for what no folder can be named
        return folder
    if os.path.isfile(folder):
        raise UsageError(f"{where}: is a file; name the folder that holds it")
    try:
        return Path(snapshot_download(checkpoint, allow_patterns=[*FILES, *COMPANIONS, MODEL_CARD]))
    except Exception as error:
        raise UsageError(f"{where}: not a folder, and could not be fetched from the hub ({reason(error)})") from error


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turns any error in a checkpoint into one line that names it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except Exception as error:
        raise UsageError(f"{where}: cannot be read ({reason(error)})") from error


def damage(folder: Path) -> str:
    """Which file of a saved model is not what growbench.json says of it; empty if none is, or if it says nothing."""
    file = folder / CARD
    digests = plain.from_json(file.read_text(encoding="utf-8")).get("sha256", {}) if file.is_file() else {}
    for name, expected in digests.items():
        if (folder / name).is_file():
            if sha256(folder / name) != expected:
                return f"{name} is damaged (sha256 differs)"
        elif any(fnmatch(name, pattern) for pattern in FILES):  # others may have been left out of a copy
            return f"{name} is missing"
    others = [path.name for path in sorted(folder.glob(WEIGHTS)) if digests and path.name not in digests]
    return f"{others[0]} is not among the files that {CARD} describes" if others else ""


def refuse_complex_numbers(files: Iterable[Path]) -> None:
    """Libraries would drop their imaginary parts."""
    for path in files:
        with safe_open(path, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118
                if content.get_slice(name).get_dtype().startswith("C"):
                    raise UsageError(f"{name} holds complex numbers")


def difference(architecture: Architecture, ours: nn.Module, stock: nn.Module, positions: int) -> float:
    """The relative difference between the logits of our model and of the library's."""
    inputs, expected = architecture.library.example(stock, positions)
    device = next(ours.parameters()).device
    with torch.no_grad():
        return float((ours(inputs.to(device)).cpu() - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Described:
    """A checkpoint's folder, and what its configuration and growbench.json say."""

    name: str  # as it was asked for
    folder: Path
    architecture: Architecture
    sizes: ModelConfig
    card: dict[str, Any]  # growbench.json; empty if there is none


def described(checkpoint: str, where: str) -> Described:
    """The checkpoint in this folder, or of this id on the hub. `where`: as errors name it.

    Raises UsageError if there is none, if growbench does not know its family, if it brings code, or if its weights are quantised.
    """
    folder = folder_of(checkpoint, where)
    architecture = architectures.of_checkpoint(folder)
    with one_line(where):
        refuse_foreign(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        card = card_of(folder)
        return Described(checkpoint, folder, architecture, architecture.library.sizes(folder), card)


def refuse_foreign(config: Mapping[str, Any]) -> None:
    """Raise UsageError for a config.json of code of its own, or of quantised weights."""
    if "auto_map" in config:
        raise UsageError(f"brings code of its own (auto_map in {CONFIG}), which is never run")
    if "quantization_config" in config:
        raise UsageError("its weights are quantised (quantization_config): only floating-point weights are read")


def card_of(folder: Path) -> dict[str, Any]:
    """growbench.json; empty if there is none. Raises UsageError if it is not of the form in which growbench writes it."""
    file = folder / CARD
    with one_line(CARD):
        card = plain.from_json(file.read_text(encoding="utf-8")) if file.is_file() else {}
    _check_card(card)
    return card  # type: ignore[no-any-return]


def _check_card(card: Any) -> None:
    """Raise UsageError for a growbench.json that is not of the form in which growbench writes it."""
    if not isinstance(card, dict):
        raise UsageError(f"{CARD} is no JSON object")
    grown = {"method": str, "hyperparameters": dict, "seed": int, "preserves": str} if "source" in card else {}
    for key, kind in {"source": dict, "sha256": dict, "layer_origins": list, "cost": dict, **grown}.items():
        if not isinstance(card.get(key, None if key in grown else kind()), kind):
            raise UsageError(f"{CARD}: {key} is missing, or no {kind.__name__}")
    origins = card.get("layer_origins", [])
    if not all(isinstance(each, list) and all(type(layer) is int for layer in each) for each in origins):
        raise UsageError(f"{CARD}: layer_origins must hold lists of layers")
    if not all(isinstance(each, dict) for each in card.get("cost", {}).values()):
        raise UsageError(f"{CARD}: cost must hold tables")
    for key, kind in {"checkpoint": str, "files": dict}.items():
        if not isinstance(card.get("source", {}).get(key, kind()), kind):
            raise UsageError(f"{CARD}: source.{key} is no {kind.__name__}")
