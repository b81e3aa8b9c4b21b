"""Data: text or images -> memory-mapped cache -> batches of fixed shapes, which depend only on seed and step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

from growbench.config.schema import DataConfig, ImageConfig
from growbench.data import images, text
from growbench.data.images import ImageData
from growbench.data.text import Batch, HeldOut, TextData, Which, labelled_per_row
from growbench.data.tokenizer import Kind
from growbench.data.tokens import HeldOutSplit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Batch",
    "Data",
    "HeldOut",
    "HeldOutSplit",
    "ImageData",
    "TextData",
    "Which",
    "labelled_per_row",
    "load",
    "tokenizer_to_save",
]  # fmt: skip


class Data(Protocol):
    """What training needs of its data, text or images."""

    @property
    def name(self) -> str: ...  # of the corpus

    @property
    def fingerprint(self) -> str: ...  # of the corpus's content

    @property
    def vocabulary(self) -> int: ...  # images: classes

    @property
    def evaluation_batches(self) -> int: ...

    @property
    def tokens_per_batch(self) -> int: ...  # images: patches

    @property
    def costly(self) -> bool: ...  # making a batch takes so long that worker processes are worth starting

    def train_batch(self, step: int, seed: int) -> Batch: ...

    def validation_batches(self) -> list[Batch]: ...  # the fixed part of validation that curves are measured on

    def held_out_batches(self, split: HeldOutSplit) -> Iterator[HeldOut]: ...  # all of a split, for final losses

    def describe(self) -> dict[str, Any]: ...  # plain JSON values


def tokenizer_to_save(data: Data) -> PreTrainedTokenizerBase | None:
    """The tokenizer to save with a model; None for images. Raises UsageError if a named tokenizer is not found."""
    return data.tokenizer_to_save() if isinstance(data, TextData) else None


def load(
    config: DataConfig,
    objective: Literal["causal", "masked", "classes"],
    tokenizer_kind: Kind | None,
    batch: int,
    which: Which = "target",
) -> Data:
    """An experiment's data in batches of `batch` sequences or images. Prepared on first use, then read from the cache.

    `tokenizer_kind`: the tokenizer to train if `config` names none; None for images. `which`: the model that they are for, as a
    source reads its data in another order than its target. Raises UsageError if the corpus cannot be read, or is too small for
    one batch of training, validation or test.
    """
    if isinstance(config, ImageConfig):
        return images.load(config, batch, which)
    assert objective != "classes" and tokenizer_kind is not None  # checked by architectures.of
    return text.load(config, objective, tokenizer_kind, batch, which)
