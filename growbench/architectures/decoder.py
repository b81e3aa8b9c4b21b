"""What causal models of transformers with rotary positions have in common, whatever their layers are."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from growbench.architectures import Row, check_rotary, embedding, linear, norm
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.weights import Axis

NAMES = {
    "num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads", "intermediate_size": "ffn",
    "num_key_value_heads": "kv_heads", "head_dim": "head_dim",
    "vocab_size": "vocabulary", "max_position_embeddings": "positions", "tie_word_embeddings": "tied",
}  # fmt: skip
LAYER = "model.layers.{}"  # the name of a layer
DYNAMIC = "dynamic"  # the type of rotary positions that depend on the length of the longest sequence so far
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of types of layers
NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}  # no block is padded, so no embedding row is fixed


def stated(sizes: ModelConfig, key: str) -> Any:
    """What the configuration of a checkpoint states under a key; None if there is none."""
    return json.loads(sizes.configuration or "{}").get(key)


def library(stock: Any, *per_layer: str) -> Transformers:
    """A class of transformers whose configuration has Llama's names. `per_layer`: as in Transformers."""
    return Transformers(stock, NAMES, "rms_norm_eps", rotary=True, per_layer=per_layer)


def built(kind: type[nn.Module], library: Transformers, sizes: ModelConfig, **usual: Any) -> Any:
    """A model of class `kind`. `usual`: as in Transformers.configuration. Raises UsageError for an odd head size."""
    check_rotary(sizes)
    model: Any = kind(library.configuration(sizes, **NO_TOKENS, **usual))
    rotary = model.model.rotary_emb
    if isinstance(rotary.rope_type, dict):  # by type of layer
        rotary.rope_type = {layer: _without_questions(each) for layer, each in rotary.rope_type.items()}
    else:
        rotary.rope_type = _without_questions(rotary.rope_type)
    return model


def _without_questions(rope_type: str) -> str:
    """Type dynamic is the default one within its positions, but asks the device how long the longest sequence was."""
    return "default" if rope_type == DYNAMIC else rope_type


def _is_dynamic(config: Any) -> bool:
    """Whether any rotary positions of a configuration, which may be of each type of layer, are of type dynamic."""
    found = config.rope_parameters
    return any(each.get("rope_type") == DYNAMIC for each in ([found] if "rope_type" in found else found.values()))


def forward(self: Any, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
    """The forward of growbench's causal models: maps tokens (B, T) to the logits of the labelled positions."""
    hidden = hidden_states(self.model, inputs).flatten(0, 1)
    return self.lm_head(hidden if positions is None else hidden[positions])  # type: ignore[no-any-return]


def hidden_states(base: Any, inputs: Tensor) -> Tensor:
    """(B, T, width) behind the last norm. `base`: transformers' model without its head.

    The layers are called one by one: base.forward would look for padding, which waits for the device.
    Raises UsageError for a sequence whose rotary positions depend on the sequences before it.
    """
    config, length = base.config, inputs.shape[1]
    if length > config.max_position_embeddings and _is_dynamic(config):
        most = f"max_position_embeddings = {config.max_position_embeddings}"
        raise UsageError(f"a sequence of {length} tokens: rotary positions of type {DYNAMIC!r} are known up to {most}")
    places = torch.arange(length, device=inputs.device)
    masks = {FULL: None, SLIDING: None}  # None: the attention's own causal mask
    # Only what its class knows counts: a configuration may state more than the class uses.
    window = config.sliding_window if hasattr(type(config), "sliding_window") else None
    if window and length > window:
        distance = places[:, None] - places
        masks[SLIDING] = ((distance >= 0) & (distance < window))[None, None]
    # A class without types of layers has one kind of attention, with a window if its configuration has one.
    types = config.layer_types if hasattr(type(config), "layer_types") else [SLIDING] * len(base.layers)
    hidden = base.embed_tokens(inputs)
    rotary = base.rotary_emb
    kinds = {kind: (kind,) for kind in set(types)} if hasattr(rotary, "layer_types") else dict.fromkeys(types, ())
    rotations = {kind: rotary(hidden, places[None], *extra) for kind, extra in kinds.items()}
    for layer, kind in zip(base.layers, types, strict=False):
        hidden = layer(hidden, attention_mask=masks[kind], position_embeddings=rotations[kind])
    return base.norm(hidden)  # type: ignore[no-any-return]


def in_one_kernel(model: nn.Module, kind: type[nn.Module]) -> None:
    """Replace norms of this class by torch's RMSNorm: the same function in one kernel, in the weights' own precision."""
    for path, module in list(model.named_modules()):
        if isinstance(module, kind):
            weight: Any = module.weight
            model.set_submodule(path, nn.RMSNorm(weight.shape, eps=module.variance_epsilon))  # type: ignore[arg-type]


def pre_norm_rows(sizes: ModelConfig, attention: list[Row], ffn: list[Row]) -> list[Row]:
    """A model whose norms come before attention and FFN."""
    return [
        token_row(),
        *norm("attention.norm", f"{LAYER}.input_layernorm", bias=False),
        *attention,
        *norm("ffn.norm", f"{LAYER}.post_attention_layernorm", bias=False),
        *ffn,
        *head_rows(sizes),
    ]


def attention_rows(layer: str, bias: bool = False, out_bias: bool = False) -> list[Row]:
    """Query, key, value and output of attention. `layer`: the name of a layer, with {} for its number."""
    attention = f"{layer}.self_attn"
    return [
        *linear("attention.query", f"{attention}.q_proj", Axis.HEADS, Axis.WIDTH, "query", bias),
        *linear("attention.key", f"{attention}.k_proj", Axis.KV_HEADS, Axis.WIDTH, "key", bias),
        *linear("attention.value", f"{attention}.v_proj", Axis.KV_HEADS, Axis.WIDTH, "value", bias),
        *linear("attention.out", f"{attention}.o_proj", Axis.WIDTH, Axis.HEADS, "attention_out", out_bias),
    ]


def head_norm_rows(layer: str, query: Axis, key: Axis) -> list[Row]:
    """The norms of queries and keys, over these axes: all heads together, or each head by itself (HEAD_SIZE)."""
    return [
        *norm("attention.query_norm", f"{layer}.self_attn.q_norm", query, bias=False),
        *norm("attention.key_norm", f"{layer}.self_attn.k_norm", key, bias=False),
    ]


def ffn_rows(layer: str, bias: bool = False) -> list[Row]:
    """The gated FFN."""
    return [
        *linear("ffn.gate", f"{layer}.mlp.gate_proj", Axis.FFN, Axis.WIDTH, "ffn_gate", bias),
        *linear("ffn.up", f"{layer}.mlp.up_proj", Axis.FFN, Axis.WIDTH, "ffn_up", bias),
        *linear("ffn.down", f"{layer}.mlp.down_proj", Axis.WIDTH, Axis.FFN, "ffn_down", bias),
    ]


def token_row() -> Row:
    return embedding("embeddings.token", "model.embed_tokens.weight", Axis.VOCAB)


def head_rows(config: ModelConfig) -> list[Row]:
    """The last norm, and the head if it is not the embedding."""
    rows = norm("norm", "model.norm", bias=False, consumes=config.tied)
    return rows if config.tied else [*rows, Row("head.weight", "lm_head.weight", (Axis.VOCAB, Axis.WIDTH), "head", consumes=True)]
