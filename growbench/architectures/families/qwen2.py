"""Qwen 2 and 2.5: Llama's layers with biases of queries, keys and values, and windows in some layers if it has them."""

from __future__ import annotations

from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from growbench.architectures import Architecture, Row, decoder
from growbench.architectures.decoder import LAYER, attention_rows, ffn_rows, in_one_kernel, pre_norm_rows
from growbench.config.schema import ModelConfig


class Qwen2(Qwen2ForCausalLM):
    """transformers' Qwen2 that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        in_one_kernel(self, Qwen2RMSNorm)

    forward = decoder.forward


LIBRARY = decoder.library(Qwen2ForCausalLM, "layer_types")


def make(config: ModelConfig) -> Qwen2:
    return decoder.built(Qwen2, LIBRARY, config)  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    return pre_norm_rows(config, attention_rows(LAYER, bias=True), ffn_rows(LAYER))


ARCHITECTURE = Architecture(
    "qwen2", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
