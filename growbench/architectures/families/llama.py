"""Llama: causal, pre-norm (RMS), rotary positions, SwiGLU, no biases, grouped key-value heads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from growbench.architectures import Architecture, Row, check_rotary, embedding, linear, norm
from growbench.architectures.families.bert import NAMES
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class Llama(LlamaForCausalLM):
    """transformers' Llama that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        for path, module in list(self.named_modules()):
            if isinstance(module, LlamaRMSNorm):  # the same function in one kernel, computed in the weights' own precision
                self.set_submodule(path, nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        base = self.model
        # The layers are called one by one: base.forward would look for padding, which waits for the device.
        hidden = base.embed_tokens(inputs)
        rotations = base.rotary_emb(hidden, torch.arange(inputs.shape[1], device=inputs.device)[None])
        for layer in base.layers:
            hidden = layer(hidden, position_embeddings=rotations)
        hidden = base.norm(hidden).flatten(0, 1)
        return self.lm_head(hidden if positions is None else hidden[positions])


LIBRARY = Transformers(LlamaForCausalLM, {**NAMES, "num_key_value_heads": "kv_heads"}, "rms_norm_eps")


def make(config: ModelConfig) -> Llama:
    check_rotary(config)
    return Llama(
        LlamaConfig(
            **LIBRARY.options(replace(config, kv_heads=config.key_value_heads)),
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def table(config: ModelConfig) -> list[Row]:
    layer = "model.layers.{}"
    rows = [
        embedding("embeddings.token", "model.embed_tokens.weight", Axis.VOCAB),
        *norm("attention.norm", f"{layer}.input_layernorm", bias=False),
        *linear("attention.query", f"{layer}.self_attn.q_proj", Axis.HEADS, Axis.WIDTH, "query", bias=False),
        *linear("attention.key", f"{layer}.self_attn.k_proj", Axis.KV_HEADS, Axis.WIDTH, "key", bias=False),
        *linear("attention.value", f"{layer}.self_attn.v_proj", Axis.KV_HEADS, Axis.WIDTH, "value", bias=False),
        *linear("attention.out", f"{layer}.self_attn.o_proj", Axis.WIDTH, Axis.HEADS, "attention_out", bias=False),
        *norm("ffn.norm", f"{layer}.post_attention_layernorm", bias=False),
        *linear("ffn.gate", f"{layer}.mlp.gate_proj", Axis.FFN, Axis.WIDTH, "ffn_gate", bias=False),
        *linear("ffn.up", f"{layer}.mlp.up_proj", Axis.FFN, Axis.WIDTH, "ffn_up", bias=False),
        *linear("ffn.down", f"{layer}.mlp.down_proj", Axis.WIDTH, Axis.FFN, "ffn_down", bias=False),
        *norm("norm", "model.norm", bias=False, consumes=config.tied),
    ]
    if not config.tied:
        rows.append(Row("head.weight", "lm_head.weight", (Axis.VOCAB, Axis.WIDTH), "head", consumes=True))
    return rows


ARCHITECTURE = Architecture("llama", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False)
