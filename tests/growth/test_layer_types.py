"""Layer maps copy within a type: each new layer the nearest old one that is as its place demands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growbench import architectures
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.growth.carried import Carrier
from growbench.growth.layer_types import within_types
from growbench.growth.maps import interleave, stack
from growbench.growth.weights import Axis, Weight, deepen

SIZES = ModelConfig(layers=3, width=16, heads=2, vocabulary=32, positions=8)


def global_first(layers: int) -> tuple[str, ...]:
    """ModernBERT's order."""
    return tuple("local" if layer % 3 else "global" for layer in range(layers))


def test_by_hand() -> None:
    assert within_types(stack(2, 4), 2, global_first) == [0, 1, 1, 0]
    assert within_types(interleave(3, 6), 3, global_first) == [0, 1, 1, 0, 2, 2]
    assert within_types(stack(6, 9), 6, global_first) == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert within_types([3, 3, 3, 2, 0], 5, lambda layers: ("a", "b", "a", "b", "a")[:layers]) == [
        2,
        3,
        2,
        1,
        0,
    ]  # ties: the lower


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(1, 9), st.data())
@settings(deadline=None)
def test_each_layer_copies_the_nearest_of_its_type_or_all_is_refused(pattern: list[str], old: int, data: st.DataObject) -> None:
    """Looked for from the named layer outwards, downwards first."""
    named = data.draw(st.lists(st.integers(0, old - 1), min_size=1, max_size=12))
    kinds = [pattern[layer % len(pattern)] for layer in range(max(old, len(named)))]
    expected = []
    for place, meant in enumerate(named):
        outwards = [each for distance in range(old) for each in (meant - distance, meant + distance) if 0 <= each < old]
        expected += [next((layer for layer in outwards if kinds[layer] == kinds[place]), None)]
    if None in expected:
        with pytest.raises(
            UsageError, match=r"is of type \w, and with \d+ layers? there is only .*: grow from at least \d+ layers"
        ):
            within_types(named, old, lambda layers: tuple(kinds[:layers]))
    else:
        assert within_types(named, old, lambda layers: tuple(kinds[:layers])) == expected


def test_a_type_that_is_missing_is_named_with_what_would_do() -> None:
    said = (
        "layer 2 of 4 is of type sliding_attention, and with 1 layer there is only full_attention to copy: "
        "grow from at least 2 layers"
    )
    weights = architectures.get("modernbert").read(architectures.get("modernbert").build(replace(SIZES, layers=1)))
    with pytest.raises(UsageError) as refused:
        deepen(weights, [0, 0, 0, 0])
    assert str(refused.value) == said


def test_a_layer_that_is_not_there_is_an_error_and_not_its_neighbour() -> None:
    for layer in (-1, 2):
        with pytest.raises(IndexError, match=f"layer {layer} is to be copied, and there are 2"):
            within_types([0, layer], 2, global_first)


@pytest.mark.parametrize("order", [stack, interleave])
@pytest.mark.parametrize(("old", "new"), [(2, 4), (3, 5), (4, 11)])
def test_modernberts_layers_are_copies_of_layers_with_their_attention(old: int, new: int, order: type[stack]) -> None:
    """As the modules of the two models say which theirs is."""
    architecture = architectures.get("modernbert")
    small, large = (architecture.build(replace(SIZES, layers=layers)) for layers in (old, new))
    architecture.write(deepen(architecture.read(small), order(old, new)), large)
    for layer in large.model.layers:  # type: ignore[union-attr]
        equal = [each for each in small.model.layers if torch.equal(each.mlp.Wi.weight, layer.mlp.Wi.weight)]  # type: ignore[union-attr]
        assert [each.attention_type for each in equal] == [layer.attention_type]


def test_every_weight_and_its_state_follow_the_same_layers() -> None:
    """Also where a weight was made without types, beside those of a model that has them."""
    architecture = architectures.get("modernbert")
    weights = architecture.read(architecture.build(SIZES))
    own = torch.randn(3, 16)
    carrier = Carrier("grown")
    for weight in weights.values():
        carrier.set(weight.value, {"exp_avg": weight.value + 1, "exp_avg_sq": weight.value.square()})
    with carrier.carrying():
        deeper = deepen({**weights, "layers.own": Weight(own, (Axis.LAYER, Axis.WIDTH), "own")}, [2, 2, 2, 0, 1])
    assert torch.equal(deeper.pop("layers.own").value, own[[0, 2, 2, 0, 1]])
    for name, weight in deeper.items():
        chosen = [0, 2, 2, 0, 1] if weight.axes[0] is Axis.LAYER else slice(None)
        assert torch.equal(weight.value, weights[name].value[chosen]), name
        state = carrier.of(weight.value)
        assert isinstance(state, dict) and torch.equal(state["exp_avg"], weights[name].value[chosen] + 1), name


def test_where_all_layers_are_alike_the_map_is_as_it_is() -> None:
    for name in ("gpt2", "llama"):
        architecture = architectures.get(name)
        weights = architecture.read(architecture.build(SIZES))
        deeper = deepen(weights, [2, 0, 1, 1])
        query = "layers.attention.query.weight"
        assert torch.equal(deeper[query].value, weights[query].value[[2, 0, 1, 1]])


def test_a_matrix_mixes_layers_of_all_types() -> None:
    architecture = architectures.get("modernbert")
    weights = architecture.read(architecture.build(SIZES))
    up = "layers.ffn.up.weight"
    assert torch.allclose(deepen(weights, torch.ones(4, 3))[up].value, weights[up].value.sum(0).expand(4, -1, -1))
