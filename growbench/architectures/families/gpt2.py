"""GPT-2: causal, pre-norm, learned positions, Conv1D weights (in, out), fused query-key-value."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from growbench.architectures import Architecture, Row, embedding, fused, linear, norm
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class GPT2(GPT2LMHeadModel):
    """transformers' GPT-2 that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        for block in self.transformer.h:
            if config.activation_function == "gelu_new":
                block.mlp.act = nn.GELU(approximate="tanh")  # type: ignore[union-attr]  # the same in one kernel

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        base = self.transformer
        # The blocks are called one by one: base.forward would look for padding, which waits for the device.
        hidden = base.drop(base.wte(inputs) + base.wpe(torch.arange(inputs.shape[1], device=inputs.device)))
        for block in base.h:
            hidden = block(hidden)
        hidden = base.ln_f(hidden).flatten(0, 1)
        return self.lm_head(hidden if positions is None else hidden[positions])


NAMES = {
    "n_layer": "layers", "n_embd": "width", "n_head": "heads", "n_inner": "ffn",
    "vocab_size": "vocabulary", "n_positions": "positions", "tie_word_embeddings": "tied",
}  # fmt: skip
LIBRARY = Transformers(GPT2LMHeadModel, NAMES, "layer_norm_epsilon")


def make(config: ModelConfig) -> GPT2:
    return GPT2(
        LIBRARY.configuration(
            config,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            resid_pdrop=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def conv1d(name: str, native: str, out: Axis, into: Axis, role: str) -> list[Row]:
    """A linear layer whose weight is stored as (in, out)."""
    weight, bias = linear(name, native, out, into, role)
    return [replace(weight, transposed=True), bias]


def table(config: ModelConfig) -> list[Row]:
    block = "transformer.h.{}"
    query_key_value = f"{block}.attn.c_attn"
    rows = [
        embedding("embeddings.token", "transformer.wte.weight", Axis.VOCAB),
        embedding("embeddings.position", "transformer.wpe.weight", Axis.POSITION),
        *norm("attention.norm", f"{block}.ln_1"),
        *fused(
            conv1d("attention.query", query_key_value, Axis.HEADS, Axis.WIDTH, "query"),
            conv1d("attention.key", query_key_value, Axis.HEADS, Axis.WIDTH, "key"),
            conv1d("attention.value", query_key_value, Axis.HEADS, Axis.WIDTH, "value"),
        ),
        *conv1d("attention.out", f"{block}.attn.c_proj", Axis.WIDTH, Axis.HEADS, "attention_out"),
        *norm("ffn.norm", f"{block}.ln_2"),
        *conv1d("ffn.up", f"{block}.mlp.c_fc", Axis.FFN, Axis.WIDTH, "ffn_up"),
        *conv1d("ffn.down", f"{block}.mlp.c_proj", Axis.WIDTH, Axis.FFN, "ffn_down"),
        *norm("norm", "transformer.ln_f", consumes=config.tied),
    ]
    if not config.tied:
        rows.append(Row("head.weight", "lm_head.weight", (Axis.VOCAB, Axis.WIDTH), "head", consumes=True))
    return rows


ARCHITECTURE = Architecture("gpt2", "causal", "bytes", "pre", make, table, ("dropout", "tied"), LIBRARY)
