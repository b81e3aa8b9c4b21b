"""Tensor parallelism: attention heads, FFN units and the vocabulary are split over processes, as in Megatron-LM.

The plan follows from the architecture's table: a matrix that produces a split axis is cut by rows of its output, one that
consumes it by its input, and each block of attention or FFN needs one all-reduce. Paper: Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053, section 3; done by PyTorch's DTensor and `parallelize_module`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from growbench.architectures import Architecture, Row, sizes_of
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.weights import Axis, axis_length

HEAD_NORMS = (Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_SIZE)
INNER = (Axis.HEADS, Axis.KV_HEADS, Axis.FFN)  # axes within a block, split; the residual stream is whole everywhere
PER_HEAD = ("num_heads", "attn_dim", "split_size")  # attributes of attention modules that count heads: divided by the degree


@dataclass(frozen=True)
class Cut:
    """How one parameter is split: along `dim`, where it consists of `blocks` equal ones that are split each (fused matrices)."""

    dim: int
    blocks: int = 1

    def order(self, size: int, tp_degree: int) -> Tensor:
        """The indices along `dim` in the order in which consecutive parts hold a share of every block."""
        return torch.arange(size).view(self.blocks, tp_degree, -1).transpose(0, 1).flatten()

    def scattered(self, value: Tensor, tp_degree: int) -> Tensor:
        """The parameter in order of parts."""
        return value if self.blocks == 1 else self._taken(value, self.order(value.shape[self.dim], tp_degree))

    def gathered(self, value: Tensor, tp_degree: int) -> Tensor:
        """The parameter in its model's own order, from the one in order of parts."""
        return value if self.blocks == 1 else self._taken(value, self.order(value.shape[self.dim], tp_degree).argsort())

    def _taken(self, value: Tensor, order: Tensor) -> Tensor:
        return value.index_select(self.dim, order.to(value.device))


@dataclass
class Split(ParallelStyle):
    """One linear layer or embedding with split parameters. `consumes`: its input comes split; `produces`: its output stays so."""

    cuts: dict[str, Cut] = field(default_factory=dict)  # by the parameter's name in its module
    consumes: bool = False
    produces: bool = False

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, mesh, self._partition, self._input, self._output)  # type: ignore[arg-type]

    def _partition(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            cut = self.cuts.get(key)
            value = parameter.detach() if cut is None else cut.scattered(parameter.detach(), mesh.size())
            split = distribute_tensor(value, mesh, [Replicate() if cut is None else Shard(cut.dim)])
            module.register_parameter(key, nn.Parameter(split, parameter.requires_grad))

    def _input(self, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        placement = Shard(-1) if self.consumes else Replicate()
        return (DTensor.from_local(inputs[0], mesh, [placement], run_check=False), *inputs[1:])

    def _output(self, module: nn.Module, outputs: DTensor, mesh: DeviceMesh) -> Tensor:
        placement = Shard(-1) if self.produces else Replicate()
        return outputs.redistribute(mesh, [placement]).to_local()


def split(model: nn.Module, architecture: Architecture, mesh: DeviceMesh) -> dict[str, Cut]:
    """Split a plain model of the architecture over `mesh`, in place. Returns how each split parameter is cut, by its name.

    Raises UsageError if the length of an axis is not divisible by the mesh's size.
    """
    sizes = sizes_of(model)
    check(architecture, sizes, mesh.size())
    holders = _holders(model)
    cuts: dict[str, Cut] = {}
    styles: dict[str, Split] = {}
    for row, native, at in _rows(architecture, sizes):
        cuts[native] = Cut(len(row.axes) - 1 - at if row.transposed else at, row.parts)
        for path, key in holders[native]:
            module = model.get_submodule(path)
            if any(module.children()):
                continue  # another name of a parameter that a module below uses
            style = styles.setdefault(path, Split())
            style.cuts[key] = cuts[native]
            style.consumes |= at == 1
            style.produces |= at == 0 and row.axes[at] in INNER
            if row.axes[at] in (Axis.HEADS, Axis.KV_HEADS):
                _keep_own_heads(model.get_submodule(path.rpartition(".")[0]), mesh.size())
    parallelize_module(model, mesh, styles)  # type: ignore[arg-type]
    for native in cuts:  # tied again
        modules = [(model.get_submodule(path), key) for path, key in holders[native]]
        user, own = next((module, key) for module, key in modules if not any(module.children()))
        for module, key in modules:
            module.register_parameter(key, user.get_parameter(own))
    return cuts


def check(architecture: Architecture, sizes: ModelConfig, tp_degree: int) -> None:
    """Raise UsageError unless a model of these sizes can be split into so many parts."""
    if any(row.role == "norm" and row.axes[-1] in HEAD_NORMS for row in architecture.table(sizes)):
        raise UsageError(f"--tensor-parallel {tp_degree}: {architecture.name} norms queries and keys, which no part can do alone")
    for axis in _split_axes(architecture, sizes):
        if axis is Axis.VOCAB:
            continue
        count = {Axis.HEADS: sizes.heads, Axis.KV_HEADS: sizes.key_value_heads}.get(axis) or axis_length(axis, sizes)
        if count % tp_degree:
            raise UsageError(f"{axis.value} = {count}: must be divisible by --tensor-parallel {tp_degree}")


def _split_axes(architecture: Architecture, sizes: ModelConfig) -> set[Axis]:
    """The axes that are split: not the heads where they are mixed with one another."""
    axes = {axis for row in architecture.table(sizes) for axis in row.axes}
    mixed = {Axis.HEADS, Axis.KV_HEADS} if Axis.HEAD_COUNT in axes else set()
    return ({*INNER, Axis.VOCAB} & axes) - mixed


def _rows(architecture: Architecture, sizes: ModelConfig) -> Iterator[tuple[Row, str, int]]:
    """Every split parameter: its row, its name, and which of the row's axes is split. One row of a fused one."""
    axes = _split_axes(architecture, sizes)
    for row in architecture.table(sizes):
        at = next((place for place, axis in enumerate(row.axes) if axis in axes), None)
        if at is not None and row.part == 0:
            for _, native in row.natives(sizes):
                yield row, native, at


def _holders(model: nn.Module) -> dict[str, list[tuple[str, str]]]:
    """Every parameter's name, and all modules that hold it with their names for it: a tied one has several."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    holders: dict[str, list[tuple[str, str]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(names[parameter], []).append((path, key))
    return holders


def _keep_own_heads(attention: nn.Module, tp_degree: int) -> None:
    if not getattr(attention, "split_over", False):
        attention.split_over = True  # type: ignore[assignment]
        for key in PER_HEAD:
            if hasattr(attention, key):
                setattr(attention, key, getattr(attention, key) // tp_degree)
