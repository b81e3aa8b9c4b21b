"""Batches with the shapes of an experiment's, made without its data."""

from __future__ import annotations

import torch

from growbench.config.schema import DataConfig, ImageConfig
from growbench.data import Batch, labelled_per_row
from growbench.data.tokenizer import named


def vocabulary_size(data: DataConfig) -> int:
    """The model's vocabulary: the experiment's own setting, or the size of its named tokenizer. Images: the number of classes.

    Raises UsageError if the tokenizer is not found.
    """
    if isinstance(data, ImageConfig):
        return data.classes
    return data.vocabulary or named(data.tokenizer, masked=False)[1].size


def shape_batch(data: DataConfig, objective: str, batch: int, vocabulary: int, device: torch.device) -> Batch:
    """A batch of random tokens or images with the shapes of the experiment's batches."""
    if isinstance(data, ImageConfig):
        images = torch.randn(batch, 3, data.image_size, data.image_size, device=device)
        soft = data.mixup or data.cutmix or data.smoothing
        labels = torch.rand(batch, vocabulary, device=device) if soft else torch.randint(vocabulary, (batch,), device=device)
        return Batch(images, None, labels)
    sequence_length = data.sequence_length
    inputs = torch.randint(vocabulary, (batch, sequence_length), device=device)
    if objective == "causal":
        return Batch(inputs, None, torch.randint(vocabulary, (batch * sequence_length,), device=device))
    labelled = labelled_per_row(sequence_length, data.mask_share)
    row_starts = torch.arange(batch, device=device)[:, None] * sequence_length
    positions = (row_starts + torch.arange(1, 1 + labelled, device=device)).flatten()
    return Batch(inputs, positions, torch.randint(vocabulary, (batch * labelled,), device=device))
