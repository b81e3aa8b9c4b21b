"""Methods that grow behind a view: msg. The function that its masks preserve, and what they show on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from growbench.methods.msg import faded_in, masked_norm
from torch import Tensor, nn
from torch.nn import functional

from growbench.errors import UsageError
from growbench.method import Phase
from growbench.registry import get
from growbench.tools.miniatures import Cell
from growbench.training.views import SeenModel
from tests.methods.test_methods import (
    SMALL,
    double,
    each_cell,
    experiment_of,
    first,
    in_double_precision,
    large_of,
    relative_change,
    small_of,
    task_in,
    task_of,
    times,
)
from tests.methods.test_training_state import walked

__all__ = ["double"]  # a fixture


def seen(phase: Phase, step: int, steps: int) -> nn.Module:
    assert phase.view is not None
    return SeenModel(phase.model, phase.view, step, steps)


@in_double_precision
@each_cell
def test_masks_preserve_the_function_at_whole_and_broken_ratios(cell: Cell) -> None:
    """Of all at once, whatever is behind the mask; without the mask the new model computes something else."""
    broken, whole = large_of(cell), times(small_of(cell), 2, layers=5, ffn=100)
    for target, units, layers in ((broken, "random", "copy"), (whole, "copy", "random")):
        task = task_in(cell, target)
        phase = first(get("msg", {"order": "together", "units": units, "layers": layers}).method, task)
        assert relative_change(task, seen(phase, 0, 7)) < 1e-12
        assert relative_change(task, phase.model) > 1e-3
        assert relative_change(task, seen(phase, 3, 7)) > 1e-3


def test_what_each_stage_masks() -> None:
    """By hand, of GPT-2, whose matrices are stored as (in, out), with query, key and value in one."""
    task = task_of(experiment_of("gpt2", replace(SMALL, layers=2), replace(times(SMALL, 2), layers=3)))
    stages = get("msg").method.stages(task.source_config, task.target_config)  # type: ignore[attr-defined]
    assert [name for name, _ in stages] == ["ffn", "layers", "width"]
    old, masks = task.source_config, {}
    for name, sizes in stages:
        _, masks[name] = get("msg").method.grown(task, task.build(old), old, sizes)  # type: ignore[attr-defined]
        old = sizes
    assert old == task.target_config
    block = "transformer.h.{}"
    new = torch.arange(128) >= 64
    entries = {f"{block}.mlp.c_fc.weight": new.expand(16, 128), f"{block}.mlp.c_fc.bias": new}
    assert_masks(masks["ffn"], {name.format(layer): where for name, where in entries.items() for layer in range(2)}, [], [])
    assert_masks(masks["layers"], {}, [], ["transformer.h.2"])
    new = torch.arange(32) >= 16
    vectors = [f"{block}.{name}" for name in ("attn.c_proj.bias", "mlp.c_proj.bias")]
    norms = [*(f"transformer.h.{layer}.{name}" for layer in range(3) for name in ("ln_1", "ln_2")), "transformer.ln_f"]
    entries = {
        "transformer.wte.weight": new.expand(32, 32),
        "transformer.wpe.weight": new.expand(16, 32),
        f"{block}.attn.c_attn.weight": new.repeat(3).expand(32, 96),
        f"{block}.attn.c_attn.bias": new.repeat(3),
        f"{block}.attn.c_proj.weight": new.expand(32, 32),
        f"{block}.mlp.c_proj.weight": new.expand(128, 32),
        **dict.fromkeys(vectors, new),
        **{f"{name}.{part}": new for name in norms for part in ("weight", "bias")},
    }
    every = {name.format(layer): where for name, where in entries.items() for layer in range(3)}
    assert_masks(masks["width"], every, norms, [])


def assert_masks(mask: Any, entries: dict[str, Tensor], norms: list[str], layers: list[str]) -> None:
    assert mask.entries.keys() == entries.keys()
    for name, where in entries.items():
        assert torch.equal(mask.entries[name].bool(), where), name
    assert sorted(mask.norms) == sorted(norms)
    assert mask.layers == layers


def test_norms_that_come_last_are_masked_alone() -> None:
    """As in the authors' code: what BERT's norms read is left as it is."""
    phase = first(get("msg", {"order": "together"}).method, task_of(experiment_of("bert")))
    wide = {name for name, new in phase.view.entries.items() if new.shape[0] == 24}  # type: ignore[union-attr]
    assert wide and all("LayerNorm" in name or "query" in name or "key" in name or "value" in name for name in wide)


@in_double_precision
@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6, eps=1e-5)])
def test_a_masked_norm_counts_a_dimension_as_often_as_its_mask(norm: Any) -> None:
    """With whole numbers in the mask, that is a norm over as many copies of each dimension."""
    norm.to(torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    hidden, times = torch.randn(4, 6), torch.tensor([2, 2, 2, 1, 1, 0])
    index = torch.arange(6).repeat_interleave(times)
    parameters = {"eps": norm.eps, "weight": norm.weight[index]}
    if isinstance(norm, nn.LayerNorm):
        expected = functional.layer_norm(hidden[:, index], (8,), bias=norm.bias[index], **parameters)
    else:
        expected = functional.rms_norm(hidden[:, index], (8,), **parameters)
    found = masked_norm(times / 2, norm, (hidden,), norm(hidden))
    torch.testing.assert_close(found[:, index], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked_norm(torch.ones(6), norm, (hidden,), norm(hidden)), norm(hidden), rtol=1e-12, atol=1e-12)


def test_a_layer_fades_in() -> None:
    hidden = torch.randn(2, 3)
    found = faded_in(0.25, nn.Identity(), (hidden, None), 5 * hidden)
    torch.testing.assert_close(found, 2 * hidden)


def test_msg_refuses_what_it_cannot_mask() -> None:
    with pytest.raises(UsageError, match="must be above 0 and below 1"):
        get("msg", {"share": 0.0})
    small = replace(SMALL, heads=4, kv_heads=2)
    with pytest.raises(UsageError, match="target's heads / kv_heads = 8 / 8 must be at least the source's 4 / 2"):
        first(get("msg").method, task_of(experiment_of("llama", small, times(small, 2, kv_heads=8))))
    with pytest.raises(UsageError, match="heads are copied whole"):
        first(get("msg").method, task_of(experiment_of("gpt2", SMALL, replace(times(SMALL, 2), heads=2))))


def test_msg_keeps_the_moments_of_what_is_old_if_asked() -> None:
    """From 2 to 3 layers and from width 16 to 24, after moments of 1; then the same optimizer goes on without the mask."""
    phases = walked("msg", state="kept", order="together")
    grow = next(phases)
    for layer, name, rows, columns in ((0, "mlp.c_fc", 16, 64), (1, "mlp.c_proj", 64, 16), (2, "mlp.c_fc", 0, 0)):
        parameter = grow.model.get_parameter(f"transformer.h.{layer}.{name}.weight")  # (in, out)
        expected = torch.zeros_like(parameter)
        expected[:rows, :columns] = 1
        state = grow.optimizer.state.get(parameter, {})
        found = state.get("exp_avg", torch.zeros_like(parameter))
        assert torch.equal(found, expected), name
    assert next(phases).optimizer is grow.optimizer
