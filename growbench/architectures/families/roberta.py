"""RoBERTa: masked, post-norm, byte-level tokens, learned positions that begin at row 2, one token type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import RobertaForMaskedLM

from growbench.architectures import Architecture, Row
from growbench.architectures.families.bert import LEFT_OUT, NAMES, encoder_rows
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig

FIRST_POSITION = 2  # transformers reserves the first two rows for padding


class Roberta(RobertaForMaskedLM):
    """transformers' RoBERTa that maps tokens (B, T) to the logits of the labelled positions."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        base = self.roberta
        places = torch.arange(FIRST_POSITION, FIRST_POSITION + inputs.shape[1], device=inputs.device)
        # base.forward would add a mask in compiled models (torch before 2.14), which attention's fast kernels do not take.
        hidden = base.encoder(base.embeddings(inputs, position_ids=places[None])).last_hidden_state.flatten(0, 1)
        return self.lm_head(hidden if positions is None else hidden[positions])


class RobertaLibrary(Transformers):
    """transformers numbers positions from pad_token_id + 1. Saved models have pad_token_id -1: no token, and positions from 0."""

    table = "roberta.embeddings.position_embeddings.weight"

    def options(self, sizes: ModelConfig) -> dict[str, Any]:
        return {**super().options(sizes), "max_position_embeddings": sizes.positions + FIRST_POSITION}

    def sizes(self, folder: Path) -> ModelConfig:
        sizes = super().sizes(folder)
        return replace(sizes, positions=sizes.positions - FIRST_POSITION)

    def to_library(self, config: Any, state: dict[str, Tensor]) -> None:
        config.pad_token_id = -1
        state[self.table] = state[self.table].roll(-FIRST_POSITION, 0)

    def from_library(self, config: Any, state: dict[str, Tensor]) -> None:
        state[self.table] = state[self.table].roll(FIRST_POSITION - 1 - config.pad_token_id, 0)


LIBRARY = RobertaLibrary(RobertaForMaskedLM, NAMES, left_out=LEFT_OUT)


def make(config: ModelConfig) -> Roberta:
    model = Roberta(
        LIBRARY.configuration(
            config,
            **({} if config.configuration else {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=None,  # no block is padded, so no embedding row is fixed at zero
        )
    )
    model.lm_head.bias = model.lm_head.decoder.bias  # if untied, transformers has a second bias, which is unused
    return model


def table(config: ModelConfig) -> list[Row]:
    head = "lm_head"
    return encoder_rows(config, "roberta", f"{head}.dense", f"{head}.layer_norm", f"{head}.decoder.weight", f"{head}.bias")


ARCHITECTURE = Architecture("roberta", "masked", "bytes", "post", make, table, ("dropout", "tied"), LIBRARY)
