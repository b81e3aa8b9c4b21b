"""timm: saving our models as its checkpoints, and loading such checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from growbench.architectures.library import CONFIG, META, AsStored, Loaded, misshapen_tensor, tensors
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from growbench.architectures import Row


@dataclass(frozen=True)
class Timm(AsStored):
    """An architecture in timm. `entry`: the registered model that equals ours once it is built with `options`.

    `kin`: other modules of timm with models of the same class.
    `named`: a part of its models' names, where their module has others of the same class.
    """

    entry: str
    stock: type[nn.Module]
    options: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Any], ModelConfig]
    kin: tuple[str, ...] = ()
    named: str = ""
    even_heads: bool = False

    def save(self, model: nn.Module, sizes: ModelConfig, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
        import timm
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        from timm.models import save_for_hf

        options, side = self._arguments(sizes), sizes.patch * math.isqrt(sizes.positions)
        with META:
            stock = timm.create_model(self._entry(sizes), **options)
        stock.load_state_dict(tensors(model), assign=True)
        images = {"input_size": (3, side, side), "interpolation": "bicubic", "crop_pct": 1.0}
        images |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        save_for_hf(stock, str(folder), {"pretrained_cfg": images}, model_args=options, safe_serialization=True)

    def reads(self, config: Mapping[str, Any]) -> bool:
        import timm

        name = str(config.get("architecture"))
        modules = (self.stock.__module__, *self.kin)
        return self.named in name and timm.is_model(name) and timm.model_entrypoint(name).__module__ in modules

    def build(self, kind: type[nn.Module], sizes: ModelConfig, **more: Any) -> Any:
        """A freshly initialised model of class `kind`, which adds methods to timm's. `more`: further arguments of timm's class.

        Raises UsageError for sizes that timm does not build as they are asked for.
        """
        import timm

        model = timm.create_model(self._entry(sizes), **self._arguments(sizes), **more)
        found = self.read(model) if sizes.layers else sizes
        for key in ("head_size", "ffn"):
            if getattr(found, key) != getattr(sizes, key):
                raise UsageError(f"{key} = {getattr(sizes, key)}: timm's {self._entry(sizes)} would have {getattr(found, key)}")
        model.__class__ = kind
        return model

    def present(self, rows: list[Row], sizes: ModelConfig) -> list[Row]:
        """Those rows whose parameters a model of this configuration has. Raises UsageError for a parameter without a row."""
        own = _parameter_names(
            self._entry(sizes), json.dumps(self._arguments(replace(sizes, layers=1, class_layers=1)), sort_keys=True)
        )
        if more := sorted(own - {row.native.format(0) for row in rows}):
            raise UsageError(f"{self._entry(sizes)} has parameters that no table of growbench names: {', '.join(more[:3])}")
        return [row for row in rows if row.native.format(0) in own]

    def sizes(self, folder: Path) -> ModelConfig:
        with META:
            stock = self._built(folder)
        if type(stock) is not self.stock:
            raise UsageError(f"is a {type(stock).__name__}, the experiment's models are {self.stock.__name__}")
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return replace(self.read(stock), configuration=json.dumps(stored, sort_keys=True))

    def config_json(self, sizes: ModelConfig) -> dict[str, Any]:
        own: dict[str, Any] = json.loads(sizes.configuration or "{}")
        return {**own, "architecture": self._entry(sizes), "model_args": self._arguments(sizes)}

    def layer_types(self, sizes: ModelConfig) -> tuple[Hashable, ...]:
        return ("layer",) * sizes.layers

    def load(self, folder: Path) -> nn.Module:
        from safetensors.torch import load_file

        stock = self._built(folder)
        stock.load_state_dict(load_file(folder / "model.safetensors"))
        return stock.float().eval()

    def examine(self, folder: Path, dtype: torch.dtype) -> Loaded:
        from safetensors.torch import load_file

        stock, stored = self._built(folder), load_file(folder / "model.safetensors")
        own = stock.state_dict()
        missing, extra = (tuple(sorted(names)) for names in (own.keys() - stored.keys(), stored.keys() - own.keys()))
        fits = {name: value for name, value in stored.items() if name in own and value.shape == own[name].shape}
        wrong = sorted(own.keys() & stored.keys() - fits.keys())
        stock.load_state_dict(fits, strict=False)
        misshapen = tuple(misshapen_tensor(name, stored[name].shape, own[name].shape) for name in wrong)
        return Loaded(stock.to(dtype).eval(), missing, extra, misshapen)

    def state(self, stock: nn.Module) -> dict[str, Tensor]:
        return dict(stock.state_dict())

    def settings(self, model: nn.Module) -> dict[str, float]:
        return {}  # timm builds a model from names and numbers, among which there is no eps

    def change(self, model: nn.Module, settings: Mapping[str, float]) -> None:
        if settings:
            raise UsageError(f"{type(model).__name__} has no setting {min(settings)!r}: timm's configurations cannot hold any")

    def settings_json(self, settings: Mapping[str, float]) -> dict[str, Any]:
        return {}

    def example(self, stock: nn.Module, sequence_length: int) -> tuple[Tensor, Tensor]:
        size: Any = stock.patch_embed.img_size  # type: ignore[union-attr]
        inputs = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return inputs, stock(inputs)

    def _entry(self, sizes: ModelConfig) -> str:
        """The name of the registered model."""
        return str(json.loads(sizes.configuration or "{}").get("architecture", self.entry))

    def _arguments(self, sizes: ModelConfig) -> dict[str, Any]:
        """The arguments that it is built with: those of the checkpoint's configuration, with these sizes in place of its own."""
        return {**json.loads(sizes.configuration or "{}").get("model_args", {}), **self.options(sizes)}

    def _built(self, folder: Path) -> nn.Module:
        import timm

        stock: nn.Module = timm.create_model(f"local-dir:{folder.resolve()}")
        return stock


@cache
def _parameter_names(entry: str, arguments: str) -> frozenset[str]:
    import timm

    with META:
        return frozenset(name for name, _ in timm.create_model(entry, **json.loads(arguments)).named_parameters())
