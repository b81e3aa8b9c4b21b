"""What a growth method promises of a checkpoint: it is tried on a miniature of the same proportions."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

import torch
from torch import nn

from growbench import registry
from growbench.architectures import Architecture
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.method import Task
from growbench.method.streaming import BUDGET

HEAD, STEP = 4, 8  # dimensions of a head, and what the smallest widths of a miniature are multiples of
SEQUENCE, VOCABULARY, PATCH = 16, 40, 4
STD = 0.05  # of what is added to each initial weight, so that no two are equal


def change(card: dict[str, Any], architecture: Architecture, old: ModelConfig, new: ModelConfig) -> float:
    """How much the method that `card` names changes the logits of a random miniature, relative, in float32.

    The miniature has the checkpoint's configuration, all its layers, and grows in the same proportions. Raises any error of the
    method, and of a configuration that no miniature can have.
    """
    if card["method"] not in registry.names():  # no file that a checkpoint names is run
        raise UsageError(f"unknown method {card['method']!r}")
    method = registry.get(card["method"], card["hyperparameters"]).method
    small, large = _miniatures(old, replace(new, configuration=old.configuration))
    torch.manual_seed(0)
    source = architecture.build(small)
    for parameter in source.parameters():
        parameter.data += STD * torch.randn(parameter.shape)
    rng = torch.Generator().manual_seed(0)
    task = Task(architecture, large, BUDGET.steps, BUDGET, torch.device("cpu"), rng, small)
    phase = next(method.phases(task.with_source(source.requires_grad_(False).eval())))
    inputs = torch.randint(VOCABULARY, (2, SEQUENCE), generator=rng)
    if architecture.tokenizer is None:
        inputs = torch.randn(2, 3, PATCH * 2, PATCH * 2, generator=rng)
    before, after = _logits(source, inputs), _logits(phase.target or phase.model, inputs)
    return float((after - before).norm() / before.norm())


def _logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(inputs)
        return logits


def _miniatures(old: ModelConfig, new: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
    """Source and target, each width divided by what both have in common; layers as they are."""
    widths, ffns, groups, sizes = (
        _reduced(getattr(old, key), getattr(new, key)) for key in ("width", "ffn", "key_value_heads", "head_size")
    )
    found = []
    for model, width, ffn, key_value_heads, size in zip((old, new), widths, ffns, groups, sizes, strict=True):
        heads, head = key_value_heads * (model.heads // model.key_value_heads), HEAD * size
        found.append(
            replace(
                model,
                width=STEP * width if model.head_dim else heads * head,
                heads=heads,
                kv_heads=key_value_heads if model.kv_heads else 0,
                head_dim=head if model.head_dim else 0,
                ffn=STEP * ffn,
                vocabulary=VOCABULARY,
                positions=4 if model.patch else SEQUENCE,
                patch=PATCH if model.patch else 0,
            )
        )
    return found[0], found[1]


def _reduced(old: int, new: int) -> tuple[int, int]:
    common = gcd(old, new)
    return old // common, new // common
