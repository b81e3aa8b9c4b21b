"""Cross-entropy that reads and writes the logits and their gradient, often a model's largest tensors, as few times as it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PART, CPU_PART = 2**26, 2**18  # elements of logits that are computed at a time: few launches; on a CPU, what its caches hold

_is_compiled = ContextVar("_is_compiled", default=False)


@contextmanager
def compiled_loss() -> Iterator[None]:
    """Within, the loss of logits in half precision is compiled by torch.compile, which then reads them twice, and writes their
    gradient once.
    """
    token = _is_compiled.set(True)
    try:
        yield
    finally:
        _is_compiled.reset(token)


@cache
def _compiled() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(lambda logits, labels: functional.cross_entropy(logits.float(), labels), dynamic=False)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = torch.log_softmax(logits, -1)
        ctx.save_for_backward(log_probabilities, labels)
        return -log_probabilities.gather(-1, labels[:, None]).mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        log_probabilities, labels = ctx.saved_tensors
        scale = scale / len(labels)
        # softmax - one-hot, written over the saved tensor; autograd refuses a second backward pass
        gradient = log_probabilities.exp_().mul_(scale)
        gradient.scatter_add_(-1, labels[:, None], (-scale).expand(len(labels), 1))
        return gradient, None


class _HalfCrossEntropy(torch.autograd.Function):
    """Of logits in half precision. It computes in float32 by parts, the gradient with them: all logits are never in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        losses = []
        for part, label, *result in _parts(logits, labels[:, None], *([] if gradient is None else [gradient])):
            probabilities = torch.softmax(part, -1, dtype=torch.float32)
            largest, label_logit = part.amax(-1, keepdim=True).float(), part.gather(-1, label).float()
            losses.append(largest - probabilities.amax(-1, keepdim=True).log() - label_logit)
            for each in result:
                slope = probabilities.scatter_add_(-1, label, torch.full_like(largest, -1.0))  # softmax - one-hot
                each.copy_(slope.mul_(1 / len(logits)))
        ctx.save_for_backward(gradient)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(scale), None  # autograd refuses a second backward pass


def _parts(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of N rows part by part, so that a part of the logits has about as many elements as PART says."""
    elements = CPU_PART if logits.device.type == "cpu" else PART
    rows = max(1, elements // logits.shape[-1])
    return zip(*(each.split(rows) for each in (logits, *others)), strict=True)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of `labels` under `logits` (N, classes), in nats. Computed in float32 at least.

    `labels` are (N,) int64, or (N, classes) probabilities.
    """
    half = logits.dtype.itemsize < 4
    if labels.dim() == 2:
        return functional.cross_entropy(logits.float() if half else logits, labels)
    if half and _is_compiled.get():
        return _compiled()(logits, labels)
    loss: Tensor = (_HalfCrossEntropy if half else _CrossEntropy).apply(logits, labels)
    return loss


def each_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float32: the loss of each label by itself, in nats. `logits`: (N, classes); `labels`: (N,) int64. No gradients."""
    if logits.dtype.itemsize < 4:
        return torch.cat([each_cross_entropy(part.float(), label) for part, label in _parts(logits, labels)])
    return functional.cross_entropy(logits.float(), labels, reduction="none")
