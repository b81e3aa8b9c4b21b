"""What growth will do, tensor by tensor: the table of `growbench grow --dry-run`, and which layers the new ones come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from growbench.architectures import Row
from growbench.formatting import data_size, quantity

if TYPE_CHECKING:
    from growbench.tools.grow import Growth


def table(growth: Growth) -> str:
    """Old and new shape, parameters and bytes of each tensor; those of all layers in one line. Then the layers' origins."""
    checkpoint, width = growth.checkpoint, growth.checkpoint.dtype.itemsize
    sides = [(checkpoint.sizes, {name: place.shape for name, place in checkpoint.places.items()})]
    sides.append((growth.target, {name: tuple(tensor.shape) for name, tensor in growth.tensors.items()}))
    lines: list[tuple[str, ...]] = [("tensor", "shape", "grown to", "parameters", "grown to", "bytes", "grown to")]
    totals = [0, 0]
    rows = {row.native: row for row in checkpoint.architecture.rows(growth.target)}
    for row in rows.values():
        shapes, counts = [], []
        for place, (sizes, found) in enumerate(sides):
            names = [name for _, name in row.natives(sizes)]
            counts.append(sum(_product(found[name]) for name in names))
            shapes.append(_shape(found[names[0]] if names else ()))
            totals[place] += counts[-1]
        numbers = [*map(quantity, counts), *(data_size(width * count) for count in counts)]
        lines.append((_folded(row, growth), *shapes, *numbers))
    lines.append(("all", "", "", *map(quantity, totals), *(data_size(width * count) for count in totals)))
    columns = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, columns)).rstrip() for line in lines]
    return "\n".join([*text, "", f"layers: {layer_map(growth)}"])


def _folded(row: Row, growth: Growth) -> str:
    """A tensor's name, with the new layers' numbers for all of them."""
    numbers = [layer for layer, _ in row.natives(growth.target)]
    return row.native if numbers == [None] else row.native.format(f"{{{numbers[0]}..{numbers[-1]}}}")


def _product(shape: Iterable[int]) -> int:
    count = 1
    for each in shape:
        count *= each
    return count


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "-"


def layer_map(growth: Growth) -> str:
    """The source's layers that the new ones are made of, as in "0-23 from 0-23, 24-29 from 18-23"."""
    return _as_runs(layer_origins(growth)) or "none"


def layer_origins(growth: Growth) -> list[list[int]]:
    """For each new layer, the source's layers that it is made of. Empty if there are none.

    They are found by growing the smallest tensor that every layer has, and looking at what is read for it.
    """
    checkpoint = growth.checkpoint
    rows = [
        row for row in checkpoint.architecture.rows(growth.target) if row.per_layer and row.group == "layers" and not row.first
    ]
    if not rows or not checkpoint.sizes.layers:
        return []
    row = min(rows, key=lambda row: growth.tensors[row.natives(growth.target)[0][1]].numel())
    of = {name: layer for layer, name in row.natives(checkpoint.sizes)}
    origins: list[list[int]] = []
    for _, name in row.natives(growth.target):
        checkpoint.reads.clear()
        growth.tensors[name].part({})
        origins.append(sorted(layer for each in checkpoint.reads if (layer := of.get(each)) is not None))
    return origins


def _as_runs(origins: Sequence[Sequence[int]]) -> str:
    """Consecutive new layers that come from consecutive old ones, or all from the same."""
    runs: list[tuple[int, int]] = []
    for new, old in enumerate(origins):
        if runs and len(old) == 1 and [each + 1 for each in origins[new - 1]] == list(old):
            runs[-1] = runs[-1][0], new
        else:
            runs.append((new, new))
    return ", ".join(f"{_span(first, last)} from {_sources(origins, first, last)}" for first, last in runs)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _sources(origins: Sequence[Sequence[int]], first: int, last: int) -> str:
    if len(origins[first]) == 1:
        return _span(origins[first][0], origins[last][0])
    return "+".join(map(str, origins[first])) or "none"
