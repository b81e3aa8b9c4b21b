"""Gemma 3 (text): causal, RMS norms before and behind each branch and of each head's queries and keys, sliding windows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3TextScaledWordEmbedding

from growbench.architectures import Architecture, Row, decoder, norm
from growbench.architectures.decoder import NAMES, attention_rows, ffn_rows, head_norm_rows, head_rows, stated, token_row
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.weights import Axis


class ScaledEmbedding(Gemma3TextScaledWordEmbedding):
    """Multiplies by the root of the width in the weights' own precision."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.Embedding.forward(self, input_ids) * self.scalar_embed_scale


class Gemma3(Gemma3ForCausalLM):
    """transformers' Gemma 3 that maps tokens (B, T) to the logits of the labelled positions.

    Its norms hold the gain, as all norms here do; the library's hold the gain minus 1.
    """

    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__(config)
        for path, module in list(self.named_modules()):
            if isinstance(module, Gemma3RMSNorm):
                self.set_submodule(path, nn.RMSNorm(module.weight.shape, eps=module.eps))  # type: ignore[arg-type]
        self.model.embed_tokens.__class__ = ScaledEmbedding

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        logits, most = decoder.forward(self, inputs, positions), self.config.final_logit_softcapping
        return logits if most is None else torch.tanh(logits / most) * most


class Gemma3Library(Transformers):
    def from_stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.double() + 1 if name.endswith("norm.weight") else tensor

    def to_stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor - 1 if name.endswith("norm.weight") else tensor


LIBRARY = Gemma3Library(Gemma3ForCausalLM, NAMES, "rms_norm_eps", rotary=True, per_layer=("layer_types",))


def make(config: ModelConfig) -> Gemma3:
    if config.width % config.heads:
        raise UsageError(f"width = {config.width}: transformers' Gemma 3 wants a multiple of heads = {config.heads}")
    if stated(config, "use_bidirectional_attention"):
        raise UsageError("use_bidirectional_attention = true: gemma3 is causal here")
    usual = {} if config.configuration else {"query_pre_attn_scalar": config.head_size}
    return decoder.built(Gemma3, LIBRARY, config, **usual)  # type: ignore[no-any-return]


def table(config: ModelConfig) -> list[Row]:
    """The embedding is multiplied by the root of the width; as a tied decoder it is not, which the last norm makes up for."""
    layer = "model.layers.{}"
    bias = bool(stated(config, "attention_bias"))
    last, *head = head_rows(config)
    return [
        replace(token_row(), width_power=0.5),
        *norm("attention.norm", f"{layer}.input_layernorm", bias=False),
        *attention_rows(layer, bias, bias),
        *head_norm_rows(layer, Axis.HEAD_SIZE, Axis.HEAD_SIZE),
        *norm("attention.post_norm", f"{layer}.post_attention_layernorm", bias=False),
        *norm("ffn.norm", f"{layer}.pre_feedforward_layernorm", bias=False),
        *ffn_rows(layer),
        *norm("ffn.post_norm", f"{layer}.post_feedforward_layernorm", bias=False),
        replace(last, width_power=-0.5 if config.tied else 0.0),
        *head,
    ]


ARCHITECTURE = Architecture(
    "gemma3", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
