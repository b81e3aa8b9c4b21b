"""Cross-entropy whose backward pass writes the gradient of the logits, a small model's largest tensor, only once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = torch.log_softmax(logits, -1, dtype=torch.float32 if logits.dtype.itemsize < 4 else None)
        ctx.save_for_backward(log_probabilities, labels)
        ctx.dtype = logits.dtype
        return -log_probabilities.gather(-1, labels[:, None]).mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        log_probabilities, labels = ctx.saved_tensors
        scale = scale / len(labels)
        # softmax - one-hot, written over the saved tensor; autograd refuses a second backward pass
        gradient = log_probabilities.exp_().mul_(scale)
        gradient.scatter_add_(-1, labels[:, None], (-scale).expand(len(labels), 1))
        return gradient.to(ctx.dtype), None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of `labels` under `logits` (N, classes), in nats.

    `labels` are (N,) int64, or (N, classes) probabilities.
    """
    if labels.dim() == 2:
        return functional.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, labels)
    loss: Tensor = _CrossEntropy.apply(logits, labels)
    return loss


def each_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32: the loss of each label by itself, in nats. `logits`: (N, classes); `labels`: (N,) int64. No gradients."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")
