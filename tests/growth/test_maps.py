"""Index maps: which old unit, head or layer each new one copies."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.maps import copying, even, head_maps, interleave, random, stack, stack_and_top, tiling
from growbench.growth.weights import Axis, Select, axis_length

seeds = st.integers(0, 1000)
old_and_new = st.integers(1, 12).flatmap(lambda old: st.tuples(st.just(old), st.integers(old, 40)))
old_and_factor = st.tuples(st.integers(1, 12), st.integers(1, 5))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(heads: int, kv_heads: int = 0, head_size: int = 4) -> ModelConfig:
    return ModelConfig(layers=1, width=heads * head_size, heads=heads, kv_heads=kv_heads)


@settings(deadline=None)
@given(old_and_new, seeds)
def test_even_keeps_the_old_units_and_copies_each_as_often_as_any_other_but_for_one_time(
    sizes: tuple[int, int], seed: int
) -> None:
    old, new = sizes
    index = even(old, new, rng(seed))
    copies = torch.bincount(index, minlength=old)
    assert len(index) == new and torch.equal(index[:old], torch.arange(old))
    assert copies.max() - copies.min() <= 1


@settings(deadline=None)
@given(old_and_factor, seeds)
def test_even_is_exactly_even_at_integer_ratios(sizes: tuple[int, int], seed: int) -> None:
    old, factor = sizes
    assert torch.equal(even(old, factor * old, rng(seed)), torch.arange(factor * old) % old)


@settings(deadline=None)
@given(old_and_new, seeds)
def test_random_keeps_the_old_units_and_then_copies_some_of_them(sizes: tuple[int, int], seed: int) -> None:
    old, new = sizes
    index = random(old, new, rng(seed))
    assert len(index) == new and torch.equal(index[:old], torch.arange(old))
    assert index.min() >= 0 and index.max() < old


def test_random_copies_every_unit_with_the_same_probability() -> None:
    copies = torch.bincount(random(4, 40_004, rng(0))[4:], minlength=4)
    assert (copies - 10_000).abs().max() < 400  # 4.6 standard deviations


@pytest.mark.parametrize("draw", [even, random])
def test_maps_depend_on_the_generator_alone(draw: type[even]) -> None:
    drawn = [draw(8, 13, rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def check_heads(source: ModelConfig, target: ModelConfig, heads: Tensor, key_value_heads: Tensor) -> None:
    """Every old head has a copy, and every copy meets a copy of the keys and values that the old head met."""
    assert len(heads) == target.heads and len(key_value_heads) == target.key_value_heads
    assert set(heads.tolist()) == set(range(source.heads))
    assert set(key_value_heads.tolist()) == set(range(source.key_value_heads))
    old_group, new_group = source.heads // source.key_value_heads, target.heads // target.key_value_heads
    for new, old in enumerate(heads.tolist()):
        assert key_value_heads[new // new_group] == old // old_group


@settings(deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(st.integers(0, 5), st.integers(0, 3)), seeds)
def test_every_head_keeps_its_keys_and_values_as_groups_and_their_number_grow(
    old: tuple[int, int], added: tuple[int, int], seed: int
) -> None:
    (groups, size), (more_groups, more_size) = old, added
    source = model(groups * size, groups)
    target = model((groups + more_groups) * (size + more_size), groups + more_groups)
    check_heads(source, target, *head_maps(source, target, rng(seed)))


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), seeds)
def test_groups_shrink_if_their_heads_have_enough_other_places_to_go(
    groups: int, size: int, new_groups: int, new_size: int, seed: int
) -> None:
    """Whether growing is refused depends on the sizes, never on the seed."""
    source, target = model(groups * size, groups), model((groups + new_groups) * new_size, groups + new_groups)
    # evenly copied, an old group gets that many of the new ones at least
    enough = (groups + new_groups) // groups * new_size >= size
    if enough:
        check_heads(source, target, *head_maps(source, target, rng(seed)))
    else:
        with pytest.raises(UsageError, match=f"a group of {size} heads has only"):
            head_maps(source, target, rng(seed))


def test_heads_without_groups_are_their_own_key_value_heads() -> None:
    heads, key_value_heads = head_maps(model(3), model(7), rng(0))
    assert torch.equal(heads, key_value_heads)
    assert torch.equal(heads[:3], torch.arange(3))


def test_a_larger_group_holds_the_heads_of_the_old_one_in_turn() -> None:
    heads, key_value_heads = head_maps(model(4, 2), model(10, 2), rng(0))
    assert heads.tolist() == [0, 1, 0, 1, 0, 2, 3, 2, 3, 2]
    assert key_value_heads.tolist() == [0, 1]


def test_another_head_size_is_refused() -> None:
    with pytest.raises(UsageError, match=r"heads are copied whole: target\.width / target\.heads = 8 must equal the source's 4"):
        head_maps(model(2), model(2, head_size=8), rng(0))


def test_a_group_without_room_for_its_heads_is_refused() -> None:
    with pytest.raises(UsageError, match="heads / kv_heads from 6 / 2 to 6 / 3: a group of 3 heads has only 2 places to go"):
        head_maps(model(6, 2), model(6, 3), rng(0))


@settings(deadline=None)
@given(old_and_factor, seeds)
def test_copying_maps_every_growing_axis_from_its_old_length_to_its_new_one(sizes: tuple[int, int], seed: int) -> None:
    source = ModelConfig(layers=1, width=sizes[0] * 12, heads=sizes[0] * 2, kv_heads=sizes[0], ffn=7)
    target = ModelConfig(layers=1, width=source.width * sizes[1], heads=source.heads * sizes[1], kv_heads=sizes[0], ffn=50)
    maps = copying(source, target, rng(seed))
    for axis in (Axis.WIDTH, Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_COUNT, Axis.FFN, Axis.HEAD_TRANSFORM):
        index = maps[axis].index
        assert len(index) == axis_length(axis, target) and set(index.tolist()) == set(range(axis_length(axis, source)))


def test_copying_takes_heads_whole_and_one_map_for_the_whole_residual_stream() -> None:
    maps = copying(model(2), model(5), rng(3))
    heads, count, residual = maps[Axis.HEADS], maps[Axis.HEAD_COUNT], maps[Axis.WIDTH]
    assert isinstance(heads, Select) and isinstance(count, Select)
    assert torch.equal(heads.index.reshape(5, 4), count.index[:, None] * 4 + torch.arange(4))
    assert maps[Axis.HEAD_TRANSFORM] is residual


def test_tiling_repeats_units_and_whole_heads_in_order() -> None:
    source = ModelConfig(layers=1, width=4, heads=2, ffn=3)
    maps = tiling(source, ModelConfig(layers=1, width=8, heads=4, ffn=7))
    assert maps[Axis.WIDTH].index.tolist() == maps[Axis.HEADS].index.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert maps[Axis.HEAD_COUNT].index.tolist() == [0, 1, 0, 1]
    assert maps[Axis.FFN].index.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_tiled_heads_keep_their_keys_and_values() -> None:
    source, target = model(4, 2), model(12, 3)
    maps = tiling(source, target)
    heads, groups = maps[Axis.HEAD_COUNT].index, maps[Axis.KV_HEADS].index[::4] // 4
    check_heads(source, target, heads, groups)
    assert groups.tolist() == [0, 1, 0]
    with pytest.raises(UsageError, match="heads are copied whole"):
        tiling(model(2), model(2, head_size=8))


def test_layer_maps_of_an_even_and_of_an_uneven_number() -> None:
    assert stack(3, 6) == stack_and_top(3, 6) == [0, 1, 2, 0, 1, 2]
    assert interleave(3, 6) == [0, 0, 1, 1, 2, 2]
    assert stack(3, 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert stack_and_top(3, 8) == [0, 1, 2, 0, 1, 2, 1, 2]
    assert interleave(3, 8) == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("layer_map", [stack, stack_and_top, interleave])
@settings(deadline=None)
@given(sizes=old_and_new)
def test_layer_maps_copy_every_layer_as_often_as_any_other_but_for_one_time(
    layer_map: type[stack], sizes: tuple[int, int]
) -> None:
    old, new = sizes
    chosen = layer_map(old, new)
    copies = Counter(chosen)
    assert len(chosen) == new and copies.keys() == set(range(old))
    assert max(copies.values()) - min(copies.values()) <= 1
    assert layer_map(old, old) == list(range(old))


@settings(deadline=None)
@given(old_and_new)
def test_stacks_begin_with_the_old_model_and_go_on_in_its_order(sizes: tuple[int, int]) -> None:
    old, new = sizes
    assert all(layer == place % old for place, layer in enumerate(stack(old, new)))
    whole, rest = divmod(new, old)
    assert stack_and_top(old, new)[: whole * old] == list(range(old)) * whole
    assert stack_and_top(old, new)[whole * old :] == list(range(old))[old - rest :]


@settings(deadline=None)
@given(old_and_new)
def test_interleaving_repeats_layers_in_place(sizes: tuple[int, int]) -> None:
    chosen = interleave(*sizes)
    assert chosen == sorted(chosen) and chosen[0] == 0 and chosen[-1] == sizes[0] - 1
