"""ViT, as DeiT trains it: image patches, a class token, learned positions, pre-norm, fused query-key-value.

Checkpoints may have more: layer scale (DeiT III, DINOv2), register tokens (DINOv2), a norm before the layers (CLIP).
"""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from growbench.architectures import Architecture, Row, embedding, fused, linear, norm
from growbench.architectures.timm_library import Timm
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class ViT(VisionTransformer):
    """timm's vision transformer. `positions` is used by text models only."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        logits: Tensor = super().forward(inputs)
        return logits


def make(config: ModelConfig) -> ViT:
    return LIBRARY.build(ViT, config, **timm_dropout(config))  # type: ignore[no-any-return]


def timm_sizes(config: ModelConfig) -> dict[str, Any]:
    """Sizes as keyword arguments of timm's vision transformers."""
    return {
        "img_size": config.patch * round(config.positions**0.5),
        "patch_size": config.patch,
        "num_classes": config.vocabulary,
        "depth": config.layers,
        "embed_dim": config.width,
        "num_heads": config.heads,
        "mlp_ratio": (config.ffn + 0.5) / config.width,  # timm rounds width x ratio down
    }


def timm_dropout(config: ModelConfig) -> dict[str, Any]:
    return {
        "pos_drop_rate": config.dropout,
        "proj_drop_rate": config.dropout,
        "attn_drop_rate": config.dropout,
        "drop_path_rate": config.drop_path,
    }


def read(model: Any) -> ModelConfig:
    """The sizes of a timm model."""
    block, patches = model.blocks[0], model.patch_embed
    return ModelConfig(
        layers=len(model.blocks),
        width=model.embed_dim,
        heads=block.attn.num_heads,
        ffn=block.mlp.fc2.in_features,
        vocabulary=model.num_classes,
        positions=patches.num_patches,
        patch=patches.patch_size[0],
    )


def table(config: ModelConfig) -> list[Row]:
    rows = [
        *embedding_rows(),
        *norm("embeddings.norm", "norm_pre"),
        *block_rows(),
        Row("attention.scale", "blocks.{}.ls1.gamma", (Axis.WIDTH,), "layer_scale"),
        Row("ffn.scale", "blocks.{}.ls2.gamma", (Axis.WIDTH,), "layer_scale"),
        *last_rows(),
    ]
    return LIBRARY.present(rows, config)


def last_rows() -> list[Row]:
    """Behind the layers: a norm before the pool or behind it, and the classifier."""
    return [
        *norm("norm", "norm"),
        *norm("pool.norm", "fc_norm"),
        *linear("head", "head", Axis.VOCAB, Axis.WIDTH, "head"),
    ]


def embedding_rows() -> list[Row]:
    """Patches, class token, positions, and what may stand beside them: register tokens."""
    return [
        Row("embeddings.patch.weight", "patch_embed.proj.weight", (Axis.WIDTH, *[Axis.PATCH] * 3), "embedding"),
        Row("embeddings.patch.bias", "patch_embed.proj.bias", (Axis.WIDTH,), "embedding"),
        embedding("embeddings.class", "cls_token", Axis.SINGLE, Axis.SINGLE),
        embedding("embeddings.position", "pos_embed", Axis.SINGLE, Axis.POSITION),
        embedding("embeddings.register", "reg_token", Axis.SINGLE, Axis.REGISTER),
    ]


def block_rows() -> list[Row]:
    """The growing layers."""
    block, query_key_value = "blocks.{}", "blocks.{}.attn.qkv"
    return [
        *norm("attention.norm", f"{block}.norm1"),
        *fused(
            linear("attention.query", query_key_value, Axis.HEADS, Axis.WIDTH, "query"),
            linear("attention.key", query_key_value, Axis.HEADS, Axis.WIDTH, "key"),
            linear("attention.value", query_key_value, Axis.HEADS, Axis.WIDTH, "value"),
        ),
        *linear("attention.out", f"{block}.attn.proj", Axis.WIDTH, Axis.HEADS, "attention_out"),
        *norm("ffn.norm", f"{block}.norm2"),
        *linear("ffn.up", f"{block}.mlp.fc1", Axis.FFN, Axis.WIDTH, "ffn_up"),
        *linear("ffn.down", f"{block}.mlp.fc2", Axis.WIDTH, Axis.FFN, "ffn_down"),
    ]


LIBRARY = Timm("vit_base_patch16_224", VisionTransformer, timm_sizes, read, kin=("timm.models.deit",))
ARCHITECTURE = Architecture("vit", "classes", None, "pre", make, table, ("dropout", "drop_path"), LIBRARY)
