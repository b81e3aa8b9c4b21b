"""Symmetric units: pairs that get equal gradients, so that training keeps them equal.

Two units are symmetric if their incoming weights are equal, and their outgoing weights are equal up to a positive factor. The
gradients of their outgoing weights are then equal, and those of their incoming weights differ by the factor alone, which Adam
does not see.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from growbench.architectures.units import Piece, Place, sides
from growbench.config.schema import ModelConfig

PARALLEL = 1e-5  # relative difference of directions: less is rounding
DIRECTIONS = 8  # random ones, on which outgoing weights are projected


@dataclass(frozen=True)
class Symmetric:
    """The units at one place, and the pairs of them that are symmetric."""

    place: Place
    units: int
    pairs: int


@dataclass
class _Units:
    """What is known of the units at one place."""

    count: int
    incoming: list[Any] = field(init=False)  # a digest for each unit
    outgoing: Tensor = field(init=False)  # (N, DIRECTIONS) projections
    squares: Tensor = field(init=False)  # (N,) of the outgoing weights' length

    def __post_init__(self) -> None:
        self.incoming = [hashlib.sha256() for _ in range(self.count)]
        self.outgoing = torch.zeros(self.count, DIRECTIONS, dtype=torch.float64)
        self.squares = torch.zeros(self.count, dtype=torch.float64)

    def consume(self, weights: Tensor, rng: torch.Generator) -> None:
        """Outgoing `weights`: (N, n) of each unit."""
        self.outgoing += weights.float() @ torch.randn(weights.shape[1], DIRECTIONS, generator=rng)
        self.squares += weights.float().square().sum(1)

    def produce(self, weights: Tensor) -> None:
        """Incoming `weights`: (N, n) of each unit."""
        for digest, row in zip(self.incoming, (weights.float() + 0.0).contiguous().numpy(), strict=True):  # no -0.0
            digest.update(row)

    def pairs(self) -> int:
        alike = defaultdict(list)
        for number, digest in enumerate(self.incoming):
            alike[digest.digest()].append(number)
        lengths = self.squares.sqrt()[:, None]
        directions = self.outgoing / torch.where(lengths > 0, lengths, 1)
        found = 0
        for members in alike.values():
            rest = directions[members] if len(members) > 1 else directions[:0]
            while len(rest) > 1:
                close = (rest - rest[0]).abs().amax(1) < PARALLEL
                same = int(close.sum())
                found += same * (same - 1) // 2
                rest = rest[~close]
        return found


def symmetric(pieces: Iterable[Piece], sizes: ModelConfig) -> list[Symmetric]:
    """The symmetric pairs at each place of a model of these sizes. `pieces`: all its weights."""
    rng = torch.Generator().manual_seed(0)
    found: dict[Place, _Units] = {}
    for piece in pieces:
        for side in sides(piece, sizes):
            units = found.setdefault(side.place, _Units(len(side.weights)))
            if side.outgoing:
                units.consume(side.weights, rng)
            else:
                units.produce(side.weights)
    return [Symmetric(place, units.count, units.pairs()) for place, units in found.items()]
