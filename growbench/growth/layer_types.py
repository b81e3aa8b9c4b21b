"""Layers have types: global or local attention, with or without rotary positions. A layer map copies within a type."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from growbench.errors import UsageError
from growbench.formatting import counted

LayerTypes = Callable[[int], tuple[Hashable, ...]]  # from a model's number of layers to the type of each


def within_types(layer_map: Sequence[int], old: int, types: LayerTypes) -> list[int]:
    """The layer map with each layer that it names replaced by the nearest one of the type that the new layer has.

    `old`: the number of layers that are copied from. Of two layers that are as near, the lower one is taken. Raises UsageError
    where no layer has the type, and IndexError for a layer that is not there.
    """
    named = [int(layer) for layer in layer_map]
    if wrong := [layer for layer in named if not 0 <= layer < old]:
        raise IndexError(f"layer {wrong[0]} is to be copied, and there are {old}")
    old_types, new_types = types(old), types(len(named))
    places = {kind: [layer for layer in range(old) if old_types[layer] == kind] for kind in new_types}
    for kind, layers in places.items():
        if not layers:
            raise UsageError(_lacking(kind, old_types, new_types, types))
    return [min(places[kind], key=lambda layer: abs(layer - meant)) for kind, meant in zip(new_types, named, strict=True)]


def _lacking(kind: Hashable, old_types: Sequence[Hashable], new_types: Sequence[Hashable], types: LayerTypes) -> str:
    old, new = len(old_types), len(new_types)
    enough = next(number for number in range(1, new + 1) if set(types(number)) >= set(new_types))
    only = " and ".join(map(said, dict.fromkeys(old_types)))
    return (
        f"layer {new_types.index(kind) + 1} of {new} is of type {said(kind)}, and with {counted(old, 'layer')} there is only "
        f"{only} to copy: grow from at least {enough} layers"
    )


def said(kind: Hashable) -> str:
    """A type in words."""
    return " ".join(map(str, kind)) if isinstance(kind, tuple) else str(kind)
