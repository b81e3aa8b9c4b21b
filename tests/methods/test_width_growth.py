"""Methods that grow widths: what they preserve in float64, and their maps written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from growbench.architectures import changed_settings
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.method import Pad, Task, Weights
from growbench.registry import get
from growbench.tools.miniatures import Cell
from tests.methods.test_methods import (
    double,
    each_cell,
    experiment_of,
    grown,
    in_double_precision,
    large_of,
    relative_change,
    run,
    small_of,
    task_in,
    task_of,
    times,
)

__all__ = ["double"]  # a fixture

# --- HyperCloning


@in_double_precision
@each_cell
@pytest.mark.parametrize("form", ["symmetric", "diagonal"])
def test_hypercloning_preserves_the_function_at_whole_ratios_with_its_noise(form: str, cell: Cell) -> None:
    small = small_of(cell)
    for target in (times(small, 2), times(small, 3, ffn=small.ffn)):
        task = task_in(cell, target)
        assert relative_change(task, grown(task, "hypercloning", form=form)) < 1e-12


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


# --- LEMON

PAPERS = [{}, {"split": "complement", "scale": 0.1, "outputs": "cancel"}]  # as for ViT, as for BERT


def and_a_half(cell: Cell, rounds: int = 2, **changes: Any) -> ModelConfig:
    """Widths of 2.5 times the source's (or 1.5), an FFN of another ratio, and heads of the same size."""
    small = small_of(cell)
    heads = small.heads * rounds + small.heads // 2
    return replace(small, width=small.width * heads // small.heads, heads=heads, kv_heads=small.kv_heads * heads // small.heads,
                   ffn=150, **changes)  # fmt: skip


@in_double_precision
@each_cell
@pytest.mark.parametrize("options", PAPERS, ids=str)
def test_lemon_is_lossless_wherever_it_does_not_refuse(options: dict[str, Any], cell: Cell) -> None:
    """Where norms come first: at whole and broken ratios, in depth too. Where they come last: in width, at whole ratios."""
    small = small_of(cell)
    whole, broken = times(small, 2, ffn=150), and_a_half(cell)
    pre, lossy = cell.architecture not in ("bert", "roberta"), cell.architecture in ("bert", "roberta", "modernbert")
    for target in (whole, *[replace(whole, layers=4)] * pre, *[and_a_half(cell, 1), replace(broken, layers=7)] * (not lossy)):
        task = task_in(cell, target)
        assert relative_change(task, grown(task, "lemon", **options)) < 1e-12, target
    if lossy:
        with pytest.raises(UsageError, match=r"target\.width = 40 must be a multiple of the source's 16"):
            grown(task_in(cell, broken), "lemon", **options)


@in_double_precision
def test_lemons_new_layers_on_top_are_lossless_in_modernbert_whose_layers_differ_by_their_place() -> None:
    cell = Cell("modernbert")
    task = task_in(cell, times(small_of(cell), 2, layers=5))
    assert relative_change(task, grown(task, "lemon", new_layers="top")) < 1e-12
    assert relative_change(task, grown(task, "lemon")) > 1e-6
    twice = task_in(cell, times(small_of(cell), 2, layers=6))  # old layers come to places 0, 2 and 4: global, local, local
    assert relative_change(twice, grown(twice, "lemon")) < 1e-12


def lemon_grown(task: Task, **options: Any) -> tuple[Weights, Weights]:
    """The grown weights, and the initial values of the large model that were drawn."""
    torch.manual_seed(5)
    weights = task.read(grown(task, "lemon", **options))
    torch.manual_seed(5)
    return weights, task.read(task.build())


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_lemon_pads_the_stream_and_scales_the_norms(architecture: str) -> None:
    """n = 2 and eta^2 = 2 * 16 / 40: [x, x, mean] (RMSNorm: [x, x, 0]), gain * eta, bias [b, b, 0], eps * eta^2."""
    cell = Cell(architecture)
    task = task_in(cell, and_a_half(cell))
    old, (new, fresh) = task.read(task.source), lemon_grown(task)
    eta, token, gain = math.sqrt(0.8), old["embeddings.token"].value, old["layers.ffn.norm.weight"].value
    rest = token.mean(1, keepdim=True) if architecture == "gpt2" else torch.zeros(len(token), 1)
    torch.testing.assert_close(new["embeddings.token"].value, torch.cat([token, token, rest.expand(-1, 8)], 1))
    scaled, drawn = new["layers.ffn.norm.weight"].value.split([32, 8], 1)
    torch.testing.assert_close(scaled, eta * gain.repeat(1, 2))
    assert drawn.abs().max() < 1 and drawn.std() > 0.3
    torch.testing.assert_close(new["norm.weight"].value[:32], eta * old["norm.weight"].value.repeat(2) / 2)  # tied
    torch.testing.assert_close(
        new["layers.attention.query.weight"].value[..., 32:], fresh["layers.attention.query.weight"].value[..., 32:]
    )
    if architecture == "gpt2":
        bias = old["layers.ffn.norm.bias"].value
        torch.testing.assert_close(new["layers.ffn.norm.bias"].value, torch.cat([bias, bias, torch.zeros(3, 8)], 1))
    usual = {"gpt2": 1e-5, "llama": 1e-6}[architecture]
    assert changed_settings(grown(task, "lemon")) == {"norm_eps": pytest.approx(0.8 * usual)}


@pytest.mark.parametrize("split", ["projection", "complement"])
def test_lemon_splits_what_copies_feed_unequally_and_keeps_the_sum(split: str) -> None:
    """64 neurons become 150: the first 22 have three copies, the others two."""
    cell = Cell("gpt2")
    task = task_in(cell, replace(times(small_of(cell), 2), ffn=150))
    old, (new, fresh) = task.read(task.source), lemon_grown(task, split=split, scale=0.5)
    value, drawn, w = (weights["layers.ffn.down.weight"].value for weights in (new, fresh, old))
    w = w.repeat(1, 2, 1)  # each copy of the output
    for neuron in range(64):
        copies = list(range(neuron, 150, 64))
        parts, noise = value[..., copies], drawn[..., copies] / 2
        torch.testing.assert_close(parts.sum(-1), w[..., neuron])
        if split == "projection":
            expected = noise + (w[..., neuron, None] - noise.sum(-1, keepdim=True)) / len(copies)
        else:
            last = noise[..., -1:]
            others = (w[..., neuron, None] - last) / (len(copies) - 1)
            expected = torch.cat([others.expand(*others.shape[:-1], len(copies) - 1), last], -1)
        torch.testing.assert_close(parts, expected)


def test_lemons_new_layers_write_zeros_or_what_cancels() -> None:
    cell = Cell("gpt2")
    task = task_in(cell, times(small_of(cell), 2, layers=5))
    zero, cancelling = (task.read(grown(task, "lemon", outputs=outputs)) for outputs in ("zero", "cancel"))
    for name in ("layers.attention.out.weight", "layers.ffn.down.weight"):
        for layer, silent in enumerate([False, False, True, False, True]):
            assert (zero[name].value[layer] == 0).all() == silent
            first, second = cancelling[name].value[layer].chunk(2, -1)
            assert torch.allclose(first, -second, atol=1e-6) == silent and not (first == 0).all()
    assert (cancelling["layers.ffn.down.bias"].value[[2, 4]] == 0).all()


@pytest.mark.parametrize(
    ("place", "new", "expected"),
    [
        ("between", 3, [0, 1, 2]), ("between", 5, [0, 1, 1, 2, 2]), ("between", 7, [0, 0, 1, 1, 2, 2, 2]),
        ("top", 5, [0, 1, 2, 2, 2]),
    ],
)  # fmt: skip
def test_lemons_new_layers_follow_the_layers_that_they_copy(place: str, new: int, expected: list[int]) -> None:
    assert get("lemon", {"new_layers": place}).method.layers(3, new) == expected


def test_lemon_refuses_a_source_without_layers() -> None:
    small = replace(small_of(Cell("gpt2")), layers=0)
    with pytest.raises(UsageError, match=r"source\.layers = 0: there is no layer to copy"):
        grown(task_of(experiment_of("gpt2", small, replace(small, layers=2))), "lemon")


def test_lemons_padded_stream_keeps_the_optimizers_state_of_the_first_copies() -> None:
    from growbench.methods.lemon import Scaled

    moments = torch.arange(6.0).reshape(2, 3)
    kept = Scaled(Pad(8, copies=2), 0.5).kept(moments, 1)
    assert torch.equal(kept, torch.cat([moments, torch.zeros(2, 5)], 1))


def test_a_run_records_the_settings_that_its_method_declared() -> None:
    cell = Cell("gpt2")
    outcome, _ = run(experiment_of("gpt2", small_of(cell), and_a_half(cell, 1)), "lemon")
    (phase,) = outcome.phases
    assert phase.settings == {"norm_eps": pytest.approx(1e-5 * 2 / 3)} and phase.target_sized
    assert phase.output_change is not None and phase.output_change < 1e-5
    assert changed_settings(grown(task_in(cell, times(small_of(cell), 2)), "lemon")) == {}


# --- SZP


def test_szp_shrinks_pads_and_perturbs() -> None:
    """Width 16 to 24: R is the initialisation times sqrt(16/24), of the untied output matrix times 16/24."""
    cell = Cell("gpt2", tied=False)
    task = task_in(cell, large_of(cell))
    old = task.read(task.source)
    torch.manual_seed(5)
    new = task.read(grown(task, "szp", shrink=0.3, noise=0.5))
    torch.manual_seed(5)
    fresh = task.read(task.build())
    for name, factor in {"layers.ffn.up.weight": math.sqrt(2 / 3), "head.weight": 2 / 3, "embeddings.token": 1}.items():
        value = old[name].value[[0, 1, 2, 0, 1, 2, 0]] if name.startswith("layers.") else old[name].value
        expected = 0.5 * factor * fresh[name].value
        corner = tuple(map(slice, value.shape))
        expected[corner] += 0.3 * value
        torch.testing.assert_close(new[name].value, expected)
    gain, bias = new["norm.weight"].value, new["layers.ffn.up.bias"].value
    torch.testing.assert_close(gain, torch.cat([old["norm.weight"].value, torch.ones(8)]))
    torch.testing.assert_close(bias[0], torch.cat([0.3 * old["layers.ffn.up.bias"].value[0], torch.zeros(32)]))


def test_szp_without_noise_or_shrinking_at_equal_sizes_is_the_small_model() -> None:
    cell = Cell("cait")
    task = task_in(cell, small_of(cell))
    assert relative_change(task, grown(task, "szp", shrink=1.0, noise=0.0)) == 0


def test_szp_refuses_heads_of_another_size() -> None:
    with pytest.raises(UsageError, match="szp keeps heads whole: target's width / heads = 4 must equal the source's 8"):
        grown(task_in(Cell("gpt2"), replace(large_of(Cell("gpt2")), heads=6)), "szp")


# --- ModernBERT's tiling


def test_tiling_from_the_middle_by_hand() -> None:
    """Of a, b, c in the middle of eight: b c a b c a b c."""
    from growbench.methods.modernbert_tiling import from_the_middle, spread

    assert from_the_middle(3, 8).tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert from_the_middle(4, 8).tolist() == [2, 3, 0, 1, 2, 3, 0, 1]
    assert spread(3, 6) == [0, 0, 1, 2, 2, 2]  # halves are rounded to even numbers
    assert spread(22, 28)[-4:] == [19, 20, 20, 21] and max(spread(22, 44)) == 21


def test_modernbert_tiling_divides_nothing_and_tiles_norms() -> None:
    """Width 16 to 24, so 4 on either side of the middle; FFN 64 to 96, so 16."""
    cell = Cell("modernbert")
    task = task_in(cell, large_of(cell))
    old, new = task.read(task.source), task.read(grown(task, "modernbert_tiling"))
    layers = [0, 1, 1, 0, 2, 2, 0]  # round(3 i / 7), at most 2, is 0, 0, 1, 1, 2, 2, 2; global attention is in layer 0 alone
    width, ffn = (torch.arange(n).roll(n // 4)[:n].repeat(2)[: n + n // 2] for n in (16, 64))
    assert width[:5].tolist() == [12, 13, 14, 15, 0]
    up = old["layers.ffn.up.weight"].value[layers][:, ffn][..., width]
    assert torch.equal(new["layers.ffn.up.weight"].value, up)
    assert torch.equal(new["layers.ffn.norm.weight"].value, old["layers.ffn.norm.weight"].value[layers][:, width])
    assert torch.equal(new["head.norm.weight"].value, old["head.norm.weight"].value[width])  # tied: not divided either
    assert torch.equal(new["embeddings.token"].value, old["embeddings.token"].value[:, width])
