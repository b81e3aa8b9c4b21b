"""transformers and timm: saving our models as checkpoints of these libraries, and loading such checkpoints.

Only safetensors are read; code in a checkpoint is never run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from growbench.config.schema import ModelConfig
from growbench.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORM_EPS = "norm_eps"  # what norms add to the variance

CONFIG = "config.json"

POSITIONS, LAYERS = "max_position_embeddings", "num_hidden_layers"  # keys of transformers' configurations

DEFAULTS = {"kv_heads": "key_value_heads", "head_dim": "head_size"}  # fields whose 0 stands for the value of another one

KERNELS = ("attn_implementation", "experts_implementation")  # keys that may name a kernel on the hub, which is code

META = torch.device("meta")


@cache
def changes_values(func: Any) -> bool:
    """Whether an operation changes only values of its first argument, in place."""
    return func._schema.name.endswith("_") and torch.Tag.inplace_view not in func.tags


class Unset(TorchDispatchMode):
    """Models on the meta device, which has no values, are built without setting any: this takes half the time."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if changes_values(func) and args[0].is_meta else func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as its library loads it, in evaluation mode, and the names of tensors for which files and class disagree."""

    model: nn.Module
    missing: tuple[str, ...] = ()  # of the class, not in the files
    extra: tuple[str, ...] = ()  # in the files, not of the class
    misshapen: tuple[str, ...] = ()  # with both shapes


class Library(Protocol):
    """One architecture in its library. An unreadable checkpoint raises UsageError, or an error of the library.

    `left_out`: patterns of names of tensors that checkpoints hold and our models do without, such as another head's.
    `even_heads`: a norm spans all heads of a query or key, so that uneven copies of heads change its mean square.
    """

    @property
    def left_out(self) -> tuple[str, ...]: ...

    @property
    def even_heads(self) -> bool: ...

    @property
    def stock(self) -> Any:
        """The library's class."""

    def save(self, model: nn.Module, sizes: ModelConfig, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Save one of our models, with its tokenizer if it reads text, as a checkpoint of the library's class."""

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is one of this architecture."""

    def sizes(self, folder: Path) -> ModelConfig:
        """The sizes of the checkpoint in a folder, including vocabulary, positions and patch, with its own configuration."""

    def config_json(self, sizes: ModelConfig) -> dict[str, Any]:
        """The config.json of a model of these sizes: `sizes.configuration` with these sizes in place of its own."""

    def layer_types(self, sizes: ModelConfig) -> tuple[Hashable, ...]:
        """The type of each layer of a model of these sizes. Layers of different types compute different functions."""

    def load(self, folder: Path) -> nn.Module:
        """The checkpoint in a folder as a model of the library's class, in float32 and evaluation mode."""

    def examine(self, folder: Path, dtype: torch.dtype) -> Loaded:
        """As `load`, in this dtype, whatever is missing, extra or of another shape."""

    def state(self, stock: nn.Module) -> dict[str, Tensor]:
        """Its tensors, with the names and layout of our models."""

    def from_stored(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter as our models hold it, from the tensor that the library stores under this name."""

    def to_stored(self, name: str, tensor: Tensor) -> Tensor:
        """The inverse of `from_stored`."""

    def settings(self, model: nn.Module) -> dict[str, float]:
        """The settings of one of our models that a method may change, by names that all architectures share."""

    def change(self, model: nn.Module, settings: Mapping[str, float]) -> None:
        """Change such settings, in the model and in its library's configuration. Raises UsageError for one that it lacks."""

    def settings_json(self, settings: Mapping[str, float]) -> dict[str, Any]:
        """Such settings as config.json has them."""

    def example(self, stock: nn.Module, sequence_length: int) -> tuple[Tensor, Tensor]:
        """Random inputs (text: one sequence of `sequence_length`) and the logits (N, vocabulary) of the library's model."""


def misshapen_tensor(name: str, stored: torch.Size, own: torch.Size) -> str:
    return f"{name} has shape {tuple(stored)}, in its class {tuple(own)}"


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state on the CPU. Tied tensors are copied separately."""
    state = model.state_dict()
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def repeated(values: Sequence[Any], length: int) -> list[Any]:
    """The shortest pattern that `values` are a repetition of (the last time perhaps in part), repeated up to `length`."""
    period = next(n for n in range(1, len(values) + 1) if all(value == values[i % n] for i, value in enumerate(values)))
    return [values[i % period] for i in range(length)]


class AsStored:
    """Our models hold each parameter as their library stores it, and all of them."""

    left_out: tuple[str, ...] = ()

    def from_stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def to_stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor


@dataclass(frozen=True)
class Transformers(AsStored):
    """An architecture in transformers. `names` maps keys of its configuration to fields of ModelConfig.

    `norm_eps`: the key of what its norms add to the variance.
    `rotary`: no weight belongs to a position, so that a checkpoint's own number of positions stays in its configuration.
    `per_layer`: the keys of its configuration that are lists with an entry for each layer, which says the layer's type.
    """

    stock: Any  # transformers' class
    names: Mapping[str, str]
    norm_eps: str = "layer_norm_eps"
    rotary: bool = False
    per_layer: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    even_heads: bool = False

    def options(self, sizes: ModelConfig) -> dict[str, Any]:
        """The sizes as keyword arguments of transformers' configuration."""
        return {key: getattr(sizes, DEFAULTS.get(name, name)) for key, name in self.names.items()}

    def config_json(self, sizes: ModelConfig) -> dict[str, Any]:
        own: dict[str, Any] = json.loads(sizes.configuration or "{}")
        options = self.options(sizes)
        if self.rotary and POSITIONS in own:
            del options[POSITIONS]
        if own and own.get(LAYERS) != sizes.layers:
            options |= {key: self._continued(key, own, sizes.layers) for key in self.per_layer if own.get(key)}
        return {**own, **options}

    def _continued(self, key: str, own: Mapping[str, Any], layers: int) -> list[Any]:
        """A list with an entry for each of `layers`: in the pattern of the class if `own` has it, else in the list's own."""
        without = {name: value for name, value in own.items() if name not in self.per_layer}
        stated: list[Any] = own[key]
        usual, longer = (
            getattr(self.stock.config_class.from_dict({**without, LAYERS: count}), key) for count in (len(stated), layers)
        )
        return list(longer) if stated == usual else repeated(stated, layers)

    def configuration(self, sizes: ModelConfig, **changes: Any) -> Any:
        """transformers' configuration of a model of these sizes. `changes`: what growbench sets in every model."""
        return self.stock.config_class.from_dict({**self.config_json(sizes), **changes})

    def layer_types(self, sizes: ModelConfig) -> tuple[Hashable, ...]:
        if not self.per_layer:
            return ("layer",) * sizes.layers
        config = self.configuration(sizes)
        return tuple(zip(*(getattr(config, key)[: sizes.layers] for key in self.per_layer), strict=True))

    def save(self, model: nn.Module, sizes: ModelConfig, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
        assert tokenizer is not None
        config, state = copy.deepcopy(model.config), {name: self.to_stored(name, each) for name, each in tensors(model).items()}
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id  # type: ignore[union-attr]
        self.to_library(config, state)
        with META:
            stock = self.stock(config)
        stock.load_state_dict(state, assign=True)
        stock.tie_weights()
        stock.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def reads(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == self.stock.config_class.model_type

    def sizes(self, folder: Path) -> ModelConfig:
        from transformers import AutoConfig

        config, own = AutoConfig.from_pretrained(folder, trust_remote_code=False), self.stock.config_class.model_type
        if config.model_type != own:
            raise UsageError(f"is a model of type {config.model_type!r}, the experiment's are of type {own!r}")
        found: dict[str, Any] = {name: getattr(config, key, None) for key, name in self.names.items()}
        if found.get("head_dim") == config.hidden_size // config.num_attention_heads:
            del found["head_dim"]
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        stored = {key: value for key, value in stored.items() if not key.endswith(KERNELS)}
        known = {name: size for name, size in found.items() if size is not None}
        return ModelConfig(**known, configuration=json.dumps(stored, sort_keys=True), even_heads=self.even_heads)

    def load(self, folder: Path) -> nn.Module:
        found = self.examine(folder, torch.float32)
        if found.missing:
            raise UsageError(f"lacks weights: {', '.join(found.missing[:3])}")
        if found.misshapen:
            raise UsageError(found.misshapen[0])
        return found.model

    def examine(self, folder: Path, dtype: torch.dtype) -> Loaded:
        stock, report = self.stock.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="sdpa",  # a configuration may name a kernel on the hub, which is code
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported
        )
        misshapen = (misshapen_tensor(name, stored, own) for name, stored, own in sorted(report["mismatched_keys"]))
        missing, extra = (tuple(sorted(report[key])) for key in ("missing_keys", "unexpected_keys"))
        return Loaded(stock.eval(), missing, extra, tuple(misshapen))

    def state(self, stock: nn.Module) -> dict[str, Tensor]:
        state = {name: self.from_stored(name, tensor) for name, tensor in stock.state_dict().items()}
        self.from_library(stock.config, state)
        return state

    def settings(self, model: nn.Module) -> dict[str, float]:
        return {NORM_EPS: getattr(model.config, self.norm_eps)}

    def change(self, model: nn.Module, settings: Mapping[str, float]) -> None:
        if unknown := settings.keys() - {NORM_EPS}:
            raise UsageError(
                f"{type(model).__name__} has no setting {min(unknown)!r} that a method may change: it has {NORM_EPS}"
            )
        if settings and any(name.endswith(".q_norm") for name, _ in model.named_modules()):
            raise UsageError(
                f"{type(model).__name__} has norms of queries and keys beside those of the residual stream, and one "
                f"{NORM_EPS} for all of them: it cannot be changed"
            )
        for value in settings.values():
            setattr(model.config, self.norm_eps, value)
            for module in model.modules():
                if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                    module.eps = value

    def settings_json(self, settings: Mapping[str, float]) -> dict[str, Any]:
        return {self.norm_eps: settings[NORM_EPS]} if NORM_EPS in settings else {}

    def example(self, stock: nn.Module, sequence_length: int) -> tuple[Tensor, Tensor]:
        config: Any = stock.config
        inputs = torch.randint(config.vocab_size, (1, sequence_length), generator=torch.Generator().manual_seed(0))
        inputs[inputs == config.pad_token_id] = ((config.pad_token_id or 0) + 1) % config.vocab_size  # our inputs have no padding
        with torch.no_grad():
            return inputs, stock(inputs).logits.flatten(0, 1)

    def to_library(self, config: Any, state: dict[str, Tensor]) -> None:
        """Convert configuration and state of our model, in place, so that the library's class computes the same function."""

    def from_library(self, config: Any, state: dict[str, Tensor]) -> None:
        """The inverse of `to_library`."""
