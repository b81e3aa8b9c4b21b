"""Tiling from the middle: how ModernBERT-large was initialised from ModernBERT-base."""

from typing import ClassVar

import torch
from torch import Tensor

from growbench.method import WIDTHS, Maps, Method, Phase, Phases, Select, Task, axis_length, deepen, widen


class ModernBertTiling(Method):
    """Put the small weights in the middle of the large ones and tile them outwards; spread the layers.

    Formula: W'[a, b] = W[(a - o) mod n, (b - p) mod m], with o = floor((n' - n)/2) and p = floor((m' - m)/2) for a matrix that
    grows from (n, m) to (n', m'). Biases, embeddings and norms alike. Nothing is divided, and heads are not kept whole. Depth:
    layer i copies layer round(i L/L'), at most the last one.
    Paper: Warner et al. 2024, section 2.2; code AnswerDotAI/ModernBERT (initialization.py, model.py). The tiling follows Phi-2,
    the map of layers Gopher.
    Function preserving: no. Each input counts as often as it has copies.
    Claim: a significant improvement over random initialisation, without a figure.
    Defaults: as published. There, the map of layers runs past the last layer in some cases, as from 12 layers to 24, which is an
    error; here it ends at the last layer. The authors do not look at the layers' kinds of attention; here each layer copies the
    nearest one of its own kind. The authors train ModernBERT-large at a peak learning rate of 5e-4 with a warm-up over 2 billion
    tokens; here, the rate follows the run's schedule from its start. The optimizer's state is new.
    Costs beyond training: copying only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.13663"

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        maps: Maps = {
            axis: Select(from_the_middle(axis_length(axis, small), axis_length(axis, large)), divided=False) for axis in WIDTHS
        }
        yield Phase(model=task.model_from(deepen(widen(task.read(task.source), maps), spread(small.layers, large.layers))))


def from_the_middle(old: int, new: int) -> Tensor:
    """(new,) the old unit that each new one copies."""
    return (torch.arange(new) - (new - old) // 2) % old


def spread(old: int, new: int) -> list[int]:
    """The old layer that each new one copies."""
    return [min(round(layer * old / new), old - 1) for layer in range(new)]
