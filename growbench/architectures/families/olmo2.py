"""OLMo 2: causal, RMS norms of what a branch writes (none of what it reads), norms of queries and keys over all heads."""

from __future__ import annotations

from transformers import Olmo2Config, Olmo2ForCausalLM
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from growbench.architectures import Architecture, Row, decoder, norm
from growbench.architectures.decoder import (
    LAYER,
    NAMES,
    attention_rows,
    ffn_rows,
    head_norm_rows,
    head_rows,
    in_one_kernel,
    stated,
    token_row,
)
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class Olmo2(Olmo2ForCausalLM):
    """transformers' OLMo 2 that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: Olmo2Config) -> None:
        super().__init__(config)
        in_one_kernel(self, Olmo2RMSNorm)

    forward = decoder.forward


LIBRARY = Transformers(Olmo2ForCausalLM, NAMES, "rms_norm_eps", rotary=True, even_heads=True)


def make(config: ModelConfig) -> Olmo2:
    return decoder.built(Olmo2, LIBRARY, config)  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    """Of OLMo 2 and OLMo 3."""
    bias = stated(config, "attention_bias")
    return [
        token_row(),
        *attention_rows(LAYER, bias, bias),
        *head_norm_rows(LAYER, Axis.HEADS, Axis.KV_HEADS),
        *norm("attention.post_norm", f"{LAYER}.post_attention_layernorm", bias=False),
        *ffn_rows(LAYER),
        *norm("ffn.post_norm", f"{LAYER}.post_feedforward_layernorm", bias=False),
        *head_rows(config),
    ]


ARCHITECTURE = Architecture(
    "olmo2", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
