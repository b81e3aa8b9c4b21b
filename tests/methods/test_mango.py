"""Mango's ring: what it computes, and that it starts as copies."""

from __future__ import annotations

import pytest
import torch
from growbench.methods.mango import Ring, ring_product

from growbench.errors import UsageError
from growbench.growth.weights import Select, deepen, widen
from growbench.method import Axis, stack
from growbench.registry import get
from growbench.tools.miniatures import Cell
from tests.methods.test_methods import (
    data_of,
    double,
    each_cell,
    experiment_of,
    grown,
    in_double_precision,
    large_of,
    relative_change,
    small_of,
    task_in,
    times,
)

__all__ = ["double"]  # a fixture


@in_double_precision
def test_the_ring_is_the_product_with_all_entries_of_the_full_operator() -> None:
    """Against S[b1, i1, o1, l1, b2, i2, o2, l2], the trace over the ring of four cores of rank 3, written out."""
    whole, old, new = torch.randn(2, 3, 4, 2), (2, 3, 4, 2), (3, 2, 5, 3)
    blocks, inputs, outputs, layers = (torch.randn(3, one, other, 3) for one, other in zip(old, new, strict=True))
    full = torch.einsum("pbcq,qokr,rlms,sijp->biolcjkm", blocks, outputs, layers, inputs)
    expected = torch.tensordot(whole, full, 4)
    torch.testing.assert_close(ring_product(whole, blocks, inputs, outputs, layers), expected)


@in_double_precision
@each_cell
def test_mango_starts_as_copies_that_preserve_the_function_in_width(cell: Cell) -> None:
    task = task_in(cell, times(small_of(cell), 2))
    assert relative_change(task, grown(task, "mango", operator_steps=0)) < 1e-12
    task = task_in(cell, times(small_of(cell), 3, ffn=3 * 2 * small_of(cell).ffn))  # the FFN has eight blocks, not four
    assert relative_change(task, grown(task, "mango", operator_steps=0)) < 1e-12


@in_double_precision
def test_mango_starts_as_select_and_stack_at_broken_ratios() -> None:
    cell = Cell("gpt2")
    task = task_in(cell, large_of(cell))
    found = task.read(grown(task, "mango", operator_steps=0))
    circular = Select(torch.arange(24) % 16)
    ffn = Select((torch.arange(4)[:, None] * 16 + torch.arange(24) % 16).flatten())  # within each of four blocks
    expected = widen(task.read(task.source), {Axis.WIDTH: circular, Axis.HEADS: circular, Axis.FFN: ffn})
    for name, weight in deepen(expected, stack(3, 7)).items():
        torch.testing.assert_close(found[name].value, weight.value)


@each_cell
def test_a_step_reaches_every_part_of_the_operator(cell: Cell) -> None:
    """At rank 2: all cores, and the maps of what is in no block; the small model's weights are constants."""
    task = task_in(cell, large_of(cell))
    ring = Ring(task, 2)
    batch = data_of(experiment_of(cell.architecture)).train_batch(0, 0)
    ring(*batch[:2]).square().mean().backward()
    assert {name.partition(".")[0] for name, _ in ring.named_parameters() if "large" not in name} == {"cores", "depth", "width"}
    for name, parameter in ring.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("options", [{"rank": 0}, {"operator_steps": -1}, {"operator_lr": 0.0}], ids=str)
def test_ranks_steps_and_rates_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        get("mango", options)
