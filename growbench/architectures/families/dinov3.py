"""DINOv3: a ViT with rotary positions, register tokens and layer scale. Some have a gated FFN, or more biases."""

from __future__ import annotations

from timm.models.eva import Eva
from torch import Tensor

from growbench.architectures import Architecture, Row, linear
from growbench.architectures.families.vit import block_rows, embedding_rows, last_rows, read, timm_dropout, timm_sizes
from growbench.architectures.timm_library import Timm
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.weights import Axis


class DINOv3(Eva):
    """timm's DINOv3. `positions` is used by text models only."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        logits: Tensor = super().forward(inputs)
        return logits


def make(config: ModelConfig) -> DINOv3:
    if config.head_size % 4:
        raise UsageError(f"width / heads = {config.head_size}: rotary positions of images need a multiple of 4")
    return LIBRARY.build(DINOv3, config, **timm_dropout(config))  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    block = "blocks.{}"
    rows = [
        *embedding_rows(),
        *block_rows(),
        Row("attention.query.bias", f"{block}.attn.q_bias", (Axis.HEADS,), "query"),
        Row("attention.value.bias", f"{block}.attn.v_bias", (Axis.HEADS,), "value"),
        Row("attention.scale", f"{block}.gamma_1", (Axis.WIDTH,), "layer_scale"),
        *linear("ffn.gate", f"{block}.mlp.fc1_g", Axis.FFN, Axis.WIDTH, "ffn_gate"),
        *linear("ffn.up", f"{block}.mlp.fc1_x", Axis.FFN, Axis.WIDTH, "ffn_up"),
        Row("ffn.scale", f"{block}.gamma_2", (Axis.WIDTH,), "layer_scale"),
        *last_rows(),
    ]
    return LIBRARY.present(rows, config)


LIBRARY = Timm("vit_small_patch16_dinov3", Eva, timm_sizes, read, named="dinov3")
ARCHITECTURE = Architecture("dinov3", "classes", None, "pre", make, table, ("dropout", "drop_path"), LIBRARY, kin="vit")
