"""ModernBERT: masked, pre-norm, rotary positions, GeGLU, no biases, two layers of local attention after each global one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM

from growbench.architectures import Architecture, Row, check_rotary, embedding, fused, linear, norm
from growbench.architectures.families.bert import NAMES
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class ModernBert(ModernBertForMaskedLM):
    """transformers' ModernBERT, from tokens (B, T) straight to the logits of the scored positions."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        trunk, length, reach = self.model, inputs.shape[1], self.config.sliding_window
        places = torch.arange(length, device=inputs.device)
        # block by block: the trunk's own forward builds masks for padding, and waits for the device to look at them
        near = (places[:, None] - places).abs() <= reach if length > reach + 1 else None
        masks = {"full_attention": None, "sliding_attention": near}
        hidden = trunk.embeddings(inputs)
        turns = {kind: trunk.rotary_emb(hidden, places[None], kind) for kind in trunk.rotary_emb.layer_types}
        for layer in trunk.layers:
            kind = layer.attention_type
            hidden = layer(hidden, attention_mask=masks[kind], position_embeddings=turns[kind])
        hidden = trunk.final_norm(hidden).flatten(0, 1)
        return self.decoder(self.head(hidden if positions is None else hidden[positions]))


LIBRARY = Transformers(ModernBertForMaskedLM, NAMES)


def make(config: ModelConfig) -> ModernBert:
    check_rotary(config)
    return ModernBert(
        ModernBertConfig(
            **LIBRARY.settings(config),
            embedding_dropout=config.dropout,
            attention_dropout=config.dropout,
            mlp_dropout=config.dropout,
            pad_token_id=None,  # every block is full, so that no embedding row is pinned to zero
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )
    )


def table(config: ModelConfig) -> list[Row]:
    layer = "model.layers.{}"
    # A tied decoder reads the embedding's columns, so the head's transform writes the residual axis.
    head = Axis.WIDTH if config.tied else Axis.HEAD_TRANSFORM
    attention, gated = f"{layer}.attn.Wqkv", f"{layer}.mlp.Wi"
    # Layer 0 has no norm before its attention: the embeddings' norm does its work, and goes with a copy of the layer upwards.
    attention_norm = norm("attention.norm", f"{layer}.attn_norm", bias=False)
    rows = [
        embedding("embeddings.token", "model.embeddings.tok_embeddings.weight", Axis.VOCAB),
        *norm("embeddings.norm", "model.embeddings.norm", bias=False),
        *(replace(row, first="model.embeddings.norm.weight") for row in attention_norm),
        *fused(
            linear("attention.query", attention, Axis.HEADS, Axis.WIDTH, "query", bias=False),
            linear("attention.key", attention, Axis.HEADS, Axis.WIDTH, "key", bias=False),
            linear("attention.value", attention, Axis.HEADS, Axis.WIDTH, "value", bias=False),
        ),
        *linear("attention.out", f"{layer}.attn.Wo", Axis.WIDTH, Axis.HEADS, "attention_out", bias=False),
        *norm("ffn.norm", f"{layer}.mlp_norm", bias=False),
        *fused(
            linear("ffn.gate", gated, Axis.FFN, Axis.WIDTH, "ffn_gate", bias=False),
            linear("ffn.up", gated, Axis.FFN, Axis.WIDTH, "ffn_up", bias=False),
        ),
        *linear("ffn.down", f"{layer}.mlp.Wo", Axis.WIDTH, Axis.FFN, "ffn_down", bias=False),
        *norm("norm", "model.final_norm", bias=False),
        *linear("head.transform", "head.dense", head, Axis.WIDTH, "head_transform", bias=False),
        *norm("head.norm", "head.norm", head, bias=False, consumes=config.tied),
        Row("head.bias", "decoder.bias", (Axis.VOCAB,), "head"),
    ]
    if not config.tied:
        rows.append(Row("head.weight", "decoder.weight", (Axis.VOCAB, head), "head", consumes=True))
    return rows


ARCHITECTURE = Architecture("modernbert", "masked", "wordpiece", "pre", make, table, ("dropout", "tied"), LIBRARY)
