"""Canonical weights: widen and deepen do what their closed forms say. What they do to real models: test_architectures.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.weights import (
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
    widen,
)

LAYERS, WIDTH, HEADS, FFN = 3, 16, 2, 5
WIDE = {Axis.WIDTH: 23, Axis.HEAD_COUNT: 5, Axis.FFN: 9}
OLD = {Axis.WIDTH: WIDTH, Axis.HEAD_COUNT: HEADS, Axis.FFN: FFN}


def zoo() -> Weights:
    """A weight of every shape that architectures have."""
    generator = torch.Generator().manual_seed(0)

    def weight(*axes: tuple[Axis, int], consumes: bool = False) -> Weight:
        value = torch.randn(*(size for _, size in axes), generator=generator, dtype=torch.float64)
        return Weight(value, tuple(axis for axis, _ in axes), "any", consumes)

    layer, width, heads, ffn = (Axis.LAYER, LAYERS), (Axis.WIDTH, WIDTH), (Axis.HEAD_COUNT, HEADS), (Axis.FFN, FFN)
    return {
        "token": weight((Axis.VOCAB, 7), width),
        "position": weight((Axis.SINGLE, 1), (Axis.POSITION, 4), width),
        "patch": weight(width, (Axis.PATCH, 3), (Axis.PATCH, 2), (Axis.PATCH, 2)),
        "patch_bias": weight(width),
        "up": weight(layer, ffn, width, consumes=True),
        "up_bias": weight(layer, ffn),
        "down": weight(layer, width, ffn, consumes=True),
        "talk": weight(layer, heads, heads, consumes=True),
        "layer_norm": weight(layer, width),
        "last_norm": weight(width, consumes=True),  # before a tied decoder
        "decoder": weight((Axis.VOCAB, 7), width, consumes=True),
    }


def random_index(axis: Axis, seed: int = 4) -> Tensor:
    new = torch.randint(OLD[axis], (WIDE[axis] - OLD[axis],), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.arange(OLD[axis]), new])


def one_hot(index: Tensor, old: int) -> Tensor:
    return torch.eye(old, dtype=torch.float64)[index]


def test_a_produced_unit_is_its_originals_copy_and_a_consumed_one_its_share() -> None:
    index = random_index(Axis.WIDTH)
    before, after = zoo(), widen(zoo(), {Axis.WIDTH: Select(index)})
    copies = torch.tensor([(index == old).sum() for old in index])
    assert torch.equal(after["token"].value, before["token"].value[:, index])
    assert torch.equal(after["patch"].value, before["patch"].value[index])
    assert torch.equal(after["down"].value, before["down"].value[:, index])
    assert torch.equal(after["up"].value, before["up"].value[..., index] / copies)
    assert torch.equal(after["last_norm"].value, before["last_norm"].value[index] / copies)
    assert torch.equal(after["talk"].value, before["talk"].value)


def test_a_matrix_between_two_dimensions_of_one_axis_is_produced_and_consumed() -> None:
    """Talking heads: rows are copied, columns shared out."""
    index = random_index(Axis.HEAD_COUNT)
    copies = torch.bincount(index)[index]
    grown = widen(zoo(), {Axis.HEAD_COUNT: Select(index)})["talk"].value
    assert torch.equal(grown, zoo()["talk"].value[:, index][:, :, index] / copies)


def test_extension_by_one_hot_rows_is_selection_bit_for_bit() -> None:
    """Produced and consumed: Net2Net's growth, and the learned operator that starts from it, are the same weights."""
    indices = {axis: random_index(axis) for axis in WIDE}
    extended = widen(
        zoo(), {axis: Extend(one_hot(index[OLD[axis] :], OLD[axis]), divided=True) for axis, index in indices.items()}
    )
    for key, weight in widen(zoo(), {axis: Select(index) for axis, index in indices.items()}).items():
        assert torch.equal(extended[key].value, weight.value), key


@pytest.mark.parametrize("axis", [Axis.FFN, Axis.HEAD_COUNT])
def test_extension_by_one_hot_rows_of_each_layer_is_selection_layer_by_layer(axis: Axis) -> None:
    indices = [random_index(axis, seed) for seed in range(LAYERS)]
    assert not torch.equal(indices[0], indices[1])
    rows = torch.stack([one_hot(index[OLD[axis] :], OLD[axis]) for index in indices])
    extended = widen(zoo(), {axis: Extend(rows, divided=True)})
    for key, weight in zoo().items():
        if axis in weight.axes:
            for layer, index in enumerate(indices):
                alone = {key: replace(weight, value=weight.value[layer], axes=weight.axes[1:])}
                selected = widen(alone, {axis: Select(index)})[key].value
                assert torch.equal(extended[key].value[layer], selected), key


def test_a_divided_extension_of_each_layer_consumes_norms_of_each_layer() -> None:
    """A vector of each layer, as it would be in a norm before a product that cannot be divided."""
    weights = {"norm": replace(zoo()["layer_norm"], consumes=True)}
    indices = [random_index(Axis.WIDTH, seed) for seed in range(LAYERS)]
    rows = torch.stack([one_hot(index[WIDTH:], WIDTH) for index in indices])
    extended = widen(weights, {Axis.WIDTH: Extend(rows, divided=True)})["norm"].value
    for layer, index in enumerate(indices):
        assert torch.equal(extended[layer], Select(index).consume(weights["norm"].value[layer], 0))


def test_a_divided_extension_undoes_the_growth_of_what_its_consumers_sum() -> None:
    """By any matrix: the sum over the grown units of one entry's share is the entry."""
    matrix = torch.rand(7, WIDTH, dtype=torch.float64)
    grown = Extend(matrix, divided=True).consume(torch.eye(WIDTH, dtype=torch.float64), 1)
    torch.testing.assert_close(grown.sum(1), torch.ones(WIDTH, dtype=torch.float64))


sizes_of_axes = st.integers(1, 5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), sizes_of_axes, sizes_of_axes, sizes_of_axes, sizes_of_axes, st.booleans())
def test_extension_is_the_closed_form_layer_by_layer(
    layers: int, o: int, i: int, more_o: int, more_i: int, batched: bool
) -> None:
    """B W A^T for each layer, B = [I; M] and A = [I; N], with one map for all layers or one for each."""
    generator = torch.Generator().manual_seed(o + 10 * i)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix, bias = rand(layers, o, i), rand(layers, o)
    m, n = (rand(layers, more_o, o), rand(layers, more_i, i)) if batched else (rand(more_o, o), rand(more_i, i))
    weights: Weights = {
        "w": Weight(matrix, (Axis.LAYER, Axis.FFN, Axis.WIDTH), "ffn_up", consumes=True),
        "b": Weight(bias, (Axis.LAYER, Axis.FFN), "ffn_up"),
        "e": Weight(rand(7, i), (Axis.VOCAB, Axis.WIDTH), "embedding"),
        "p": Weight(rand(i, 3, 2, 2), (Axis.WIDTH, *[Axis.PATCH] * 3), "embedding"),
    }
    maps: Maps = {Axis.FFN: Extend(m), Axis.WIDTH: Extend(n)}
    if batched:
        del weights["e"], weights["p"]
    grown = widen(weights, maps)
    for layer in range(layers):
        b, a = (torch.cat([torch.eye(rows.shape[-1]), rows[layer] if batched else rows]) for rows in (m, n))
        torch.testing.assert_close(grown["w"].value[layer], b @ matrix[layer] @ a.T)
        torch.testing.assert_close(grown["b"].value[layer], b @ bias[layer])
    if not batched:
        torch.testing.assert_close(grown["e"].value, weights["e"].value @ a.T)
        torch.testing.assert_close(grown["p"].value, (a @ weights["p"].value.flatten(1)).unflatten(1, (3, 2, 2)))


def test_a_map_for_axis_and_role_goes_before_that_of_the_axis() -> None:
    weights = {role: Weight(torch.ones(1, 2), (Axis.LAYER, Axis.HEADS), role) for role in ("query", "key")}
    maps: Maps = {Axis.HEADS: Extend(torch.ones(1, 2)), (Axis.HEADS, "query"): Extend(torch.zeros(1, 2))}
    grown = widen(weights, maps)
    assert grown["query"].value.tolist() == [[1, 1, 0]] and grown["key"].value.tolist() == [[1, 1, 2]]


def test_a_map_for_the_gain_of_a_norm_goes_before_that_of_all_norms() -> None:
    axes = (Axis.WIDTH,)
    weights = {
        "gain": Weight(torch.ones(1), axes, "norm", subrole="norm_gain"),
        "bias": Weight(torch.ones(1), axes, "norm", subrole="norm_bias"),
        "embedding": Weight(torch.ones(1), axes, "embedding"),
    }
    numbers = {(Axis.WIDTH, "norm_gain"): 2.0, (Axis.WIDTH, "norm"): 3.0, Axis.WIDTH: 4.0}
    grown = widen(weights, {key: Extend(torch.tensor([[number]])) for key, number in numbers.items()})
    assert {name: weight.value.tolist() for name, weight in grown.items()} == {
        "gain": [1, 2], "bias": [1, 3], "embedding": [1, 4],
    }  # fmt: skip


def test_padding_makes_whole_copies_then_zeros_and_consumers_face_zeros() -> None:
    before, after = zoo(), widen(zoo(), {Axis.WIDTH: Pad(2 * WIDTH + 3, copies=2)})
    token, up = before["token"].value, before["up"].value / 2
    zeros = torch.zeros(7, 3, dtype=torch.float64)
    assert torch.equal(after["token"].value, torch.cat([token, token, zeros], 1))
    assert torch.equal(after["up"].value, torch.cat([up, up, torch.zeros(LAYERS, FFN, 3, dtype=torch.float64)], 2))
    assert torch.equal(after["last_norm"].value[: 2 * WIDTH], (before["last_norm"].value / 2).repeat(2))


def test_padding_fills_the_rest_of_producers_as_it_is_told() -> None:
    """By an average, as LEMON does: the mean of a unit's values does not change."""
    average = Pad(WIDTH + 5, rest=lambda value, dim: value.mean(dim, keepdim=True))
    before, after = zoo(), widen(zoo(), {Axis.WIDTH: average})
    for key in ("token", "down", "patch"):
        dim = before[key].axes.index(Axis.WIDTH)
        torch.testing.assert_close(after[key].value.mean(dim), before[key].value.mean(dim))
        torch.testing.assert_close(after[key].value.select(dim, WIDTH), before[key].value.mean(dim))
    assert (after["up"].value[..., WIDTH:] == 0).all()


def test_undivided_copies_are_copied_on_the_side_that_consumes_too() -> None:
    index = random_index(Axis.WIDTH)
    grown = widen(zoo(), {Axis.WIDTH: Select(index, divided=False)})
    assert torch.equal(grown["up"].value, zoo()["up"].value[..., index])
    assert torch.equal(grown["last_norm"].value, zoo()["last_norm"].value[index])


def test_the_number_of_a_copy_counts_the_units_before_it_that_copy_the_same() -> None:
    assert Select(torch.tensor([0, 2, 0, 1, 2, 0])).copy_number().tolist() == [0, 0, 1, 0, 1, 2]


def tiled(old: int, copies: int, **options: bool) -> Select:
    return Select(torch.arange(old).repeat(copies), **options)


def test_copies_kept_apart_make_block_diagonal_matrices() -> None:
    maps: Maps = {Axis.WIDTH: tiled(WIDTH, 3), Axis.FFN: tiled(FFN, 3)}
    grown, up = apart(widen(zoo(), maps), maps), zoo()["up"].value
    torch.testing.assert_close(grown["up"].value, torch.stack([torch.block_diag(each, each, each) for each in up]))
    for key in ("token", "decoder", "last_norm", "up_bias"):
        assert torch.equal(grown[key].value, widen(zoo(), maps)[key].value), key


def test_undivided_matrices_kept_apart_keep_their_entries() -> None:
    """As moments need it, which are no factors of a product."""
    maps: Maps = {Axis.WIDTH: tiled(WIDTH, 2, divided=False), Axis.FFN: tiled(FFN, 2, divided=False)}
    grown, up = apart(widen(zoo(), maps), maps), zoo()["up"].value
    assert torch.equal(grown["up"].value, torch.stack([torch.block_diag(each, each) for each in up]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (2, 4), (4, 2), (2, 3)])
def test_copies_kept_apart_see_the_whole_input_whatever_their_numbers(rows: int, columns: int) -> None:
    maps: Maps = {Axis.FFN: tiled(FFN, rows), Axis.WIDTH: tiled(WIDTH, columns)}
    inputs = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = apart(widen(zoo(), maps), maps)["up"].value @ inputs.repeat(columns)
    torch.testing.assert_close(found, (zoo()["up"].value @ inputs).repeat(1, rows))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pad(23),
        lambda: Select(random_index(Axis.WIDTH)),
        lambda: Extend(torch.randn(7, WIDTH)),
        lambda: Extend(torch.rand(7, WIDTH), divided=True),
    ],
)
def test_a_map_grows_weights_on_any_device(make: Callable[[], AxisMap]) -> None:
    weights = {key: replace(weight, value=weight.value.to("meta")) for key, weight in zoo().items()}
    for key, weight in widen(weights, {Axis.WIDTH: make()}).items():
        expected = [23 if axis is Axis.WIDTH else size for axis, size in zip(weight.axes, zoo()[key].value.shape, strict=True)]
        assert weight.value.is_meta and list(weight.value.shape) == expected


def test_growth_leaves_its_argument_alone() -> None:
    weights = zoo()
    widen(weights, {Axis.WIDTH: Select(random_index(Axis.WIDTH))})
    deepen(weights, [0, 1, 2, 2])
    for key, weight in zoo().items():
        assert torch.equal(weights[key].value, weight.value)


def test_layer_maps_by_index_by_matrix_and_by_function_agree() -> None:
    chosen = [0, 2, 1, 2, 0]
    by_index = deepen(zoo(), chosen)
    assert torch.equal(by_index["up"].value, zoo()["up"].value[chosen])
    for layer_map in (one_hot(torch.tensor(chosen), LAYERS), lambda name, weight: weight.value[chosen]):
        for name, weight in deepen(zoo(), layer_map).items():
            assert torch.equal(weight.value, by_index[name].value)


def test_deepening_grows_the_axis_that_it_is_told_and_no_other() -> None:
    weights = zoo() | {"class": Weight(torch.arange(6.0).reshape(2, 3), (Axis.CLASS_LAYER, Axis.WIDTH), "norm")}
    on_top, classes = deepen(weights, [0, 1, 2, 2]), deepen(weights, [0, 1, 1], Axis.CLASS_LAYER)
    for name, weight in weights.items():
        assert len(on_top[name].value) == (4 if Axis.LAYER in weight.axes else len(weight.value))
        assert len(classes[name].value) == (3 if name == "class" else len(weight.value))


def test_the_lengths_of_axes_follow_from_the_sizes() -> None:
    sizes = ModelConfig(layers=3, width=64, heads=8, kv_heads=2, ffn=100)
    expected = {
        Axis.LAYER: 3,
        Axis.WIDTH: 64,
        Axis.HEADS: 64,
        Axis.KV_HEADS: 16,
        Axis.HEAD_COUNT: 8,
        Axis.FFN: 100,
        Axis.HEAD_TRANSFORM: 64,
    }
    assert {axis: axis_length(axis, sizes) for axis in expected} == expected


def test_a_learned_map_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match=f"a learned map from 3 units cannot grow {OLD[Axis.FFN]}"):
        widen(zoo(), {Axis.FFN: Extend(torch.ones(2, 3))})
