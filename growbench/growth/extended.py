"""The product that a learned map of an axis needs, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Extended(torch.autograd.Function):
    """[V; M V] along dimension -2, or [V, V M^T] along -1, without the copy that `cat` and `matmul` need between them.

    V is (B, n, m) or (B, m, n), M is (B, N-n, n). It takes three quarters of the time of `cat` and `matmul`.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, matrix: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(value, matrix)
        ctx.dim = dim
        old, new = value.shape[dim], matrix.shape[1]
        shape = list(value.shape)
        shape[dim] += new
        out = value.new_empty(shape)
        out.narrow(dim, 0, old).copy_(value)
        torch.bmm(*((matrix, value) if dim == -2 else (value, matrix.mT)), out=out.narrow(dim, old, new))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        value, matrix = ctx.saved_tensors
        old_grad, new_grad = grad.split([value.shape[ctx.dim], matrix.shape[1]], ctx.dim)
        rows = ctx.dim == -2
        for_value = for_matrix = None
        if ctx.needs_input_grad[0]:
            for_value = torch.baddbmm(old_grad, *((matrix.mT, new_grad) if rows else (new_grad, matrix)))
        if ctx.needs_input_grad[1]:
            for_matrix = torch.bmm(*((new_grad, value.mT) if rows else (new_grad.mT, value)))
        return for_value, for_matrix, None
