"""The V-cycle: its operators undo each other, and do what they say by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from growbench.methods.multilevel import Merge

from growbench.architectures import sizes_of
from growbench.errors import UsageError
from growbench.method import tiling, widen
from growbench.planning.plan import plan
from growbench.registry import get
from growbench.tools.miniatures import VOCABULARY, Cell
from tests.methods.test_methods import (
    SMALL,
    data_of,
    double,
    driven,
    each_cell,
    experiment_of,
    in_double_precision,
    large_of,
    relative_change,
    small_of,
    task_in,
    task_of,
    times,
)

__all__ = ["double"]  # a fixture


@in_double_precision
@each_cell
def test_coalescing_undoes_de_coalescing_which_preserves_the_function_at_whole_ratios_of_width(cell: Cell) -> None:
    small = small_of(cell)
    for large in (large_of(cell), times(small, 3, ffn=small.ffn)):
        task = task_in(cell, large)
        old, maps = task.read(task.source), tiling(small, large)
        wide = widen(old, maps)
        back = widen(wide, {axis: Merge(each.index) for axis, each in maps.items()})  # type: ignore[attr-defined]
        for name, weight in old.items():
            torch.testing.assert_close(back[name].value, weight.value, rtol=1e-12, atol=1e-12)
        if large.width % small.width == 0:
            assert relative_change(task, task.model_from(wide)) < 1e-12


@pytest.mark.parametrize("depth", ["stack", "adjacent"])
def test_the_small_model_is_made_of_means_and_sums_and_mixed_back(depth: str) -> None:
    """By hand, from 4 layers of twice the width; means of outputs and layers, sums of inputs, a weighted mean at the end."""
    experiment = experiment_of("gpt2", replace(SMALL, layers=2), replace(times(SMALL, 2), layers=4), steps=20)
    task = task_of(experiment)
    phases = driven(get("multilevel", {"alpha": 0.25, "depth": depth}).method, task, data_of(experiment))
    model = next(phases).model
    phase = next(phases)
    target, small = task.read(model), task.read(phase.model)
    assert phase.optimizer is not None and phase.optimizer.param_groups[0]["lr"] == pytest.approx(4e-3)
    assert sizes_of(phase.model) == task.source_config
    name = "layers.ffn.up.weight"  # (LAYER, FFN, WIDTH)
    blocks = target[name].value.reshape(4, 2, 64, 2, 16).mean(1).sum(2)
    pairs = ((0, 2), (1, 3)) if depth == "stack" else ((0, 1), (2, 3))
    torch.testing.assert_close(small[name].value, torch.stack([(blocks[one] + blocks[two]) / 2 for one, two in pairs]))
    for name, merged in (("embeddings.token", torch.mean), ("norm.weight", torch.sum)):  # the tied decoder is not divided
        value = target[name].value
        torch.testing.assert_close(small[name].value, merged(value.reshape(*value.shape[:-1], 2, 16), dim=-2))
    mixed = task.read(next(phases).model)
    trained = task.read(phase.model)
    layers = [0, 1, 0, 1] if depth == "stack" else [0, 0, 1, 1]
    name = "layers.ffn.up.weight"
    copied = trained[name].value[layers].repeat(1, 2, 2) / 2
    torch.testing.assert_close(mixed[name].value, 0.75 * target[name].value + 0.25 * copied)


def test_the_phases_are_those_of_the_authors_script() -> None:
    planned = plan(experiment_of("gpt2", steps=100), get("multilevel"), VOCABULARY)
    assert [(phase.name, phase.steps) for phase in planned] == [("target", 5), ("coalesced", 50), ("interpolated", 45)]


@pytest.mark.parametrize("options", [{"first": 0.5, "small": 0.5}, {"small": 0.0}, {"alpha": 1.5}], ids=str)
def test_shares_and_mixtures_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be"):
        get("multilevel", options)


def by_hand(value: torch.Tensor, layers: int) -> torch.Tensor:
    """A second-matrix-like (LAYER, FFN, WIDTH) weight of twice the sizes and `layers` layers, coalesced to half of each."""
    _, ffn, width = value.shape
    blocks = value.reshape(layers, 2, ffn // 2, 2, width // 2).mean(1).sum(2)
    return (blocks[: layers // 2] + blocks[layers // 2 :]) / 2


def test_three_levels_go_down_and_up_one_at_a_time() -> None:
    """By hand, from 4 layers of width 64 to 2 of 32, to 1 of 16, and back."""
    large = replace(times(SMALL, 4), layers=4)
    experiment = experiment_of("gpt2", replace(SMALL, layers=1), large, steps=100)
    middle = {"layers": 2, "width": 32, "heads": 4}
    options = {"alpha": 0.25, "first": 0.05, "small": 0.2, "between": [middle]}
    task = task_of(experiment)
    seen = []
    for phase in driven(get("multilevel", options).method, task, data_of(experiment)):
        seen.append((phase, task.read(phase.model)["layers.ffn.up.weight"].value))
    names = ["target", "level 2", "coalesced", "level 2 interpolated", "interpolated"]
    assert [(phase.name, phase.length(100, 0)) for phase, _ in seen[:4]] == list(zip(names, [5, 5, 20, 20], strict=False))
    assert seen[4][0].name == "interpolated" and seen[4][0].steps is None
    assert [sizes_of(phase.model).width for phase, _ in seen] == [64, 32, 16, 32, 64]
    assert sizes_of(seen[1][0].model).ffn == 128
    assert [phase.optimizer and phase.optimizer.param_groups[0]["lr"] for phase, _ in seen] == [None, *[4e-3] * 3, None]
    trained = [task.read(phase.model)["layers.ffn.up.weight"].value for phase, _ in seen]
    torch.testing.assert_close(seen[1][1], by_hand(trained[0], 4))
    torch.testing.assert_close(seen[2][1], by_hand(trained[1], 2))
    for down, small, up in ((1, 2, 3), (0, 3, 4)):
        copied = trained[small].repeat(2, 2, 2) / 2
        torch.testing.assert_close(seen[up][1], 0.75 * trained[down] + 0.25 * copied)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"between": [{}]}, "must be above 0, their sum below 1 / 2"),
        (
            {"small": 0.2, "between": [{"depth": 2}]},
            "between has depth: allowed are layers, width, heads, kv_heads, ",
        ),
        ({"small": 0.2, "between": [{"layers": 2}]}, "between: layers = 3 beneath 2: each level must be at most as large"),
    ],
)
def test_levels_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(experiment_of("gpt2", SMALL, times(SMALL, 2)), get("multilevel", options), VOCABULARY)
