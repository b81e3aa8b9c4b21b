"""Qwen3: Llama's layers, with a norm of each head's queries and keys, a head size of its own, and windows if it has them."""

from __future__ import annotations

import json

from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

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
from growbench.growth.weights import Axis


class Qwen3(Qwen3ForCausalLM):
    """transformers' Qwen3 that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        in_one_kernel(self, Qwen3RMSNorm)

    forward = decoder.forward


LIBRARY = Transformers(Qwen3ForCausalLM, NAMES, "rms_norm_eps", rotary=True, per_layer=("layer_types",))


def make(config: ModelConfig) -> Qwen3:
    check_rotary(config)
    return Qwen3(LIBRARY.configuration(config, **NO_TOKENS))


def table(config: ModelConfig) -> list[Row]:
    layer = "model.layers.{}"
    bias = json.loads(config.configuration or "{}").get("attention_bias", False)
    return [
        token_row(),
        *norm("attention.norm", f"{layer}.input_layernorm", bias=False),
        *attention_rows(layer, bias, bias),
        *norm("attention.query_norm", f"{layer}.self_attn.q_norm", Axis.HEAD_SIZE, bias=False),
        *norm("attention.key_norm", f"{layer}.self_attn.k_norm", Axis.HEAD_SIZE, bias=False),
        *norm("ffn.norm", f"{layer}.post_attention_layernorm", bias=False),
        *ffn_rows(layer),
        *head_rows(config),
    ]


ARCHITECTURE = Architecture(
    "qwen3", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
