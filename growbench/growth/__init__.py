"""Canonical weights and the maps that grow them. Methods import these names from growbench.method."""

from growbench.growth.maps import copying, interleave, repeat_block, stack, stack_and_top, tiling, zero_sum
from growbench.growth.weights import (
    WIDTHS,
    Axis,
    AxisMap,
    Extend,
    Maps,
    Pad,
    Select,
    Weight,
    Weights,
    apart,
    axis_length,
    deepen,
    map_of,
    widen,
)

__all__ = [
    "WIDTHS",
    "Axis",
    "AxisMap",
    "Extend",
    "Maps",
    "Pad",
    "Select",
    "Weight",
    "Weights",
    "apart",
    "axis_length",
    "copying",
    "deepen",
    "interleave",
    "map_of",
    "repeat_block",
    "stack",
    "stack_and_top",
    "tiling",
    "widen",
    "zero_sum",
]
