"""Llama 2 and 3, SmolLM2: pre-norm (RMS), rotary positions, SwiGLU, grouped heads, biases if the configuration says so."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from growbench.architectures import Architecture, Row, decoder
from growbench.architectures.decoder import LAYER, attention_rows, ffn_rows, in_one_kernel, pre_norm_rows, stated
from growbench.config.schema import ModelConfig


class Llama(LlamaForCausalLM):
    """transformers' Llama that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        in_one_kernel(self, LlamaRMSNorm)

    forward = decoder.forward


LIBRARY = decoder.library(LlamaForCausalLM)


def make(config: ModelConfig) -> Llama:
    return decoder.built(Llama, LIBRARY, config)  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    bias = stated(config, "attention_bias")
    return pre_norm_rows(config, attention_rows(LAYER, bias, bias), ffn_rows(LAYER, stated(config, "mlp_bias")))


ARCHITECTURE = Architecture("llama", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False)
