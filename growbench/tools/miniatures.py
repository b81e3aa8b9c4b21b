"""Miniatures of every architecture with random data, for checking a method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from growbench import architectures
from growbench.config.schema import DataConfig, Experiment, ImageConfig, ModelConfig, TextConfig, Training
from growbench.data import Batch, HeldOut, HeldOutSplit
from growbench.data.shapes import shape_batch

CPU = torch.device("cpu")
SEED = 0
BUDGET = 6  # steps
VOCABULARY = 32
VALIDATION = -1  # the step that the validation batch is drawn from
TEXT = TextConfig(corpus="wikipedia-sample", sequence_length=8, vocabulary=VOCABULARY)
IMAGES = ImageConfig(corpus="mnist-sample", image_size=8, patch=4, classes=VOCABULARY)


@dataclass(frozen=True)
class Cell:
    """One miniature: an architecture, with tied or untied embeddings, with or without grouped-query attention."""

    architecture: str
    tied: bool = True
    grouped: bool = False

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
        """Growth from 2 to 3 layers and from width 16 to 24: no target size is a multiple of the source's."""
        few = {"class_layers": 1} if "class_layers" in architectures.get(self.architecture).options else {}
        heads = [(4, 2), (6, 3)] if self.grouped else [(2, 0), (3, 0)]
        source, target = (
            ModelConfig(layers, width, number, kv_heads=kv_heads, tied=self.tied, **few)
            for layers, width, (number, kv_heads) in zip((2, 3), (16, 24), heads, strict=True)
        )
        training = Training(batch=2, steps=BUDGET, lr=1e-3, warmup=2)
        data: DataConfig = IMAGES if self.images else TEXT
        return Experiment("check", "check", self.architecture, source, target, data, training, training)


def cells() -> list[Cell]:
    """Every architecture, with each of the options that it has: untied embeddings, grouped-query attention."""
    found = []
    for name in architectures.names():
        options = architectures.get(name).options
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
