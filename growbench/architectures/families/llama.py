"""Llama: causal, pre-norm (RMS), rotary positions, SwiGLU, grouped key-value heads, biases if the configuration says so."""

from __future__ import annotations

import json

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from growbench.architectures import Architecture, Row, check_rotary, decoder, norm
from growbench.architectures.decoder import (
    NAMES,
    NO_TOKENS,
    attention_rows,
    ffn_rows,
    head_rows,
    in_one_kernel,
    token_row,
)
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig


class Llama(LlamaForCausalLM):
    """transformers' Llama that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        in_one_kernel(self, LlamaRMSNorm)

    forward = decoder.forward


LIBRARY = Transformers(LlamaForCausalLM, NAMES, "rms_norm_eps", rotary=True)


def make(config: ModelConfig) -> Llama:
    check_rotary(config)
    return Llama(LIBRARY.configuration(config, **NO_TOKENS))


def table(config: ModelConfig) -> list[Row]:
    layer, own = "model.layers.{}", json.loads(config.configuration or "{}")
    attention_bias = own.get("attention_bias", False)
    return [
        token_row(),
        *norm("attention.norm", f"{layer}.input_layernorm", bias=False),
        *attention_rows(layer, attention_bias, attention_bias),
        *norm("ffn.norm", f"{layer}.post_attention_layernorm", bias=False),
        *ffn_rows(layer, own.get("mlp_bias", False)),
        *head_rows(config),
    ]


ARCHITECTURE = Architecture("llama", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False)
