"""Batches of text. Each is a pure function of (seed, step), so all methods see the same data and a run can resume at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from growbench.config.schema import TextConfig
from growbench.data.tokenizer import Kind, Vocabulary, for_transformers, pretrained
from growbench.data.tokens import SPLITS, HeldOutSplit, Objective, Tokens, prepare
from growbench.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The first number of each random seed: different uses have different streams.
ORDER, MASKS, VALIDATION, AUGMENTATION, HELD_OUT_MASKS = range(5)

Which = Literal["source", "target"]
STREAMS: dict[Which, int] = {"target": 0, "source": 1}  # the second number: a source has an order of data of its own

MOST_HELD_OUT = 2**21  # tokens: of a larger validation or test split, so many are evaluated, spread evenly over it


class Batch(NamedTuple):
    """Inputs, and the labels that the model should predict at the labelled positions."""

    inputs: Tensor  # (B, T) int64 token ids; images: (B, 3, S, S) float32, normalised
    positions: Tensor | None  # (N,) int64 ascending indices of labelled positions in the flattened (B*T,); None: all
    labels: Tensor  # (N,) int64 the token at each labelled position; images: (B,) int64, or (B, classes) float32 soft labels

    def part(self, number: int, parts: int) -> Batch:
        """Part `number` of `parts` equal parts of the batch."""
        rows = len(self.inputs) // parts
        return self if parts == 1 else self.rows(number * rows, (number + 1) * rows)

    def rows(self, first: int, end: int) -> Batch:
        """The rows from `first` up to but not including `end`. All rows have the same number of labelled positions."""
        each = len(self.labels) // len(self.inputs)
        positions = self.positions
        if positions is not None:
            positions = positions[first * each : end * each] - first * self.inputs.shape[1]
        return Batch(self.inputs[first:end], positions, self.labels[first * each : end * each])

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`. Copies of pinned memory to CUDA are asynchronous."""
        return Batch(*(t if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[arg-type]


class HeldOut(NamedTuple):
    """A batch of a held-out split, and which document each of its labels belongs to."""

    batch: Batch
    documents: NDArray[np.int64]  # (N,) numbers in the split; images: each is a document of its own

    def parts(self, rows: int) -> Iterator[HeldOut]:
        """The same in parts of at most so many rows."""
        each = len(self.documents) // len(self.batch.inputs)
        for first in range(0, len(self.batch.inputs), rows):
            end = min(first + rows, len(self.batch.inputs))
            yield HeldOut(self.batch.rows(first, end), self.documents[first * each : end * each])


def labelled_per_row(sequence_length: int, share: float) -> int:
    """The number of labelled positions in every row of a masked model's batch. The first and the last are never labelled."""
    return max(1, round(share * (sequence_length - 2)))


Cut = Callable[[NDArray[np.int64], tuple[int, ...]], Batch]  # blocks (B, W) of tokens and a random seed -> a batch


@dataclass(frozen=True)
class TextData:
    """A tokenized corpus, cut into blocks, as training needs it (see Data)."""

    name: str  # of the corpus
    fingerprint: str  # of its documents
    vocabulary: int  # the model's: the experiment's own setting, or the size of its named tokenizer
    documents: int
    train_tokens: int
    validation_tokens: int
    test_tokens: int
    tokens_per_batch: int
    tokenizer: dict[str, Any]
    batch: int  # sequences
    evaluation_batches: int
    train_blocks: NDArray[np.unsignedinteger]  # (blocks, W), a view of the memory-mapped stream
    validation_blocks: NDArray[np.unsignedinteger]
    test_blocks: NDArray[np.unsignedinteger]
    stride: int  # tokens between the starts of two blocks
    stream: int  # of random numbers: see STREAMS
    cut: Cut
    source: Tokens
    config: TextConfig
    costly = False

    def train_batch(self, step: int, seed: int) -> Batch:
        """Batch number `step` of an endless sequence of epochs, each a permutation of all blocks. `seed` and `step` >= 0."""
        rows = rows_of_batch(len(self.train_blocks), self.batch, step, (self.stream, seed))
        return self.cut(self.train_blocks[rows].astype(np.int64), (MASKS, self.stream, seed, step))

    def validation_batches(self) -> list[Batch]:
        """Fixed batches with fixed masks, spread evenly over the validation documents."""
        groups = evenly_spread(len(self.validation_blocks), self.evaluation_batches, self.batch)
        blocks = (self.validation_blocks[rows].astype(np.int64) for rows in groups)
        return [self.cut(block, (VALIDATION, number)) for number, block in enumerate(blocks)]

    def held_out_batches(self, split: HeldOutSplit) -> Iterator[HeldOut]:
        """The whole split with fixed masks, batch by batch; the last one may be smaller."""
        validation = self.validation_blocks, self.source.validation
        blocks, stream = validation if split == "validation" else (self.test_blocks, self.source.test)
        document_ends = np.flatnonzero(stream == self.source.vocabulary.separator)
        length = self.config.sequence_length
        rows = evenly_spread(len(blocks), 1, min(len(blocks), max(1, MOST_HELD_OUT // length)))[0]
        for number, first in enumerate(range(0, len(rows), self.batch)):
            chosen = rows[first : first + self.batch]
            batch = self.cut(blocks[chosen].astype(np.int64), (HELD_OUT_MASKS, SPLITS.index(split), number))
            if batch.positions is None:  # a position's label is the next token
                places = chosen[:, None] * self.stride + 1 + np.arange(length)
            else:  # a block begins at position 1
                row, position = np.divmod(batch.positions.numpy(), length)
                places = chosen[row] * self.stride + position - 1
            yield HeldOut(batch, np.searchsorted(document_ends, places.ravel()))

    def describe(self) -> dict[str, Any]:
        """What a run records of its data, as plain JSON values."""
        tokens = ("train_tokens", "validation_tokens", "test_tokens")
        keys = ("name", "fingerprint", "documents", *tokens, "evaluation_batches", "tokenizer")
        return {key: getattr(self, key) for key in keys}

    def tokenizer_to_save(self) -> PreTrainedTokenizerBase:
        """The tokenizer as an object of transformers. Raises UsageError if a named tokenizer is not found."""
        if self.config.tokenizer:
            return pretrained(self.config.tokenizer)
        from tokenizers import Tokenizer

        trained = Tokenizer.from_file(str(self.source.tokenizer_file))
        return for_transformers(trained, self.source.vocabulary, self.config.sequence_length)


def load(config: TextConfig, objective: Objective, tokenizer_kind: Kind, batch: int, which: Which = "target") -> TextData:
    """An experiment's text in batches of `batch` sequences. Prepared on first use, then read from the cache.

    `tokenizer_kind`: the tokenizer to train if `config` names none. `which`: the model that it is for. Raises UsageError if the
    corpus cannot be read, or is too small for one batch of training, validation or test.
    """
    tokens = prepare(config, objective, tokenizer_kind)
    if 0 < config.vocabulary < tokens.vocabulary.size:
        least = f"tokenizer {config.tokenizer or 'of the corpus'!r} needs at least {tokens.vocabulary.size}"
        raise UsageError(f"vocabulary = {config.vocabulary}: {least}")
    sequence_length = config.sequence_length
    cut: Cut
    if objective == "causal":
        width, stride, cut = sequence_length + 1, sequence_length, causal
    else:
        width, stride, cut = sequence_length - 2, sequence_length - 2, Masking.of(tokens.vocabulary, config.mask_share)
    blocks = {}
    for split, stream in ("training", tokens.train), ("validation", tokens.validation), ("test", tokens.test):
        needed = (batch - 1) * stride + width
        if len(stream) < needed:
            raise UsageError(
                f"corpus {config.corpus} has {len(stream)} {split} tokens; "
                f"one batch of {batch} sequences of {sequence_length} needs {needed}"
            )
        blocks[split] = sliding_window_view(stream, width)[::stride]
    return TextData(
        name=config.corpus,
        fingerprint=tokens.fingerprint,
        vocabulary=config.vocabulary or tokens.vocabulary.size,
        documents=tokens.documents,
        train_tokens=len(tokens.train),
        validation_tokens=len(tokens.validation),
        test_tokens=len(tokens.test),
        tokens_per_batch=batch * sequence_length,
        tokenizer={
            "name": config.tokenizer or ("as prepared" if config.prepared else f"{tokenizer_kind}, trained on the corpus"),
            "tokens": tokens.vocabulary.size,
        },
        batch=batch,
        evaluation_batches=min(config.evaluation_batches, len(blocks["validation"]) // batch),
        train_blocks=blocks["training"],
        validation_blocks=blocks["validation"],
        test_blocks=blocks["test"],
        stride=stride,
        stream=STREAMS[which],
        cut=cut,
        source=tokens,
        config=config,
    )


def rows_of_batch(count: int, batch: int, step: int, seed: tuple[int, int]) -> NDArray[np.int64]:
    """The rows (of `count`) of batch number `step` in an endless sequence of epochs, each a permutation of all rows."""
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), count)
    orders = [_order(count, seed, epoch)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
    return np.concatenate(orders)


def evenly_spread(count: int, batches: int, batch: int) -> NDArray[np.int64]:
    """(batches, batch) ascending row numbers, spread evenly over `count` rows."""
    wanted = batches * batch
    return (np.arange(wanted) * count // wanted).reshape(batches, batch)


@lru_cache(maxsize=4)
def _order(count: int, seed: tuple[int, int], epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((ORDER, *seed, epoch)).permutation(count)


def causal(blocks: NDArray[np.int64], _: tuple[int, ...]) -> Batch:
    """Blocks (B, T+1): every position predicts the next token."""
    tokens = torch.from_numpy(blocks)
    return Batch(tokens[:, :-1].contiguous(), None, tokens[:, 1:].flatten())


@dataclass(frozen=True)
class Masking:
    """BERT's masking (https://arxiv.org/abs/1810.04805, section 3.1), with the same number of labelled positions in every row."""

    vocabulary: Vocabulary
    share: float
    ordinary: NDArray[np.int64]  # ids of all tokens that are not special
    is_special: NDArray[np.bool_]  # (vocabulary,)

    @classmethod
    def of(cls, vocabulary: Vocabulary, share: float) -> Masking:
        is_special = np.zeros(vocabulary.size, bool)
        is_special[vocabulary.special] = True
        return cls(vocabulary, share, np.flatnonzero(~is_special), is_special)

    def __call__(self, blocks: NDArray[np.int64], seed: tuple[int, ...]) -> Batch:
        """Blocks (B, T-2), between [CLS] and [SEP]. Labelled tokens: 80 % become [MASK], 10 % a random token, 10 % stay."""
        batch, width = blocks.shape
        rng = np.random.default_rng(seed)
        labelled = labelled_per_row(width + 2, self.share)
        # special tokens come last: they are labelled only if a row has too few others
        priority = rng.random(blocks.shape) + self.is_special[blocks]
        columns = np.sort(np.argpartition(priority, labelled - 1)[:, :labelled])
        rows = np.full((batch, width + 2), self.vocabulary.separator)
        rows[:, 0] = self.vocabulary.start
        rows[:, 1:-1] = blocks
        positions = (columns + 1 + np.arange(batch)[:, None] * (width + 2)).ravel()
        inputs = rows.ravel()
        labels = inputs[positions]
        dice = rng.random(labels.size)
        replacements = self.ordinary[rng.integers(len(self.ordinary), size=labels.size)]
        inputs[positions] = np.where(dice < 0.8, self.vocabulary.mask, np.where(dice < 0.9, replacements, labels))
        return Batch(torch.from_numpy(rows), torch.from_numpy(positions), torch.from_numpy(labels))
