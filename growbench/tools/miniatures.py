"""Miniatures of every architecture with random data, for checking a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from growbench import architectures
from growbench.config.loading import parse
from growbench.config.schema import DataConfig, Experiment, ImageConfig, ModelConfig, TextConfig, Training
from growbench.data import Batch, HeldOut, HeldOutSplit
from growbench.data.shapes import shape_batch
from growbench.errors import UsageError

CPU = torch.device("cpu")
SEED = 0
BUDGET = 6  # steps
VOCABULARY = 32
VALIDATION = -1  # the step that the validation batch is drawn from
OWN_HEAD_SIZE = (("source.head_dim", 6), ("target.head_dim", 6))  # not width / heads
TEXT = TextConfig(corpus="wikipedia-sample", sequence_length=8, vocabulary=VOCABULARY)
IMAGES = ImageConfig(corpus="mnist-sample", image_size=8, patch=4, classes=VOCABULARY)


@dataclass(frozen=True)
class Cell:
    """One miniature: an architecture, with tied or untied embeddings, with or without grouped-query attention.

    `settings` replace the usual sizes and training: (("target.width", 32), ("train.schedule", "wsd")).
    """

    architecture: str
    tied: bool = True
    grouped: bool = False
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        tying = [] if self.images else ["tied" if self.tied else "untied"]
        return ", ".join([self.architecture, *["grouped heads"] * self.grouped, *tying])

    @property
    def images(self) -> bool:
        return architectures.get(self.architecture).objective == "classes"

    @property
    def plain(self) -> bool:
        """Whether this is the first cell of its architecture, in which more is checked."""
        return self.tied and not self.grouped

    @property
    def experiment(self) -> Experiment:
        """Growth from 2 to 3 layers and from width 16 to 24: no target size is a multiple of the source's.

        The number of heads follows from the width. Raises UsageError for settings that no experiment can have.
        """
        return _experiment(self)

    def at(self, settings: Mapping[str, Any]) -> Cell:
        """The same miniature at these settings; its own take precedence. Raises UsageError for a value that is a table."""
        for key, value in settings.items():
            if isinstance(value, dict):
                raise UsageError(f"{key} = {value}: must be a number, a text or a list of them")
        hashable = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return replace(self, settings=tuple(sorted({**hashable, **dict(self.settings)}.items())))


@cache
def _experiment(cell: Cell) -> Experiment:
    tables: dict[str, dict[str, Any]] = {
        "source": {"layers": 2, "width": 16},
        "target": {"layers": 3, "width": 24},
        "train": {"batch": 2, "steps": BUDGET, "lr": 1e-3, "warmup": 2, "precision": "float32"},
    }
    for key, value in cell.settings:
        section, _, name = key.partition(".")
        if section not in tables or not name:
            raise UsageError(f"a miniature has no setting {key!r}: it must be source.KEY, target.KEY or train.KEY")
        tables[section][name] = value
    source, target = (parse(ModelConfig, _sizes(cell, tables[which]), f"miniature.{which}") for which in ("source", "target"))
    training = parse(Training, tables["train"], "miniature.train")
    data: DataConfig = IMAGES if cell.images else TEXT
    return Experiment("check", "check", cell.architecture, source, target, data, training, training)


def _sizes(cell: Cell, table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the cell's options, and with the heads that follow from its width: of 8 dimensions, or of 4 if grouped."""
    sizes: dict[str, Any] = {"tied": cell.tied, "heads": 1, **table}
    if "class_layers" in architectures.get(cell.architecture).options:
        sizes = {"class_layers": 1, **sizes}
    if "heads" not in table and isinstance(sizes["width"], int):
        sizes["heads"] = max(1, sizes["width"] // (4 if cell.grouped else 8))
    if cell.grouped and isinstance(sizes["heads"], int):
        sizes = {"kv_heads": sizes["heads"] // 2, **sizes}
    return sizes


def cells() -> list[Cell]:
    """Every architecture, with each of the options that it has: untied embeddings, grouped-query attention.

    One whose kin has been through these has one miniature: of a text model, with a head size of its own.
    """
    found = []
    for name in architectures.names():
        options, kin = architectures.get(name).options, architectures.get(name).kin
        if kin:
            found += [Cell(name, settings=OWN_HEAD_SIZE if architectures.get(name).tokenizer else ())]
            continue
        found += [Cell(name, tied) for tied in ([True, False] if "tied" in options else [True])]
        found += [Cell(name, grouped=True)] if "kv_heads" in options else []
    return found


@dataclass(frozen=True)
class RandomData:
    """Batches of random tokens or images. Each depends on (seed, step) only."""

    config: DataConfig
    objective: str
    batch: int
    name: str = "random"
    fingerprint: str = "random"
    vocabulary: int = VOCABULARY
    evaluation_batches: int = 1
    costly: bool = False

    @property
    def tokens_per_batch(self) -> int:
        return self.batch * self.config.positions

    def train_batch(self, step: int, seed: int) -> Batch:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1000 * seed + step + 1)  # torch.manual_seed is slow: it seeds every device
            return shape_batch(self.config, self.objective, self.batch, self.vocabulary, CPU)

    def validation_batches(self) -> list[Batch]:
        return [self.train_batch(VALIDATION, 0)]

    def held_out_batches(self, split: HeldOutSplit) -> Iterator[HeldOut]:
        batch = self.train_batch(VALIDATION, 0)
        yield HeldOut(batch, np.arange(len(batch.labels)))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}
