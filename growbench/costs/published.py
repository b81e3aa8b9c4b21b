"""FLOPs as LiGO's paper counts them, by a closed form."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from growbench.architectures import Architecture, sizes_of
from growbench.config.schema import ModelConfig

MASKED_OUTPUT = 0.15625  # ELECTRA's share of positions at which a masked model has an output


def output_share(sizes: ModelConfig) -> float:
    """The share of positions whose outputs LiGO's paper counts: all of them for a causal model, which learns from each."""
    return 1.0 if sizes.causal else MASKED_OUTPUT


def ligo_paper_step(
    sizes: ModelConfig, batch: int, sequence_length: int, trained_layers: int | None = None, trained_embeddings: bool = True
) -> int:
    """FLOPs of a training step as LiGO's paper counts them: by ELECTRA's counter, with a backward pass as costly as a forward.

    The embedding counts as a dense product, the head at 0.15625 of the positions of a masked model; its code counts no causal
    models, so there the head counts at all positions. Frozen layers and embeddings have no backward pass. `sizes` are those of
    a model or a task, which say what they are the sizes of. Source: flop_computation.py of VITA-Group/LiGO.
    """
    h, i, heads, s, v = sizes.width, sizes.ffn, sizes.heads, sequence_length, sizes.vocabulary
    block = 8 * h * h + 4 * h * i + 4 * h * s + 10 * s * heads + 20 * h + 9 * i + 5
    embedding = 2 * h * v + 2 * h * (s + 2) + 2 * h + 5 * h + 4 * h
    output = output_share(sizes) * (2 * h * v + 2 * h * h + h + 8 * h + 5 * h + 7 * v)
    forward = embedding + sizes.layers * block + output
    backward = trained_embeddings * embedding + (sizes.layers if trained_layers is None else trained_layers) * block + output
    return round(batch * s * (forward + backward))


def ligo_paper_construction(small: ModelConfig, large: ModelConfig) -> int:
    """FLOPs of building the large weights as LiGO's paper counts them: each entry once per block and per sequence.

    The paper is wrong here: weights are built once per step. Its count is kept to reproduce its figures.
    Source: flop_computation.py of VITA-Group/LiGO.
    """
    h, i, h1, n1 = large.width, large.ffn, small.width, small.layers
    new = h - h1
    attention = 2 * n1 * h * h + 4 * new * h1 * h1 + n1 * h + new * h1
    up = 2 * n1 * h * i + 4 * new * h1 * i + n1 * i + new * i
    down = 2 * n1 * h * i + 2 * new * i * h + 2 * n1 * h + new * h
    norms = 2 * n1 * h + 2 * new * h1 + 2 * n1 * h + new * h
    return large.layers * (2 * attention + up + down + norms)


def paper_step(
    architecture: Architecture,
    model: nn.Module,
    batch: int,
    sequence_length: int,
    teacher: ModelConfig | None = None,
    own: Callable[[int, int], int] | None = None,
) -> int | None:
    """FLOPs of a training step of any model as LiGO's paper counts them. None for models that it cannot count, such as images'.

    `teacher`: sizes of a teacher, whose forward pass counts as half a training step. `own`: a count from batch and sequence
    length, for a model that is not a plain transformer.
    """
    if architecture.objective == "classes":
        return None
    taught = ligo_paper_step(architecture.marked(teacher), batch, sequence_length) // 2 if teacher else 0
    if own:
        return own(batch, sequence_length) + taught
    try:
        trained = {(name.partition(".")[0], layer) for name, layer, p in architecture.parameters(model) if p.requires_grad}
    except (AttributeError, KeyError):  # it is no such model
        return None
    layers = sum(group == "layers" for group, _ in trained)
    return ligo_paper_step(sizes_of(model), batch, sequence_length, layers, ("embeddings", None) in trained) + taught
