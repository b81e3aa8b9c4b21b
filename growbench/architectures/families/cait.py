"""CaiT: image patches, talking heads, LayerScale, pre-norm. Layers of class attention follow, whose number does not grow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.models.cait import Cait as TimmCait
from torch import Tensor

from growbench.architectures import Architecture, Row, linear, norm
from growbench.architectures.families.vit import block_rows, embedding_rows, timm_dropout, timm_sizes
from growbench.architectures.families.vit import read as read_vit
from growbench.architectures.timm_library import Timm
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class Cait(TimmCait):
    """timm's CaiT. `positions` is used by text models only."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        logits: Tensor = super().forward(inputs)
        return logits


def make(config: ModelConfig) -> Cait:
    return Cait(
        **options(config),
        **timm_dropout(config),
        # LayerScale's initial value by depth, as in the CaiT paper
        init_values=0.1 if config.layers <= 18 else 1e-5 if config.layers <= 24 else 1e-6,
    )


def options(config: ModelConfig) -> dict[str, Any]:
    """Sizes as keyword arguments of timm's CaiT."""
    common = timm_sizes(config)
    return {**common, "depth_token_only": config.class_layers, "mlp_ratio_token_only": common["mlp_ratio"]}


def read(model: Any) -> ModelConfig:
    """The sizes of a timm model."""
    return replace(read_vit(model), class_layers=len(model.blocks_token_only))


def table(config: ModelConfig) -> list[Row]:
    rows = [
        *embedding_rows(),
        *block_rows(),
        *linear("attention.talk_before", "blocks.{}.attn.proj_l", Axis.HEAD_COUNT, Axis.HEAD_COUNT, "talking_heads"),
        *linear("attention.talk_after", "blocks.{}.attn.proj_w", Axis.HEAD_COUNT, Axis.HEAD_COUNT, "talking_heads"),
        Row("attention.scale", "blocks.{}.gamma_1", (Axis.WIDTH,), "layer_scale"),
        Row("ffn.scale", "blocks.{}.gamma_2", (Axis.WIDTH,), "layer_scale"),
        *class_rows(),
        *norm("norm", "norm"),
        *linear("head", "head", Axis.VOCAB, Axis.WIDTH, "head"),
    ]
    return LIBRARY.present(rows, config)


def class_rows() -> list[Row]:
    """The layers of class attention. They have roles of their own, so that a learned operator can tell them from the others."""
    top = "blocks_token_only.{}"
    rows = [
        *norm("attention.norm", f"{top}.norm1"),
        *linear("attention.query", f"{top}.attn.q", Axis.HEADS, Axis.WIDTH, "class_query"),
        *linear("attention.key", f"{top}.attn.k", Axis.HEADS, Axis.WIDTH, "class_key"),
        *linear("attention.value", f"{top}.attn.v", Axis.HEADS, Axis.WIDTH, "class_value"),
        *linear("attention.out", f"{top}.attn.proj", Axis.WIDTH, Axis.HEADS, "class_attention_out"),
        Row("attention.scale", f"{top}.gamma_1", (Axis.WIDTH,), "layer_scale"),
        *norm("ffn.norm", f"{top}.norm2"),
        *linear("ffn.up", f"{top}.mlp.fc1", Axis.FFN, Axis.WIDTH, "class_ffn_up"),
        *linear("ffn.down", f"{top}.mlp.fc2", Axis.WIDTH, Axis.FFN, "class_ffn_down"),
        Row("ffn.scale", f"{top}.gamma_2", (Axis.WIDTH,), "layer_scale"),
    ]
    return [replace(row, group="class_layers") for row in rows]


LIBRARY = Timm("cait_s24_224", TimmCait, options, read)
ARCHITECTURE = Architecture("cait", "classes", None, "pre", make, table, ("class_layers", "dropout", "drop_path"), LIBRARY)
