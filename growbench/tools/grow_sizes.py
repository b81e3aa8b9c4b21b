"""The sizes that a checkpoint grows to: those asked for, and those that follow in the source's proportions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import prod

from growbench.architectures import OPTIONS, Architecture
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError, did_you_mean
from growbench.growth.weights import WIDTHS, Axis, axis_length

SIZES = {  # what --to takes, and the field or property of ModelConfig that has it
    "layers": "layers", "width": "width", "heads": "heads", "kv_heads": "key_value_heads", "head_dim": "head_size", "ffn": "ffn",
}  # fmt: skip
MOST = 1000  # times as large as in the source: more is a slip, and would take minutes to plan
FARTHEST = 4  # how many times as wide as asked: no fitting width is looked for beyond it


def asked(text: str) -> dict[str, int]:
    """The sizes in `layers=32,width=2048`. Raises UsageError for anything else."""
    found: dict[str, int] = {}
    for part in text.split(","):
        key, equals, number = (each.strip() for each in part.partition("="))
        if not equals or not number.isdecimal() or not 0 < int(number) < 2**31 or key in found:
            raise UsageError(f"--to {text}: must be sizes, each once, as layers=32,width=2048: {part.strip()!r} is none")
        if key not in SIZES:
            raise UsageError(f"--to {text}: unknown size {key!r}: {did_you_mean(key, SIZES)}")
        found[key] = int(number)
    return found


def target(source: ModelConfig, sizes: Mapping[str, int], architecture: Architecture) -> ModelConfig:
    """The source's configuration with the sizes that are asked for. Raises UsageError if they shrink, or do not fit together."""
    has_head_dim = "head_dim" in architecture.library.config_json(replace(source, configuration=""))  # apart from width / heads
    old = {key: getattr(source, name) for key, name in SIZES.items()}
    for key, new in sizes.items():
        if (key in OPTIONS and key not in architecture.options) or (key == "head_dim" and not has_head_dim):
            raise UsageError(f"--to {key}={new}: {architecture.name} has none of its own: heads and width decide")
        if new < old[key]:
            raise UsageError(f"--to {key}={new}: the source has {old[key]}, and a model only grows")
        if new > MOST * old[key]:
            raise UsageError(f"--to {key}={new}: the source has {old[key]}; at most {MOST:,} times as much is allowed")
    if all(new == old[key] for key, new in sizes.items()):
        raise UsageError("--to: names no size that is larger than the source's")
    width = sizes.get("width", source.width)
    followed = _followed(old, sizes, width)
    if followed is None:
        raise UsageError(
            f"--to width={width}: whole heads and neurons in the source's proportions ({_proportions(old)}) do not fit: "
            f"widths that do: {_nearest(old, sizes, width)}; or name heads, kv_heads or ffn, too"
        )
    head_dim = sizes.get("head_dim", source.head_size)
    if width != followed["heads"] * head_dim and not has_head_dim:
        raise UsageError(
            f"--to width={width}, heads={followed['heads']}: heads of {architecture.name} have width / heads dimensions, and "
            f"grow whole, with the source's {head_dim}: {_heads_that_fit(width, head_dim)}"
        )
    return replace(
        source,
        layers=sizes.get("layers", source.layers),
        width=width,
        heads=followed["heads"],
        kv_heads=followed["kv_heads"] if source.kv_heads or "kv_heads" in architecture.options else 0,
        head_dim=0 if width == followed["heads"] * head_dim else head_dim,
        ffn=followed["ffn"],
    )


def entries(shapes: Mapping[str, Sequence[int]], old: ModelConfig, new: ModelConfig, architecture: Architecture) -> int:
    """Of all tensors of the target, from the shapes of the source's: quickly, whatever the sizes."""
    total = 0
    for row in architecture.rows(old):
        names = [name for _, name in row.natives(old)]
        number = new.layers - bool(row.first) if row.per_layer and row.group == "layers" else len(names)
        axes = [axis for axis in row.axes if axis in WIDTHS or axis is Axis.HEAD_SIZE]
        grown, now = (prod(axis_length(axis, sizes) for axis in axes) for sizes in (new, old))
        total += number * prod(shapes[row.first or names[0]]) // row.parts * grown // now
    return total


def _followed(old: Mapping[str, int], sizes: Mapping[str, int], width: int) -> dict[str, int] | None:
    """heads, kv_heads and ffn, as asked or in proportion to the width; None if one would not be whole."""

    def scaled(key: str) -> int | None:
        if key in sizes:
            return sizes[key]
        number, rest = divmod(old[key] * width, old["width"])
        return None if rest else number

    group = old["heads"] // old["kv_heads"]
    heads, kv_heads, ffn = scaled("heads"), scaled("kv_heads"), scaled("ffn")
    if "kv_heads" not in sizes and "heads" in sizes:
        kv_heads = None if sizes["heads"] % group else sizes["heads"] // group
    if "heads" not in sizes and "kv_heads" in sizes:
        heads = sizes["kv_heads"] * group
    if heads is None or kv_heads is None or ffn is None:
        return None
    return {"heads": heads, "kv_heads": kv_heads, "ffn": ffn}


def _nearest(old: Mapping[str, int], sizes: Mapping[str, int], width: int) -> str:
    """The next smaller and the next larger width that fit."""
    below, above = range(width - 1, old["width"] - 1, -1), range(width + 1, FARTHEST * width)
    found = chain(*(_first(each for each in widths if _followed(old, sizes, each)) for widths in (below, above)))
    return ", ".join(map(str, found)) or "none"


def _first(values: Iterable[int]) -> list[int]:
    return [value] if (value := next(iter(values), None)) is not None else []


def _proportions(old: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {old[key]}" for key in ("width", "heads", "kv_heads", "ffn"))


def _heads_that_fit(width: int, head_dim: int) -> str:
    if width % head_dim:
        return f"the width must be a multiple of {head_dim}"
    return f"heads={width // head_dim} fits"
