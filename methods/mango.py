"""Mango: a learned multi-linear operator over all matrices of all layers."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import one_hot

from growbench.method import (
    WIDTHS,
    Axis,
    Maps,
    Method,
    ModelConfig,
    Phase,
    Phases,
    Task,
    UsageError,
    Weight,
    Weights,
    axis_length,
    constant,
    deepen,
    stack,
    tunable,
    widen,
)

NOISE = 0.02  # standard deviation of what starts at no copy, at ranks above 1


@dataclass(frozen=True)
class Dense:
    """A linear map of an axis, as a matrix (N, n). Consumers use it divided by its column sums, as Select does."""

    matrix: Tensor

    def produce(self, value: Tensor, dim: int) -> Tensor:
        return torch.tensordot(value, self.matrix.to(value), ([dim], [1])).movedim(-1, dim)

    def consume(self, value: Tensor, dim: int) -> Tensor:
        copies = self.matrix.sum(0).to(value)
        return self.produce(value / copies.reshape([-1] + [1] * (value.dim() - 1 - dim)), dim)


@dataclass(frozen=True)
class Blocks:
    """How often the width goes into the rows and columns of a matrix, of the small and of the large model."""

    small: tuple[int, int]
    large: tuple[int, int]

    def start(self) -> Tensor:
        """(blocks of the large matrix, of the small one): rows of blocks are copied in turn, columns divided among copies."""
        (rows, columns), (old_rows, old_columns) = self.large, self.small
        copied, divided = copies(old_rows, rows), copies(old_columns, columns)
        return torch.kron(copied, divided / divided.sum(0))


class Ring(nn.Module):
    """The large model, whose matrices are the small model's, (B1, I1, O1, L1), times four cores that form a ring.

    B blocks of a layer's matrices, I inputs and O outputs of a block, L layers; 1 small, 2 large. A core is (R, old, new, R).
    """

    def __init__(self, task: Task, rank: int) -> None:
        super().__init__()
        self.architecture, self.sizes = task.architecture, task.target_config
        old, new = task.source_config, task.target_config
        self.small, self.widths = task.read(task.source), (old.width, new.width)
        found = {name: blocks_of(weight, old, new) for name, weight in self.small.items()}
        self.blocks = {name: each for name, each in found.items() if each is not None}
        self.large = task.build().requires_grad_(False)
        for parameter in self.large.parameters():
            parameter.data = parameter.new_empty(0)  # frees the memory: forward builds the weights in every step
        width = copies(old.width, new.width)
        layers = one_hot(torch.tensor(stack(old.layers, new.layers)), old.layers).to(width)
        starts = {
            "blocks": torch.block_diag(*(each.start() for each in self.blocks.values())),
            "inputs": width / width.sum(0),
            "outputs": width,
            "layers": layers,
        }

        def core(start: Tensor) -> nn.Parameter:
            value = NOISE * torch.randn(rank, *start.mT.shape, rank, generator=task.rng)
            value[0, ..., 0] = start.mT
            return nn.Parameter(value.to(task.device))

        self.cores = nn.ParameterDict({name: core(start) for name, start in starts.items()})
        self.depth = nn.Parameter(layers.to(task.device))  # of all that is in no block
        self.width = nn.ParameterDict()
        others = {axis for name, weight in self.small.items() if name not in self.blocks for axis in weight.axes}
        for axis in (axis for axis in WIDTHS if axis in others):
            before, after = axis_length(axis, old), axis_length(axis, new)
            if before != after:
                self.width[axis.value] = nn.Parameter(self.start_of(axis, before, after).to(task.device))

    def start_of(self, axis: Axis, old: int, new: int) -> Tensor:
        """(new, old): units are copied in turn; FFN neurons within their blocks."""
        width, wide = self.widths
        if axis is Axis.FFN and not (old % width or new % wide):
            return torch.kron(copies(old // width, new // wide), copies(width, wide))
        return copies(old, new)

    def grown(self) -> Weights:
        """The large model's canonical weights."""
        maps: Maps = {axis: Dense(self.width[axis.value]) for axis in WIDTHS if axis.value in self.width}
        rest = {name: weight for name, weight in self.small.items() if name not in self.blocks}
        return {**deepen(widen(rest, maps), self.depth), **self.ring()}

    def ring(self) -> Weights:
        """The matrices of the layers."""
        old, new = self.widths
        whole = torch.cat([cut(self.small[name].value, each.small, old) for name, each in self.blocks.items()])
        large = ring_product(whole, self.cores["blocks"], self.cores["inputs"], self.cores["outputs"], self.cores["layers"])
        parts = large.split([each.large[0] * each.large[1] for each in self.blocks.values()])
        return {
            name: replace(self.small[name], value=joined(part, each.large, new))
            for (name, each), part in zip(self.blocks.items(), parts, strict=True)
        }

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        weights = self.architecture.native(self.grown(), self.sizes)
        logits: Tensor = functional_call(self.large, weights, (inputs, positions))
        return logits


def ring_product(whole: Tensor, blocks: Tensor, inputs: Tensor, outputs: Tensor, layers: Tensor) -> Tensor:
    """(B1, I1, O1, L1) -> (B2, I2, O2, L2). Cores: (p, B1, B2, q), (s, I1, I2, p), (q, O1, O2, r), (r, L1, L2, s)."""
    mixed = torch.einsum("biol,pbcq->pqciol", whole, blocks)
    mixed = torch.einsum("pqciol,sijp->qscjol", mixed, inputs)
    mixed = torch.einsum("qscjol,qokr->rscjkl", mixed, outputs)
    return torch.einsum("rscjkl,rlms->cjkm", mixed, layers)


def copies(old: int, new: int) -> Tensor:
    """(new, old) the matrix that copies old units in turn."""
    return one_hot(torch.arange(new) % old, old).to(torch.get_default_dtype())


def blocks_of(weight: Weight, old: ModelConfig, new: ModelConfig) -> Blocks | None:
    """The blocks of a matrix that repeats in every layer; None for other weights and where the width divides no side."""
    if not (weight.consumes and weight.axes[0] is Axis.LAYER and len(weight.axes) == 3):
        return None
    sides = [tuple(divmod(axis_length(axis, sizes), sizes.width) for axis in weight.axes[1:]) for sizes in (old, new)]
    if any(rest or not number for side in sides for number, rest in side):
        return None
    return Blocks(*((rows[0], columns[0]) for rows, columns in sides))


def cut(value: Tensor, blocks: tuple[int, int], width: int) -> Tensor:
    """(L, rows, columns) -> (B, I, O, L)."""
    rows, columns = blocks
    return value.reshape(-1, rows, width, columns, width).permute(1, 3, 4, 2, 0).flatten(0, 1)


def joined(value: Tensor, blocks: tuple[int, int], width: int) -> Tensor:
    """The reverse of `cut`."""
    rows, columns = blocks
    return value.unflatten(0, (rows, columns)).permute(4, 0, 3, 1, 2).reshape(-1, rows * width, columns * width)


class Mango(Method):
    """Learn a multi-linear map from all matrices of the small model to those of the large one, grow once, then train.

    Formula: the matrices of all layers, cut into blocks of width x width, are a tensor M1 (B1, I1, O1, L1): query, key, value,
    output, and the FFN's. M2 = M1 times a tensor ring of four cores S_B, S_I, S_O, S_L, each (R, old, new, R): every large weight
    depends on all small ones. All else (embeddings, norms, biases, talking heads, layers of class attention, and matrices
    that the width does not divide, as grouped keys and values) has a matrix for each axis and one for the layers.
    Paper: Pan et al., NeurIPS 2023; no code is public.
    Function preserving: no. At its start, at rank 1, the map copies units in turn and stacks layers: in width that preserves the
    function at integer ratios.
    Claim: DeiT-S to DeiT-B saves 76 % of the FLOPs, where bert2BERT saves 64 % and LiGO 55 %; the source is not charged.
    Defaults: 100 operator steps. The paper's other constants are not known to us: here rank 1, a start from copies, with noise of
    0.02 in the other slices of higher ranks, and LiGO's optimizer and learning rate for the operator. After growth, the
    optimizer's state is new, and the learning rate follows the run's schedule from its start.
    Costs beyond training: operator_steps training steps of the large model, including the construction of its weights, charged
    to `operator`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.10699"
    rank: int = 1  # R, of the ring
    operator_steps: int = 100  # not tuned: operator steps are outside the budget, so more are always better
    operator_lr: float = tunable(3e-3, 3e-4, 3e-2)

    def __post_init__(self) -> None:
        for key, least in ("rank", 1), ("operator_steps", 0):
            if getattr(self, key) < least:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least {least}")
        if self.operator_lr <= 0:
            raise UsageError(f"operator_lr = {self.operator_lr}: must be above 0")

    def phases(self, task: Task) -> Phases:
        ring = Ring(task, self.rank)
        if self.operator_steps:
            yield Phase(
                model=ring,
                steps=self.operator_steps,
                optimizer=task.optimizer(ring, lr=self.operator_lr, weight_decay=0.0),
                schedule=constant,
                account="operator",
                name="learn operator",
            )
        with torch.no_grad():
            weights = ring.grown()
        yield Phase(model=task.model_from(weights))
