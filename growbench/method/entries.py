"""Learning rates for single entries of parameters: only the new rows of a grown matrix are warmed up again, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from growbench.architectures import Architecture, sizes_of
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.weights import WIDTHS, Axis, Weight, axis_length
from growbench.method.schedule import Schedule


@dataclass(frozen=True)
class EntrySchedule:
    """Multiplies the learning rate of some entries of a phase's parameters, beside the schedule that these have already.

    Where schedules share entries, their factors multiply. Weight decay is scaled with the rate, as AdamW and Muon do it.
    """

    where: Mapping[str, Tensor]  # by the parameter's name: True for the entries meant, of the parameter's shape
    schedule: Schedule  # (step of the phase, its steps) -> factor of the entries' rate, at least 0


def wrong(given: object) -> str:
    """What is wrong with a phase's entry schedules, whatever its model is; empty if all is well."""
    if not isinstance(given, (list, tuple)):
        return f"entry_schedules is a {type(given).__name__}: must be a list of EntrySchedule(where, schedule)"
    for each in given:
        if not isinstance(each, EntrySchedule):
            return f"entry_schedules holds a {type(each).__name__}: must be EntrySchedule(where, schedule)"
        if not isinstance(each.where, Mapping):
            return f"entry_schedules: where is a {type(each.where).__name__}: must be a dictionary, by the parameters' names"
    return ""


def new_entries(architecture: Architecture, model: nn.Module, old: ModelConfig) -> dict[str, Tensor]:
    """For each parameter that grew, by name: True for the entries that a model of the `old` sizes did not have.

    Old units and layers must come first on every axis, as `copying` and `stack` place them. Raises UsageError where they cannot:
    for heads of another size, or in other groups.
    """
    sizes = sizes_of(model)
    for key, now, before in (
        ("head size", sizes.head_size, old.head_size),
        ("heads / kv_heads", sizes.heads // sizes.key_value_heads, old.heads // old.key_value_heads),
    ):
        if now != before:
            raise UsageError(f"new entries: {key} grew from {before} to {now}: must stay, for the old heads to come first")

    def beyond(weight: Weight) -> Weight:
        where = torch.zeros_like(weight.value, dtype=torch.bool)
        for dim, axis in enumerate(weight.axes):
            if axis in (Axis.LAYER, *WIDTHS):
                before = axis_length(axis, old)
                where.narrow(dim, before, where.shape[dim] - before).fill_(True)
        return replace(weight, value=where)

    masks = architecture.native({name: beyond(weight) for name, weight in architecture.read(model).items()}, sizes)
    shapes = architecture.shapes(old)
    return {name: where.contiguous() for name, where in masks.items() if where.shape != shapes.get(name)}
