"""The precision of forward and backward passes: float32, or bf16 by torch's autocast, on a CPU with attention of its own.

Weights, gradients, optimizer, the residual stream, norms and losses stay in float32.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from growbench.config.schema import Machine, Training
from growbench.costs import hardware

SHORT = 512  # tokens; in longer sequences attention weights, which are kept for the backward pass, take most of a model's memory


def precision_of(training: Training, machine: Machine, device: torch.device) -> Literal["float32", "bf16"]:
    """As [train] says, else as [machine] says, else the one that is fast on this device."""
    if training.precision != "auto":
        return training.precision
    return hardware.fast_precision(device.type) if machine.precision == "auto" else machine.precision


def autocast(training: Training, machine: Machine, device: torch.device) -> AbstractContextManager[Any]:
    """The context of forward passes in `precision_of` these. It can be entered again."""
    bf16 = precision_of(training, machine, device) == "bf16"
    if bf16 and device.type == "cpu":
        return CpuAutocast()
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def casting_once(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, passes by `autocast` share one copy of each weight in bf16: torch keeps it until the outermost context ends."""
    return torch.autocast(device.type, enabled=False)


class CpuAutocast(TorchFunctionMode):
    """Autocast to bf16 on a CPU. Attention is done by matrix products: torch's fused kernel is slower in bf16 than in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.autocast = torch.autocast("cpu", torch.bfloat16)

    def __enter__(self) -> Self:
        self.autocast.__enter__()
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.autocast.__exit__(*raised)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                return _attention(*args, **kwargs)
        if func in (functional.layer_norm, functional.rms_norm):  # weights that are an operator's products are in bf16
            kwargs = {name: each.float() if isinstance(each, Tensor) else each for name, each in kwargs.items()}
        if func is functional.rms_norm:  # torch has it in one kernel only where input and weight are of one type
            args = args[0].float(), *args[1:]
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """torch's scaled_dot_product_attention: in bf16 over short sequences without dropout, else in float32.

    Shape legend: B rows, H heads, T queries, S keys, D head size. Keys and values have G heads, which H is divisible by.
    """
    heads, queries, groups, keys = *query.shape[-3:-1], *key.shape[-3:-1]
    same_mask = attn_mask is None or attn_mask.numel() == queries * keys  # for all rows and heads
    if dropout_p or not same_mask or max(queries, keys) > SHORT:
        masked = attn_mask.float() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
        exact = query.float(), key.float(), value.float()
        return functional.scaled_dot_product_attention(*exact, masked, dropout_p, is_causal, **options)
    mask = _added_mask(attn_mask, is_causal, queries, keys).repeat(heads // groups, 1)
    attended: Tensor = _MatrixAttention.apply(query, key, value, mask, options.get("scale") or query.shape[-1] ** -0.5)
    return attended


def _added_mask(mask: Tensor | None, is_causal: bool, queries: int, keys: int) -> Tensor:
    """(T, S) in bf16: what is added to the scores."""
    added = torch.full((queries, keys), -math.inf if is_causal else 0.0, dtype=torch.bfloat16).triu(1)
    if mask is None:
        return added
    mask = mask.view(queries, keys)
    return added.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else added + mask.bfloat16()


class _MatrixAttention(torch.autograd.Function):
    """softmax(scale Q K^T + mask) V of queries (B, H, T, D), keys and values (B, G, S, D).

    Queries are multiplied as (B G, H/G T, D): the heads that share keys together. The mask is (H/G T, S).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape, value.shape)
        query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
        # What all keys share changes no weight, and what all values share passes through: without it, differences are rounded
        # less. It is taken off and added in the layout (B, T, H, D), where long rows of numbers are side by side.
        shared = value.mean(-2, keepdim=True)
        key, value = (each.reshape(-1, *each.shape[-2:]) for each in (key - key.mean(-2, keepdim=True), value - shared))
        query = query.reshape(-1, len(mask), query.shape[-1])
        weights = torch.baddbmm(mask, query, key.mT, alpha=scale).softmax(-1)
        ctx.save_for_backward(query, key, value, weights)
        batch, heads, queries, _ = ctx.shapes[0]
        attended = (weights @ value).view(batch, heads, queries, -1).transpose(1, 2).contiguous().transpose(1, 2)
        return attended.add_(shared.repeat_interleave(heads // shared.shape[1], 1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        gradient = gradient.reshape(*query.shape[:2], -1)
        slope = torch._softmax_backward_data(gradient @ value.mT, weights, -1, weights.dtype)
        found = _scaled(slope, key, ctx.scale), _scaled(slope.mT, query, ctx.scale), weights.mT @ gradient
        return *(each.view(shape) for each, shape in zip(found, ctx.shapes, strict=True)), None, None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale A B of (N, R, M) and (N, M, C)."""
    return torch.baddbmm(b.new_zeros(1, 1, 1), a, b, beta=0, alpha=scale)
