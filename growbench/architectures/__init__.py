"""Architectures: which tensor of a model is what. One file an architecture, holding one `ARCHITECTURE`.

A table is a list of `Tensors` rows that map a model's parameters to canonical weights (growbench.weights) and back.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from growbench.config import ModelConfig, UsageError, did_you_mean
from growbench.weights import Axis, Weight, Weights


@dataclass(frozen=True)
class Row:
    """One canonical weight and the parameter that holds it.

    `native` is the parameter's name, with `{}` for the layer's number where it repeats layer by layer. `transposed`: stored
    (in, out), as GPT-2's Conv1D does. `part` = (k, n): the k-th of n equal blocks along the stored output axis, as in a
    fused query-key-value. The other fields are those of `Weight`, without the LAYER axis.
    """

    name: str
    native: str
    axes: tuple[Axis, ...]
    role: str
    consumes: bool = False
    residual: bool = False
    transposed: bool = False
    part: tuple[int, int] = (0, 1)

    @property
    def per_layer(self) -> bool:
        return "{}" in self.native


@dataclass(frozen=True)
class Architecture:
    """One row of the table of architectures.

    A built model maps (inputs (B, T), positions (N,) or None) to logits (N, vocabulary) at the scored positions, and
    carries its ModelConfig as `sizes`.
    """

    name: str
    objective: Literal["causal", "masked"]
    tokenizer: Literal["wordpiece", "bytes"]
    norm: Literal["pre", "post"]
    make: Callable[[ModelConfig], nn.Module]
    table: Callable[[ModelConfig], list[Row]]

    def build(self, config: ModelConfig) -> nn.Module:
        """A freshly initialised model of these sizes."""
        model = self.make(config)
        model.sizes = config  # type: ignore[assignment]
        return model

    def read(self, model: nn.Module) -> Weights:
        """The model's parameters as canonical weights, without gradients. Tied parameters are read once."""
        sizes = sizes_of(model)
        stored = {name: parameter.detach() for name, parameter in model.named_parameters()}
        weights = {}
        for row in self.table(sizes):
            if row.per_layer:
                value = torch.stack([_canonical(row, stored[row.native.format(layer)]) for layer in range(sizes.layers)])
                weights[f"layers.{row.name}"] = Weight(value, (Axis.LAYER, *row.axes), row.role, row.consumes, row.residual)
            else:
                value = _canonical(row, stored[row.native])
                weights[row.name] = Weight(value, row.axes, row.role, row.consumes, row.residual)
        return weights

    def native(self, weights: Weights, sizes: ModelConfig) -> dict[str, Tensor]:
        """Canonical weights as the model's parameters by name: views where it can, so gradients flow back."""
        parts: dict[str, list[Tensor]] = {}
        for row in self.table(sizes):
            if row.per_layer:
                for layer, value in enumerate(weights[f"layers.{row.name}"].value.unbind(0)):
                    parts.setdefault(row.native.format(layer), []).append(_stored(row, value))
            else:
                parts.setdefault(row.native, []).append(_stored(row, weights[row.name].value))
        return {name: blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1) for name, blocks in parts.items()}

    def write(self, weights: Weights, model: nn.Module) -> nn.Module:
        """Copy canonical weights into every parameter of `model`. Raises ValueError if one is missing or misshapen."""
        values = self.native(weights, sizes_of(model))
        parameters = dict(model.named_parameters())
        if values.keys() != parameters.keys():
            raise ValueError(f"weights and model differ in {sorted(values.keys() ^ parameters.keys())}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != values[name].shape:
                    raise ValueError(
                        f"{name}: the model has shape {tuple(parameter.shape)}, the weights {tuple(values[name].shape)}"
                    )
                parameter.copy_(values[name])
        return model


def sizes_of(model: nn.Module) -> ModelConfig:
    """The sizes that a model was built with."""
    return cast(ModelConfig, model.sizes)


def _canonical(row: Row, stored: Tensor) -> Tensor:
    block, blocks = row.part
    stored = stored.chunk(blocks, -1)[block] if blocks > 1 else stored
    return stored.mT if row.transposed else stored


def _stored(row: Row, value: Tensor) -> Tensor:
    return value.mT if row.transposed else value


def linear(
    name: str, native: str, out: Axis, into: Axis, role: str, *, transposed: bool = False, part: tuple[int, int] = (0, 1)
) -> list[Row]:
    """A linear layer with bias: the weight consumes `into`, both produce `out`."""
    residual = out is Axis.WIDTH and role in ("attention_out", "ffn_down")
    return [
        Row(f"{name}.weight", f"{native}.weight", (out, into), role, True, residual, transposed, part),
        Row(f"{name}.bias", f"{native}.bias", (out,), role, False, residual, part=part),
    ]


def norm(name: str, native: str, axis: Axis = Axis.WIDTH, *, consumes: bool = False) -> list[Row]:
    """A norm's gain and bias. `consumes`: it feeds a tied decoder, which cannot be divided itself."""
    return [
        Row(f"{name}.weight", f"{native}.weight", (axis,), "norm", consumes),
        Row(f"{name}.bias", f"{native}.bias", (axis,), "norm", consumes),
    ]


def embedding(name: str, native: str, axis: Axis) -> Row:
    """A lookup table (axis, WIDTH)."""
    return Row(name, native, (axis, Axis.WIDTH), "embedding")


def names() -> list[str]:
    """The known architectures, without importing them."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def get(name: str) -> Architecture:
    """The architecture of that name. Raises UsageError for an unknown one."""
    if name not in names():
        raise UsageError(f"unknown architecture {name!r}: {did_you_mean(name, names())}")
    architecture: Architecture = importlib.import_module(f"{__name__}.{name}").ARCHITECTURE
    return architecture
