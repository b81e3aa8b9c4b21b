"""Qwen3: Llama's layers, with a norm of each head's queries and keys, and windows in some layers if it has them."""

from __future__ import annotations

from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from growbench.architectures import Architecture, Row, decoder
from growbench.architectures.decoder import LAYER, attention_rows, ffn_rows, head_norm_rows, in_one_kernel, pre_norm_rows, stated
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class Qwen3(Qwen3ForCausalLM):
    """transformers' Qwen3 that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        in_one_kernel(self, Qwen3RMSNorm)

    forward = decoder.forward


LIBRARY = decoder.library(Qwen3ForCausalLM, "layer_types")


def make(config: ModelConfig) -> Qwen3:
    return decoder.built(Qwen3, LIBRARY, config)  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    bias = stated(config, "attention_bias")
    norms = head_norm_rows(LAYER, Axis.HEAD_SIZE, Axis.HEAD_SIZE)
    return pre_norm_rows(config, [*attention_rows(LAYER, bias, bias), *norms], ffn_rows(LAYER))


ARCHITECTURE = Architecture(
    "qwen3", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
