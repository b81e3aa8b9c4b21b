"""timm: saving our models as its checkpoints, and loading such checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from growbench.architectures.library import CONFIG, META, AsStored, Loaded, misshapen_tensor, tensors
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Timm(AsStored):
    """An architecture in timm. `entry`: the registered model that equals ours once it is built with `options`.

    `kin`: other modules of timm with models of the same class.
    """

    entry: str
    stock: type[nn.Module]
    options: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Any], ModelConfig]
    kin: tuple[str, ...] = ()
    even_heads: bool = False

    def save(self, model: nn.Module, sizes: ModelConfig, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
        import timm
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        from timm.models import save_for_hf

        options, side = self.options(sizes), sizes.patch * math.isqrt(sizes.positions)
        with META:
            stock = timm.create_model(self.entry, **options)
        stock.load_state_dict(tensors(model), assign=True)
        images = {"input_size": (3, side, side), "interpolation": "bicubic", "crop_pct": 1.0}
        images |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        save_for_hf(stock, str(folder), {"pretrained_cfg": images}, model_args=options, safe_serialization=True)

    def reads(self, config: Mapping[str, Any]) -> bool:
        import timm

        name = str(config.get("architecture"))
        return timm.is_model(name) and timm.model_entrypoint(name).__module__ in (self.stock.__module__, *self.kin)

    def sizes(self, folder: Path) -> ModelConfig:
        with META:
            stock = self._built(folder)
        if type(stock) is not self.stock:
            raise UsageError(f"is a {type(stock).__name__}, the experiment's models are {self.stock.__name__}")
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return replace(self.read(stock), configuration=json.dumps(stored, sort_keys=True))

    def config_json(self, sizes: ModelConfig) -> dict[str, Any]:
        own: dict[str, Any] = json.loads(sizes.configuration or "{}")
        return {"architecture": self.entry, **own, "model_args": {**own.get("model_args", {}), **self.options(sizes)}}

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

    def _built(self, folder: Path) -> nn.Module:
        import timm

        stock: nn.Module = timm.create_model(f"local-dir:{folder.resolve()}")
        return stock
