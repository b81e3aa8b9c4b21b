"""Mistral: Llama's layers without biases; each sees a window of the last tokens if the configuration has one."""

from __future__ import annotations

from transformers import MistralConfig, MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from growbench.architectures import Architecture, Row, decoder
from growbench.architectures.decoder import LAYER, attention_rows, ffn_rows, in_one_kernel, pre_norm_rows
from growbench.config.schema import ModelConfig


class Mistral(MistralForCausalLM):
    """transformers' Mistral that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        in_one_kernel(self, MistralRMSNorm)

    forward = decoder.forward


LIBRARY = decoder.library(MistralForCausalLM)


def make(config: ModelConfig) -> Mistral:
    return decoder.built(Mistral, LIBRARY, config)  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    return pre_norm_rows(config, attention_rows(LAYER), ffn_rows(LAYER))


ARCHITECTURE = Architecture(
    "mistral", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
