"""Parts of tensors: which indices of which dimensions are wanted, and what that means behind an operation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Indices that are wanted along a dimension: consecutive ones, or any. Dimensions without an entry are wanted whole.
Indices = range | Tensor
Selection = Mapping[int, Indices]

RUNS = 16  # of consecutive indices: up to so many are copied run by run, which is faster than entry by entry


def selected(value: Tensor, wanted: Selection) -> Tensor:
    """The wanted part of a tensor; a view of it where all indices are consecutive."""
    for dim, indices in wanted.items():
        value = _along(value, dim, indices)
    return value


def _along(value: Tensor, dim: int, indices: Indices) -> Tensor:
    if isinstance(indices, range):
        return value.narrow(dim, indices.start, len(indices))
    several = runs(indices)
    if several is None:
        return _picked(value, dim, indices)
    return joined([_along(value, dim, run) for run in several], dim)


def _picked(value: Tensor, dim: int, indices: Tensor) -> Tensor:
    """value.index_select(dim, indices), by numpy, which takes a fifth of the time."""
    if not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= value.shape[dim]:
        return value.index_select(dim, indices)  # which says what is wrong
    whole = value.view(torch.int16) if value.dtype == torch.bfloat16 else value  # a type that numpy knows
    return torch.from_numpy(np.take(whole.numpy(), indices.numpy(), dim, mode="clip")).view(value.dtype)


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """One behind the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def runs(indices: Tensor) -> list[range] | None:
    """The same indices as runs of consecutive ones; None if these are too many, or too short."""
    whole = indices.numpy()
    ends = [*np.flatnonzero(np.diff(whole) != 1).tolist(), len(whole) - 1]
    if len(ends) > RUNS or len(whole) < 4 * len(ends):
        return None
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [range(int(whole[start]), int(whole[end]) + 1) for start, end in zip(starts, ends, strict=True)]


def within(wanted: Indices, indices: Indices) -> Indices:
    """Those of `indices` that are at the wanted places."""
    if isinstance(wanted, range):
        return indices[wanted.start : wanted.stop]
    if isinstance(indices, range):
        return wanted * indices.step + indices.start
    return indices[wanted]


def consecutive(indices: range) -> Indices:
    return indices if indices.step == 1 else torch.arange(indices.start, indices.stop, indices.step)


def broadcast(passed: Selection, source: torch.Size, shape: torch.Size) -> Selection:
    """The selection of an input of the shape `source` that is broadcast to `shape`, along the dimensions that it has."""
    more = len(shape) - len(source)
    return {dim - more: each for dim, each in passed.items() if dim >= more and source[dim - more] == shape[dim]}
