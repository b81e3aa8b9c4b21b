"""Methods that grow widths: HyperCloning, LEMON. What they preserve in float64, and their maps written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from growbench.errors import UsageError
from growbench.tools.miniatures import Cell
from tests.methods.test_methods import (
    double,
    each_cell,
    experiment_of,
    grown,
    in_double_precision,
    large_of,
    relative_change,
    small_of,
    task_in,
    task_of,
    times,
)

__all__ = ["double"]  # a fixture

FORMS = [{"form": form, "noisy": noisy} for form in ("symmetric", "diagonal") for noisy in (False, True)]


# --- HyperCloning


@in_double_precision
@each_cell
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_hypercloning_preserves_the_function_at_whole_ratios(options: dict[str, Any], cell: Cell) -> None:
    small = small_of(cell)
    for target in (times(small, 2), times(small, 3, ffn=small.ffn)):
        task = task_in(cell, target)
        assert relative_change(task, grown(task, "hypercloning", **options)) < 1e-12


def test_hypercloning_writes_the_papers_blocks() -> None:
    """Symmetric [[W, W], [W, W]] / 2, diagonal [[W, 0], [0, W]]; the head, of which one side grows, [W, W] / 2 in both."""
    cell = Cell("gpt2", tied=False)
    task = task_in(cell, times(small_of(cell), 2))
    old = task.read(task.source)
    both, blocks = (task.read(grown(task, "hypercloning", form=form, noisy=False)) for form in ("symmetric", "diagonal"))
    for name in (
        "layers.attention.query.weight",
        "layers.attention.out.weight",
        "layers.ffn.up.weight",
        "layers.ffn.down.weight",
    ):
        torch.testing.assert_close(both[name].value, old[name].value.repeat(1, 2, 2) / 2)
        torch.testing.assert_close(blocks[name].value, torch.stack([torch.block_diag(each, each) for each in old[name].value]))
    for new in (both, blocks):
        torch.testing.assert_close(new["head.weight"].value, old["head.weight"].value.repeat(1, 2) / 2)
        for name in ("embeddings.token", "norm.weight", "layers.ffn.up.bias"):
            value = old[name].value
            assert torch.equal(new[name].value, value.repeat(*[1] * (value.dim() - 1), 2))


@pytest.mark.parametrize(("form", "share"), [("symmetric", 3), ("diagonal", 1)])
def test_hyperclonings_noise_cancels_between_pairs_of_inputs_and_is_as_strong_as_it_says(form: str, share: int) -> None:
    """Three copies: +noise, -noise, none; each copy of the outputs has noise of its own, 10 dB below W / 3, or below W."""
    cell = Cell("gpt2")
    task = task_in(cell, times(small_of(cell), 3))
    plain, noisy = (task.read(grown(task, "hypercloning", form=form, noisy=noisy)) for noisy in (False, True))
    name = "layers.ffn.up.weight"
    noise = noisy[name].value - plain[name].value
    first, second, third = noise.chunk(3, -1)
    torch.testing.assert_close(first, -second)
    assert (third == 0).all() and not torch.allclose(first[:, :64], first[:, 64:128])
    power = (task.read(task.source)[name].value / share).square().mean()
    assert first.square().mean() / power == pytest.approx(0.1, rel=0.05)
    for name in ("embeddings.token", "layers.ffn.norm.weight", "norm.weight", "layers.ffn.up.bias"):
        assert torch.equal(noisy[name].value, plain[name].value)


def test_hypercloning_refuses_widths_that_are_no_multiples() -> None:
    with pytest.raises(UsageError, match="target's width = 24 must be a multiple of the source's 16"):
        grown(task_in(Cell("gpt2"), large_of(Cell("gpt2"))), "hypercloning")
    small = small_of(Cell("gpt2"))
    with pytest.raises(UsageError, match="target's ffn = 100 must be a multiple of the source's 64"):
        grown(task_of(experiment_of("gpt2", small, times(small, 2, ffn=100))), "hypercloning")
