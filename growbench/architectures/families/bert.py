"""BERT: masked, post-norm, learned positions; the head (transform, norm, decoder) sees the masked positions only."""

from __future__ import annotations

from torch import Tensor
from transformers import BertForMaskedLM

from growbench.architectures import Architecture, Row, embedding, linear, norm
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig
from growbench.growth.weights import Axis


class Bert(BertForMaskedLM):
    """transformers' BERT that maps tokens (B, T) to the logits of the labelled positions."""

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        base = self.bert
        # base.forward would add a mask in compiled models (torch before 2.14), which attention's fast kernels do not take.
        hidden = base.encoder(base.embeddings(inputs)).last_hidden_state.flatten(0, 1)
        return self.cls(hidden if positions is None else hidden[positions])


NAMES = {
    "num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads", "intermediate_size": "ffn",
    "vocab_size": "vocabulary", "max_position_embeddings": "positions", "tie_word_embeddings": "tied",
}  # fmt: skip
# What checkpoints of BERT and RoBERTa hold beside the masked model: the pooler, numbers of positions, next-sentence prediction.
LEFT_OUT = (r"\.pooler\.", r"\.embeddings\.position_ids$", r"^cls\.seq_relationship\.")
LIBRARY = Transformers(BertForMaskedLM, NAMES, left_out=LEFT_OUT)


def make(config: ModelConfig) -> Bert:
    model = Bert(
        LIBRARY.configuration(
            config,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=None,  # no block is padded, so no embedding row is fixed at zero
        )
    )
    model.cls.predictions.bias = model.cls.predictions.decoder.bias  # if untied, transformers has a second bias, which is unused
    return model


def table(config: ModelConfig) -> list[Row]:
    head = "cls.predictions"
    return encoder_rows(
        config, "bert", f"{head}.transform.dense", f"{head}.transform.LayerNorm", f"{head}.decoder.weight", f"{head}.bias"
    )


def encoder_rows(config: ModelConfig, prefix: str, transform: str, head_norm: str, decoder: str, bias: str) -> list[Row]:
    """The table of BERT and of models that differ from it only in the names of encoder and head."""
    layer = f"{prefix}.encoder.layer.{{}}"
    # A tied decoder is the embedding matrix, so the head's transform writes to the residual axis.
    head = Axis.WIDTH if config.tied else Axis.HEAD_TRANSFORM
    rows = [
        embedding("embeddings.token", f"{prefix}.embeddings.word_embeddings.weight", Axis.VOCAB),
        embedding("embeddings.position", f"{prefix}.embeddings.position_embeddings.weight", Axis.POSITION),
        embedding("embeddings.type", f"{prefix}.embeddings.token_type_embeddings.weight", Axis.TYPE),
        *norm("embeddings.norm", f"{prefix}.embeddings.LayerNorm"),
        *linear("attention.query", f"{layer}.attention.self.query", Axis.HEADS, Axis.WIDTH, "query"),
        *linear("attention.key", f"{layer}.attention.self.key", Axis.HEADS, Axis.WIDTH, "key"),
        *linear("attention.value", f"{layer}.attention.self.value", Axis.HEADS, Axis.WIDTH, "value"),
        *linear("attention.out", f"{layer}.attention.output.dense", Axis.WIDTH, Axis.HEADS, "attention_out"),
        *norm("attention.norm", f"{layer}.attention.output.LayerNorm"),
        *linear("ffn.up", f"{layer}.intermediate.dense", Axis.FFN, Axis.WIDTH, "ffn_up"),
        *linear("ffn.down", f"{layer}.output.dense", Axis.WIDTH, Axis.FFN, "ffn_down"),
        *norm("ffn.norm", f"{layer}.output.LayerNorm"),
        *linear("head.transform", transform, head, Axis.WIDTH, "head_transform"),
        *norm("head.norm", head_norm, head, consumes=config.tied),
        Row("head.bias", bias, (Axis.VOCAB,), "head"),
    ]
    if not config.tied:
        rows.append(Row("head.weight", decoder, (Axis.VOCAB, head), "head", consumes=True))
    return rows


ARCHITECTURE = Architecture("bert", "masked", "wordpiece", "post", make, table, ("dropout", "tied"), LIBRARY)
