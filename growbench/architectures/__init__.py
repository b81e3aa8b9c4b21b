"""Architectures: which tensor of a model is what. Each file in `families` holds one `ARCHITECTURE`.

Its table is a list of rows that map a model's parameters to canonical weights (growbench.growth.weights) and back.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from growbench.architectures import families
from growbench.architectures.library import CONFIG, META, Library, Unset
from growbench.config.schema import Experiment, ImageConfig, ModelConfig
from growbench.errors import UsageError, did_you_mean
from growbench.growth.weights import Axis, Weight, Weights

# Sizes that only some architectures have, with their values in the others.
OPTIONS = {key: getattr(ModelConfig, key) for key in ("kv_heads", "class_layers", "dropout", "drop_path", "tied")}

Group = Literal["layers", "class_layers"]
GROUPS: dict[Group, Axis] = {"layers": Axis.LAYER, "class_layers": Axis.CLASS_LAYER}


@dataclass(frozen=True)
class Row:
    """One canonical weight and the parameter that holds it.

    `native`: the parameter's name, with `{}` for the layer number if the weight repeats in every layer.
    `transposed`: the parameter is stored as (in, out), as in GPT-2's Conv1D.
    `part`, `parts`: the parameter holds several weights, such as a fused query-key-value; this one is block number `part` of
    `parts` equal blocks along the output axis.
    `group`: the stack of layers that a repeated weight belongs to.
    `first`: the parameter that is read for layer 0, if that layer has no parameter of its own.
    The other fields are those of `Weight`, without the layer axis.
    """

    name: str
    native: str
    axes: tuple[Axis, ...]
    role: str
    consumes: bool = False
    residual: bool = False
    transposed: bool = False
    part: int = 0
    parts: int = 1
    group: Group = "layers"
    first: str | None = None
    subrole: str = ""
    width_power: float = 0.0

    @property
    def per_layer(self) -> bool:
        return "{}" in self.native

    @property
    def part_dim(self) -> int:
        """The output axis of the stored parameter, along which it is split into parts."""
        return -1 if self.transposed else 0

    @property
    def key(self) -> str:
        """The canonical weight's full name."""
        return f"{self.group}.{self.name}" if self.per_layer else self.name

    def natives(self, sizes: ModelConfig) -> list[tuple[int | None, str]]:
        """Layer number and name of each parameter that holds this weight. The layer is None if the weight does not repeat."""
        if not self.per_layer:
            return [(None, self.native)]
        own = range(1 if self.first else 0, getattr(sizes, self.group))
        return [(layer, self.native.format(layer)) for layer in own]


@dataclass(frozen=True)
class Architecture:
    """How to build models of one architecture, and how to read and write their weights.

    A built model maps inputs to logits (N, vocabulary) and has its ModelConfig as attribute `sizes`.
    Text: inputs are (B, T); positions are the (N,) labelled ones, or None for all. Images: inputs are (B, 3, S, S), and N = B.
    """

    name: str
    objective: Literal["causal", "masked", "classes"]
    tokenizer: Literal["wordpiece", "bytes"] | None  # None: images
    norm: Literal["pre", "post"]
    make: Callable[[ModelConfig], nn.Module]
    table: Callable[[ModelConfig], list[Row]]
    options: tuple[str, ...]  # the OPTIONS that it has
    library: Library  # stores and reads its models as checkpoints of their library
    centred: bool = True  # its norms subtract the mean (LayerNorm); False: RMSNorm
    kin: str = ""  # a family whose layers it has but for a few weights: what ties and grouped heads change is checked there

    def build(self, config: ModelConfig, settings: Mapping[str, float] | None = None) -> nn.Module:
        """A freshly initialised model of these sizes, with these settings in place of the usual ones.

        Raises UsageError for an option or a setting that the architecture lacks.
        """
        for key, default in OPTIONS.items():
            if key not in self.options and getattr(config, key) != default:
                raise UsageError(f"{self.name} has no {key}: its options are {', '.join(self.options)}")
        model = self.make(config)
        model.sizes, model.family = self.marked(config), self.name  # type: ignore[assignment]
        usual = self.library.settings(model)
        changed = {key: value for key, value in (settings or {}).items() if value != usual.get(key)}
        self.library.change(model, changed)
        model.changed_settings = changed  # type: ignore[assignment]
        return model

    def marked(self, config: ModelConfig) -> ModelConfig:
        """The same sizes, which say how its heads must be copied, and whether all positions have labels."""
        return replace(config, even_heads=self.library.even_heads, causal=self.objective == "causal")

    def _sizes(self, model: nn.Module) -> ModelConfig:
        """Raises UsageError for a model of another architecture, whose weights are not known here."""
        if (family := getattr(model, "family", self.name)) != self.name:
            raise UsageError(f"a source of {family} has other weights than {self.name}: it can teach, but not be grown")
        return sizes_of(model)

    def shapes(self, config: ModelConfig) -> dict[str, torch.Size]:
        """The shape of every parameter of a model of these sizes, by name. Raises UsageError as `build` does."""
        return _shapes(self.name, config)

    def layer_types(self, sizes: ModelConfig) -> tuple[Hashable, ...]:
        """The type of each layer of a model of these sizes. Layers of different types compute different functions."""
        return _layer_types(self.name, sizes)

    def rows(self, sizes: ModelConfig) -> list[Row]:
        """The rows of the weights that a model of these sizes has: none of layers if it has no layers."""
        return [row for row in self.table(sizes) if not row.per_layer or getattr(sizes, row.group)]

    def read(self, model: nn.Module) -> Weights:
        """The model's parameters as canonical weights, detached from autograd. Tied parameters are read once."""
        return self.canonical({name: parameter.detach() for name, parameter in model.named_parameters()}, self._sizes(model))

    def canonical(self, stored: Mapping[str, Tensor], sizes: ModelConfig) -> Weights:
        """Canonical weights from tensors that have the names and shapes of the parameters of a model of these sizes."""
        weights, types = {}, partial(_types_at_depth, self.name, sizes)
        for row in self.rows(sizes):
            values = [_canonical(row, stored[native]) for _, native in row.natives(sizes)]
            if row.first:
                values.insert(0, stored[row.first])
            value, axes = (torch.stack(values), (GROUPS[row.group], *row.axes)) if row.per_layer else (values[0], row.axes)
            layer_types = types if axes[0] is Axis.LAYER else None
            weights[row.key] = Weight(
                value, axes, row.role, row.consumes, row.residual, row.subrole, row.width_power, layer_types
            )
        return weights

    def pieces(self, stored: Mapping[str, Tensor], sizes: ModelConfig) -> Iterator[tuple[Row, int | None, Tensor]]:
        """Row, layer and value of each canonical weight that is stored, layer by layer: without the copy that stacking makes."""
        for row in self.rows(sizes):
            for layer, native in row.natives(sizes):
                if native in stored:
                    yield row, layer, _canonical(row, stored[native])

    def native(self, weights: Weights, sizes: ModelConfig) -> dict[str, Tensor]:
        """The model's parameters by name, made from canonical weights by differentiable operations, as views where possible.

        Raises ValueError if a weight is missing.
        """
        parts: dict[str, list[Tensor]] = {}
        dims = {}
        rows = self.rows(sizes)
        if missing := [row.key for row in rows if row.key not in weights]:
            raise ValueError(f"weights lack {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}")
        for row in rows:
            value = weights[row.key].value
            layers = value.unbind(0) if row.per_layer else (value,)
            for layer, native in row.natives(sizes):
                parts.setdefault(native, []).append(layers[layer or 0].mT if row.transposed else layers[layer or 0])
                dims[native] = row.part_dim
        return {name: blocks[0] if len(blocks) == 1 else torch.cat(blocks, dims[name]) for name, blocks in parts.items()}

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, int | None, nn.Parameter]]:
        """Canonical name, layer (None if it does not repeat) and parameter. A fused parameter comes once for each part."""
        sizes, parameters = self._sizes(model), dict(model.named_parameters(remove_duplicate=False))
        for row in self.rows(sizes):
            for layer, native in row.natives(sizes):
                yield row.key, layer, parameters[native]

    def hidden_matrices(self, model: nn.Module) -> list[nn.Parameter]:
        """The matrices of linear maps within the layers, as stored: fused ones whole. Only those that `model` has by these names.

        No embedding, head, norm, bias or convolution is one of them.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        rows = [row for row in self.table(self._sizes(model)) if row.per_layer and row.consumes and len(row.axes) == 2]
        names = dict.fromkeys(name for row in rows for _, name in row.natives(self._sizes(model)))  # a fused one has several rows
        return [parameters[name] for name in names if name in parameters]

    def stack(self, model: nn.Module) -> tuple[nn.Module, str]:
        """The module that holds the list of growing layers, and the name of that list in it."""
        row = next(row for row in self.table(self._sizes(model)) if row.per_layer and row.group == "layers")
        path, _, name = row.native.partition(".{}")[0].rpartition(".")
        return model.get_submodule(path), name

    def write(self, weights: Weights, model: nn.Module) -> nn.Module:
        """Copy canonical weights into every parameter of `model`. Raises ValueError if one is missing or misshapen."""
        _refuse_dead(weights)
        values = self.native(weights, self._sizes(model))
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


def _refuse_dead(weights: Weights) -> None:
    """Raise UsageError for a branch between two norms whose gains are both zero: neither would ever get a gradient."""
    for name, weight in weights.items():
        behind = weights.get(name.replace(".norm.", ".post_norm."), weight)
        if behind is not weight and not weight.value.is_meta and not (weight.value.any(-1) | behind.value.any(-1)).all():
            raise UsageError(f"{name} and the norm behind its branch are both zero in a layer, which would never be trained")


@cache
def _shapes(name: str, config: ModelConfig) -> dict[str, torch.Size]:
    with META, Unset():
        return parameter_shapes(get(name).build(config))


@cache
def _layer_types(name: str, sizes: ModelConfig) -> tuple[Hashable, ...]:
    return get(name).library.layer_types(sizes)


def _types_at_depth(name: str, sizes: ModelConfig, layers: int) -> tuple[Hashable, ...]:
    """The types of the layers of a model with so many layers, otherwise of these sizes."""
    return get(name).layer_types(replace(sizes, layers=layers))


def parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of every parameter of a model, by name. Tied parameters are listed once."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def sizes_of(model: nn.Module) -> ModelConfig:
    """The sizes that a model was built with."""
    return cast(ModelConfig, model.sizes)


def changed_settings(model: nn.Module) -> dict[str, float]:
    """The settings that a model was built with in place of its architecture's usual ones."""
    return cast("dict[str, float]", getattr(model, "changed_settings", {}))


def _canonical(row: Row, stored: Tensor) -> Tensor:
    stored = stored.chunk(row.parts, row.part_dim)[row.part] if row.parts > 1 else stored
    return stored.mT if row.transposed else stored


def linear(name: str, native: str, out: Axis, into: Axis, role: str, bias: bool = True) -> list[Row]:
    """A linear layer: its weight consumes `into`; weight and bias produce `out`."""
    residual = out is Axis.WIDTH and role.endswith(("attention_out", "ffn_down"))
    rows = [
        Row(f"{name}.weight", f"{native}.weight", (out, into), role, consumes=True, residual=residual),
        Row(f"{name}.bias", f"{native}.bias", (out,), role, residual=residual),
    ]
    return rows if bias else rows[:1]


def fused(*layers: list[Row]) -> list[Row]:
    """Linear layers of equal size whose parameters are stored as one, in this order along the output axis."""
    return [replace(row, part=number, parts=len(layers)) for number, rows in enumerate(layers) for row in rows]


def norm(name: str, native: str, axis: Axis = Axis.WIDTH, bias: bool = True, consumes: bool = False) -> list[Row]:
    """A norm's gain and bias. `consumes`: they take the place of the tied decoder behind them, which cannot be divided."""
    rows = [
        Row(f"{name}.weight", f"{native}.weight", (axis,), "norm", consumes, subrole="norm_gain"),
        Row(f"{name}.bias", f"{native}.bias", (axis,), "norm", consumes, subrole="norm_bias"),
    ]
    return rows if bias else rows[:1]


def embedding(name: str, native: str, *axes: Axis) -> Row:
    """An embedding (*axes, WIDTH) that is looked up or added."""
    return Row(name, native, (*axes, Axis.WIDTH), "embedding")


@cache
def names() -> tuple[str, ...]:
    """The names of all architectures, found without importing them."""
    return tuple(module.name for module in pkgutil.iter_modules(families.__path__))


def get(name: str) -> Architecture:
    """The architecture of that name. Raises UsageError if it is unknown."""
    if name not in names():
        raise UsageError(f"unknown architecture {name!r}: {did_you_mean(name, names())}")
    return cast(Architecture, importlib.import_module(f"{families.__name__}.{name}").ARCHITECTURE)


def of_checkpoint(folder: Path) -> Architecture:
    """The architecture of the checkpoint in a folder, by its config.json. Raises UsageError if there is none in growbench."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, timm = config.get("model_type"), config.get("architecture", "")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder}: no checkpoint of transformers or timm: {CONFIG} cannot be read") from error
    for architecture in map(get, names()):
        if architecture.library.reads(config):
            return architecture
    what = f"transformers' {kind!r}" if kind else f"timm's {timm!r}" if timm else "a model without model_type"
    own, timms = (
        ", ".join(name for name in names() if get(name).library.stock.__module__.startswith(library))
        for library in ("transformers", "timm")
    )
    raise UsageError(
        f"{folder}: {what} is no family that growbench can read: it reads transformers' {own}, and timm's {timms}; "
        "a table in growbench/architectures/families adds one"
    )


def of(experiment: Experiment, which: Literal["source", "target"] = "target") -> Architecture:
    """The architecture of an experiment's target, or source.

    Raises UsageError if it is unknown, cannot be trained on the experiment's data, or if the two are trained on other batches.
    """
    small, large = get(experiment.architecture_of("source")), get(experiment.architecture)
    if (small.objective, small.tokenizer) != (large.objective, large.tokenizer):
        batches = " and ".join(f"{each.name} ({each.objective}, {each.tokenizer or 'images'})" for each in (large, small))
        raise UsageError(f"target.architecture = {large.name!r}: {batches} are trained on different batches")
    architecture = small if which == "source" else large
    images = isinstance(experiment.data, ImageConfig)
    if images != (architecture.objective == "classes"):
        wanted = "images: data.image_size is missing" if not images else "text: data.sequence_length is missing"
        raise UsageError(f"architecture {architecture.name} is trained on {wanted}")
    return architecture


def check_rotary(config: ModelConfig) -> None:
    """Raise UsageError for an odd head size: rotary positions rotate pairs of dimensions."""
    if config.head_size % 2:
        name = "head_dim" if config.head_dim else "width / heads"
        raise UsageError(f"{name} = {config.head_size}: rotary positions need an even head size")
