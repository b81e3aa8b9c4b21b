"""Rules of growbench.growth.lazy_rules for operations that compute each entry of a result from one of each input."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from growbench.growth.lazy import Evaluation, Node, Operation
from growbench.growth.selections import Selection, broadcast

aten = torch.ops.aten

HALF = (torch.bfloat16, torch.float16)
ROUNDED = (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor)  # of half precision: torch rounds a float32 result


@dataclass(frozen=True)
class Rule:
    """`dims`: of the result, along which a selection can be passed on. `small`: the result is worth keeping."""

    dims: Container[int]
    compute: Callable[[Selection, Evaluation], Tensor]
    small: bool = False


def all_dims(op: Operation) -> range:
    return range(len(op.shape))


def mapped(value: Any, change: Callable[[Node | Tensor], Tensor]) -> Any:
    """Arguments with their tensors changed."""
    return tree_map(lambda each: change(each) if isinstance(each, (Node, Tensor)) else each, value)


def pointwise(op: Operation) -> Rule:
    def compute(passed: Selection, at: Evaluation) -> Tensor:
        args, kwargs = mapped((op.args, op.kwargs), lambda each: at.exact(each, broadcast(passed, each.shape, op.shape)))
        return op.function(*args, **kwargs)  # type: ignore[no-any-return]

    return Rule(all_dims(op), compute)


def copied(op: Operation) -> Rule:
    """The same entries; those of a narrower type stay in it."""
    source = op.args[0]
    if source.meta.dtype != op.meta.dtype:
        return pointwise(op)
    return Rule(all_dims(op), lambda passed, at: at.value(source, passed))


def scaled(op: Operation) -> Rule:
    """mul and div. By ones, entries stay as they are, and in the type that they are stored in."""
    by = op.args[1]
    ones = isinstance(by, Tensor) and by.dim() <= len(op.shape) and bool((by == 1).all())
    return copied(op) if ones and op.args[0].shape == op.shape else arithmetic(op)


def arithmetic(op: Operation) -> Rule:
    """mul, div, add and sub. Where half precision holds all operands, a result that is rounded to it is computed in it.

    torch computes such a result in float32 too, and rounds it once, so that its entries are the same.
    """
    if op.function not in ROUNDED or op.kwargs or op.meta.dtype != torch.float32:
        return pointwise(op)

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        values = [
            at.exactly.value(each, broadcast(passed, each.shape, op.shape)) if isinstance(each, (Node, Tensor)) else each
            for each in op.args
        ]
        pairs = list(zip(op.args, values, strict=True))
        if at.rounded in HALF and all(_holds(at.rounded, *pair) for pair in pairs):
            values = [value.to(at.rounded) if isinstance(value, Tensor) else value for value in values]
        else:
            values = [value.to(each.meta.dtype) if isinstance(each, Node) else value for each, value in pairs]
        return op.function(*values)  # type: ignore[no-any-return]

    return Rule(all_dims(op), compute)


def _holds(dtype: torch.dtype, source: Any, value: Any) -> bool:
    """Whether a type holds all entries of an operand. Those that were computed in a wider one are not looked at."""
    if isinstance(source, Node):
        return bool(value.dtype == dtype)
    value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return torch.equal(value.to(dtype).to(value.dtype), value)
