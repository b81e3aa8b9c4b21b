"""ModernBERT: masked, pre-norm, rotary positions, GeGLU, no biases, two layers of local attention after each global one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import ModernBertForMaskedLM

from growbench.architectures import Architecture, Row, check_rotary, embedding, fused, linear, norm
from growbench.architectures.families.bert import NAMES
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class ModernBert(ModernBertForMaskedLM):
    """transformers' ModernBERT that maps tokens (B, T) to the logits of the labelled positions."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        base, sequence_length, window = self.model, inputs.shape[1], self.config.sliding_window
        places = torch.arange(sequence_length, device=inputs.device)
        # The layers are called one by one: base.forward would look for padding, which waits for the device.
        near = (places[:, None] - places).abs() <= window if sequence_length > window + 1 else None
        masks = {"full_attention": None, "sliding_attention": near}
        hidden = base.embeddings(inputs)
        rotations = {kind: base.rotary_emb(hidden, places[None], kind) for kind in base.rotary_emb.layer_types}
        for layer in base.layers:
            kind = layer.attention_type
            hidden = layer(hidden, attention_mask=masks[kind], position_embeddings=rotations[kind])
        hidden = base.final_norm(hidden).flatten(0, 1)
        return self.decoder(self.head(hidden if positions is None else hidden[positions]))


LIBRARY = Transformers(ModernBertForMaskedLM, NAMES, "norm_eps", rotary=True, per_layer=("layer_types",))


def make(config: ModelConfig) -> ModernBert:
    check_rotary(config)
    model = ModernBert(
        LIBRARY.configuration(
            replace(config, layers=max(1, config.layers)),  # transformers' configuration needs one
            embedding_dropout=config.dropout,
            attention_dropout=config.dropout,
            mlp_dropout=config.dropout,
            pad_token_id=None,  # no block is padded, so no embedding row is fixed at zero
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )
    )
    model.model.layers = model.model.layers[: config.layers]
    return model


def table(config: ModelConfig) -> list[Row]:
    layer = "model.layers.{}"
    # A tied decoder is the embedding matrix, so the head's transform writes to the residual axis.
    head = Axis.WIDTH if config.tied else Axis.HEAD_TRANSFORM
    query_key_value, gate_up = f"{layer}.attn.Wqkv", f"{layer}.mlp.Wi"
    # Layer 0 has no attention norm: the embeddings' norm is read in its place, so that copies of layer 0 get one.
    (attention_norm,) = norm("attention.norm", f"{layer}.attn_norm", bias=False)
    rows = [
        embedding("embeddings.token", "model.embeddings.tok_embeddings.weight", Axis.VOCAB),
        *norm("embeddings.norm", "model.embeddings.norm", bias=False),
        replace(attention_norm, first="model.embeddings.norm.weight"),
        *fused(
            linear("attention.query", query_key_value, Axis.HEADS, Axis.WIDTH, "query", bias=False),
            linear("attention.key", query_key_value, Axis.HEADS, Axis.WIDTH, "key", bias=False),
            linear("attention.value", query_key_value, Axis.HEADS, Axis.WIDTH, "value", bias=False),
        ),
        *linear("attention.out", f"{layer}.attn.Wo", Axis.WIDTH, Axis.HEADS, "attention_out", bias=False),
        *norm("ffn.norm", f"{layer}.mlp_norm", bias=False),
        *fused(
            linear("ffn.gate", gate_up, Axis.FFN, Axis.WIDTH, "ffn_gate", bias=False),
            linear("ffn.up", gate_up, Axis.FFN, Axis.WIDTH, "ffn_up", bias=False),
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
