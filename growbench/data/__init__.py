"""Data: text or images -> memory-mapped cache -> batches of fixed shapes that depend on nothing but seed and step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from growbench.config.schema import DataConfig, ImageConfig
from growbench.data import images, text
from growbench.data.images import ImageData
from growbench.data.text import Batch, TextData, scored_per_row
from growbench.data.tokenizer import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "Data", "ImageData", "TextData", "load", "scored_per_row", "tokenizer_to_save"]


class Data(Protocol):
    """All that training needs to know of its data, whatever they are."""

    @property
    def name(self) -> str: ...  # of the corpus

    @property
    def fingerprint(self) -> str: ...  # of its content

    @property
    def vocabulary(self) -> int: ...  # images: classes

    @property
    def evaluation_batches(self) -> int: ...

    @property
    def tokens_per_batch(self) -> int: ...  # images: patches

    @property
    def costly(self) -> bool: ...  # whether to make a batch takes so long that worker processes are worth starting

    def train_batch(self, step: int, seed: int) -> Batch: ...

    def validation_batches(self) -> list[Batch]: ...

    def describe(self) -> dict[str, Any]: ...  # plain JSON values


def tokenizer_to_save(data: Data) -> PreTrainedTokenizerBase | None:
    """What a saved model needs beside it to read text; None for images. Raises UsageError if it is a name that is not there."""
    return data.tokenizer_to_save() if isinstance(data, TextData) else None


def load(config: DataConfig, objective: Literal["causal", "masked", "classes"], tokenizer_kind: Kind | None, batch: int) -> Data:
    """The corpus of an experiment as batches of `batch` sequences or images, prepared on first use, then read from the cache.

    `tokenizer_kind` (images: None) says which tokenizer to train where `config` names none. Raises UsageError if the corpus
    cannot be read, or is too small for one batch of training or of validation.
    """
    if isinstance(config, ImageConfig):
        return images.load(config, batch)
    assert objective != "classes" and tokenizer_kind is not None  # an experiment's architecture fits its data
    return text.load(config, objective, tokenizer_kind, batch)
