"""RoBERTa: masked, post-norm like BERT, byte-level tokens, learned positions that begin at 2, one token type."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM

from growbench.architectures import Architecture, Row
from growbench.architectures.bert import encoder_rows
from growbench.config import ModelConfig

FIRST_POSITION = 2  # transformers keeps the first two rows for padding


class Roberta(RobertaForMaskedLM):
    """transformers' RoBERTa, from tokens (B, T) straight to the logits of the scored positions."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        places = torch.arange(FIRST_POSITION, FIRST_POSITION + inputs.shape[1], device=inputs.device)
        hidden = self.roberta(inputs, position_ids=places[None]).last_hidden_state.flatten(0, 1)
        return self.lm_head(hidden if positions is None else hidden[positions])


def make(config: ModelConfig) -> Roberta:
    model = Roberta(
        RobertaConfig(
            num_hidden_layers=config.layers,
            hidden_size=config.width,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn,
            vocab_size=config.vocabulary,
            max_position_embeddings=config.positions + FIRST_POSITION,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            tie_word_embeddings=config.tied,
            pad_token_id=None,  # every block is full, so that no embedding row is pinned to zero
        )
    )
    model.lm_head.bias = model.lm_head.decoder.bias  # untied, transformers leaves a second, unused one
    return model


def table(config: ModelConfig) -> list[Row]:
    head = "lm_head"
    return encoder_rows(config, "roberta", f"{head}.dense", f"{head}.layer_norm", f"{head}.decoder.weight", f"{head}.bias")


ARCHITECTURE = Architecture("roberta", "masked", "bytes", "post", make, table, options=("dropout", "tied"))
