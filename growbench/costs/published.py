"""The closed form by which LiGO's paper counts FLOPs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from growbench.architectures import Architecture, sizes_of
from growbench.config.schema import ModelConfig


def ligo_paper_step(
    sizes: ModelConfig, batch: int, sequence: int, trained_layers: int | None = None, trained_embeddings: bool = True
) -> int:
    """FLOPs of a training step by the counter of LiGO's paper: ELECTRA's, with backward counted equal to forward.

    The embedding is charged as a dense product and the head at 0.15625 of the positions. Layers and embeddings that are
    frozen have no backward. Source: flop_computation.py of VITA-Group/LiGO.
    """
    h, i, heads, s, v = sizes.width, sizes.ffn, sizes.heads, sequence, sizes.vocabulary
    block = 8 * h * h + 4 * h * i + 4 * h * s + 10 * s * heads + 20 * h + 9 * i + 5
    embedding = 2 * h * v + 2 * h * (s + 2) + 2 * h + 5 * h + 4 * h
    output = 0.15625 * (2 * h * v + 2 * h * h + h + 8 * h + 5 * h + 7 * v)
    forward = embedding + sizes.layers * block + output
    backward = trained_embeddings * embedding + (sizes.layers if trained_layers is None else trained_layers) * block + output
    return round(batch * s * (forward + backward))


def ligo_paper_construction(small: ModelConfig, large: ModelConfig) -> int:
    """FLOPs of building the large weights, as LiGO's paper counts them: each entry once per block and per sequence.

    Once per sequence is the paper's slip (once per step is what happens); it is kept so that its figures come out.
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
    sequence: int,
    teacher: ModelConfig | None = None,
    own: Callable[[int, int], int] | None = None,
) -> int | None:
    """A step of any phase's model in the paper's counter; `own`: that of a model that is no plain transformer.

    A teacher's forward is charged as half a step of the teacher. None for what the counter does not know: images, other models.
    """
    if architecture.objective == "classes":
        return None
    taught = ligo_paper_step(teacher, batch, sequence) // 2 if teacher else 0
    if own:
        return own(batch, sequence) + taught
    try:
        trained = {(name.partition(".")[0], layer) for name, layer, p in architecture.parameters(model) if p.requires_grad}
    except AttributeError:
        return None
    layers = sum(group == "layers" for group, _ in trained)
    return ligo_paper_step(sizes_of(model), batch, sequence, layers, ("embeddings", None) in trained) + taught
