"""SmolLM3: Llama's layers, of which every fourth has no rotary positions."""

from __future__ import annotations

from transformers import SmolLM3Config, SmolLM3ForCausalLM
from transformers.models.smollm3.modeling_smollm3 import SmolLM3RMSNorm

from growbench.architectures import Architecture, Row, decoder
from growbench.architectures.decoder import LAYER, attention_rows, ffn_rows, in_one_kernel, pre_norm_rows, stated
from growbench.config.schema import ModelConfig


class SmolLM3(SmolLM3ForCausalLM):
    """transformers' SmolLM3 that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        in_one_kernel(self, SmolLM3RMSNorm)

    forward = decoder.forward


LIBRARY = decoder.library(SmolLM3ForCausalLM, "layer_types", "no_rope_layers")


def make(config: ModelConfig) -> SmolLM3:
    return decoder.built(SmolLM3, LIBRARY, config)  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    bias = stated(config, "attention_bias")
    return pre_norm_rows(config, attention_rows(LAYER, bias, bias), ffn_rows(LAYER, stated(config, "mlp_bias")))


ARCHITECTURE = Architecture(
    "smollm3", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
