"""Canonical weights: reading and writing lose nothing; widen and deepen do what their closed forms say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from growbench import architectures
from growbench.config import ModelConfig
from growbench.weights import Axis, Extend, Maps, Project, Select, Weight, Weights, deepen, widen

SMALL = ModelConfig(layers=3, width=16, heads=2, vocabulary=37, positions=10)
CELLS = [(name, tied) for name in architectures.names() for tied in (True, False)]
each_cell = pytest.mark.parametrize(("name", "tied"), CELLS)


def random_model(name: str, sizes: ModelConfig) -> nn.Module:
    """Every parameter random, biases and norms too, so that nothing is equal by chance."""
    torch.manual_seed(0)
    model = architectures.get(name).build(sizes).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def logits(model: nn.Module, vocabulary: int = 37, length: int = 10) -> Tensor:
    tokens = torch.randint(vocabulary, (4, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens)


def relative_error(model: nn.Module, other: nn.Module) -> float:
    expected = logits(model)
    return ((logits(other) - expected).norm() / expected.norm()).item()


@each_cell
def test_write_after_read_is_bit_identical(name: str, tied: bool) -> None:
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    model, copy = random_model(name, sizes), architecture.build(sizes).double()
    architecture.write(architecture.read(model), copy)
    for key, value in model.state_dict().items():
        assert torch.equal(value, copy.state_dict()[key]), key


@each_cell
def test_every_parameter_is_in_the_table_once(name: str, tied: bool) -> None:
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    model = random_model(name, sizes)
    weights = architecture.read(model)
    assert sum(w.value.numel() for w in weights.values()) == sum(p.numel() for p in model.parameters())
    assert architecture.native(weights, sizes).keys() == dict(model.named_parameters()).keys()
    for weight in weights.values():
        assert len(weight.axes) == weight.value.dim()


@each_cell
def test_ties_share_storage_after_write(name: str, tied: bool) -> None:
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    model = architecture.write(architecture.read(random_model(name, sizes)), architecture.build(sizes).double())
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied


@each_cell
def test_models_compute_what_transformers_computes(name: str, tied: bool) -> None:
    model = random_model(name, replace(SMALL, tied=tied))
    shipped = type(model).__base__(model.config).double().eval()
    shipped.load_state_dict(model.state_dict())
    tokens = torch.randint(37, (4, 10))
    with torch.no_grad():
        expected = shipped(tokens).logits.flatten(0, 1)
        torch.testing.assert_close(model(tokens), expected, rtol=1e-12, atol=1e-12)  # fused activations round differently
        scored = torch.tensor([1, 7, 12, 39])
        torch.testing.assert_close(model(tokens, scored), expected[scored])


def test_conv1d_is_transposed_and_split_in_query_key_value() -> None:
    model = random_model("gpt2", SMALL)
    weights = architectures.get("gpt2").read(model)
    fused = model.transformer.h[1].attn.c_attn.weight  # (in, 3 x out)
    assert torch.equal(weights["layers.attention.key.weight"].value[1], fused[:, 16:32].T)


@each_cell
@pytest.mark.parametrize("factor", [2, 3])
def test_fpi_preserves_the_function_at_integer_ratios(name: str, tied: bool, factor: int) -> None:
    """Chen et al. 2022: widening by copies, consumers divided, computes the same. Uneven copies of heads and neurons too."""
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    wide = replace(sizes, width=factor * 16, heads=factor * 2, ffn=factor * 64)
    generator = torch.Generator().manual_seed(2)
    heads = torch.cat([torch.arange(2), torch.randint(2, (factor * 2 - 2,), generator=generator)])
    maps: Maps = {
        Axis.WIDTH: Select(torch.arange(wide.width) % 16),
        Axis.HEAD_TRANSFORM: Select(torch.arange(wide.width) // factor),
        Axis.HEADS: Select((heads[:, None] * 8 + torch.arange(8)).flatten()),
        Axis.FFN: Select(torch.cat([torch.arange(64), torch.randint(64, (wide.ffn - 64,), generator=generator)])),
    }
    model = random_model(name, sizes)
    grown = architecture.write(widen(architecture.read(model), maps), architecture.build(wide).double().eval())
    assert relative_error(model, grown) < 1e-12


def test_a_missing_division_at_a_tied_decoder_is_noticed() -> None:
    """The check above can fail: a norm that does not compensate for the tied decoder changes the output by its whole size."""
    architecture = architectures.get("gpt2")
    model = random_model("gpt2", SMALL)
    weights = {name: replace(w, consumes=w.consumes and w.role != "norm") for name, w in architecture.read(model).items()}
    double = Select(torch.arange(32) % 16)
    wide = replace(SMALL, width=32, heads=4, ffn=128)
    maps: Maps = {Axis.WIDTH: double, Axis.HEADS: double, Axis.FFN: Select(torch.arange(128) % 64)}
    grown = architecture.write(widen(weights, maps), architecture.build(wide).double().eval())
    assert relative_error(model, grown) > 0.5


@each_cell
def test_deepening_by_zero_residual_branches_is_the_identity_in_pre_norm(name: str, tied: bool) -> None:
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    model = random_model(name, sizes)
    deeper = deepen(architecture.read(model), [0, 1, 2, 2])
    for weight in deeper.values():
        if weight.residual:
            weight.value[3] = 0
    grown = architecture.write(deeper, architecture.build(replace(sizes, layers=4)).double().eval())
    if architecture.norm == "pre":
        assert relative_error(model, grown) == 0
    else:
        assert relative_error(model, grown) > 1e-3


sizes_of_axes = st.integers(1, 5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), sizes_of_axes, sizes_of_axes, sizes_of_axes, sizes_of_axes, st.booleans())
def test_projection_is_the_closed_form_layer_by_layer(layers: int, o: int, i: int, new_o: int, new_i: int, batched: bool) -> None:
    """B W A^T for each layer, with one map for all layers or one for each."""
    generator = torch.Generator().manual_seed(o + 10 * i)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix, bias = rand(layers, o, i), rand(layers, o)
    out, into = (rand(layers, new_o, o), rand(layers, new_i, i)) if batched else (rand(new_o, o), rand(new_i, i))
    weights: Weights = {
        "w": Weight(matrix, (Axis.LAYER, Axis.FFN, Axis.WIDTH), "ffn_up", consumes=True),
        "b": Weight(bias, (Axis.LAYER, Axis.FFN), "ffn_up"),
        "e": Weight(rand(7, i), (Axis.VOCAB, Axis.WIDTH), "embedding"),
    }
    maps: Maps = {Axis.FFN: Project(out), Axis.WIDTH: Project(into)}
    if batched:
        del weights["e"]
    grown = widen(weights, maps)
    for layer in range(layers):
        b, a = (out[layer], into[layer]) if batched else (out, into)
        torch.testing.assert_close(grown["w"].value[layer], b @ matrix[layer] @ a.T)
        torch.testing.assert_close(grown["b"].value[layer], b @ bias[layer])
    if not batched:
        torch.testing.assert_close(grown["e"].value, weights["e"].value @ into.T)


def test_extend_is_the_projection_by_identity_over_matrix() -> None:
    weights = {"w": Weight(torch.randn(2, 3, 4), (Axis.LAYER, Axis.FFN, Axis.WIDTH), "ffn_up", consumes=True)}
    m, n = torch.randn(2, 2, 3), torch.randn(5, 4)
    extended = widen(weights, {Axis.FFN: Extend(m), Axis.WIDTH: Extend(n)})
    b = torch.cat([torch.eye(3).expand(2, 3, 3), m], 1)
    projected = widen(weights, {Axis.FFN: Project(b), Axis.WIDTH: Project(torch.cat([torch.eye(4), n]))})
    torch.testing.assert_close(extended["w"].value, projected["w"].value)


@each_cell
def test_selection_is_a_projection_by_one_hot_rows(name: str, tied: bool) -> None:
    """FPI as two matrices: one-hot rows to produce, the same divided by the copies to consume."""
    index = torch.cat([torch.arange(16), torch.randint(16, (7,), generator=torch.Generator().manual_seed(4))])
    one_hot = torch.eye(16, dtype=torch.float64)[index]
    as_matrices = Project(one_hot, one_hot / one_hot.sum(0)[index][:, None])
    weights = architectures.get(name).read(random_model(name, replace(SMALL, tied=tied)))
    axes = (Axis.WIDTH, Axis.HEADS, Axis.HEAD_TRANSFORM)
    selected, projected = (widen(weights, {axis: axis_map for axis in axes}) for axis_map in (Select(index), as_matrices))
    for key, weight in selected.items():
        torch.testing.assert_close(projected[key].value, weight.value)


def test_a_map_for_axis_and_role_goes_before_that_of_the_axis() -> None:
    weights = {role: Weight(torch.ones(1, 2), (Axis.LAYER, Axis.HEADS), role) for role in ("query", "key")}
    maps: Maps = {Axis.HEADS: Project(torch.ones(3, 2)), (Axis.HEADS, "query"): Project(torch.zeros(3, 2))}
    grown = widen(weights, maps)
    assert grown["query"].value.sum() == 0 and grown["key"].value.sum() == 6


def test_layer_maps_by_index_by_matrix_and_by_function_agree() -> None:
    weights = architectures.get("bert").read(random_model("bert", SMALL))
    chosen = [0, 2, 1, 2, 0]
    one_hot = torch.eye(3, dtype=torch.float64)[chosen]
    by_index = deepen(weights, chosen)
    for layer_map in (one_hot, lambda name, weight: weight.value[chosen]):
        for name, weight in deepen(weights, layer_map).items():
            torch.testing.assert_close(weight.value, by_index[name].value, rtol=0, atol=0)


@each_cell
def test_growth_is_differentiable_to_maps_and_layer_mixing(name: str, tied: bool) -> None:
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    wide = replace(sizes, width=32, heads=4, ffn=64, layers=4)
    residual = torch.randn(16, 16, dtype=torch.float64, requires_grad=True)
    depth = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    extend = Extend(residual)
    maps: Maps = {Axis.WIDTH: extend, Axis.HEADS: extend, Axis.HEAD_TRANSFORM: extend}
    weights = deepen(widen(architecture.read(random_model(name, sizes)), maps), depth)
    model = architecture.build(wide).double()
    tokens = torch.randint(37, (2, 10))
    output: Tensor = torch.func.functional_call(model, architecture.native(weights, wide), (tokens,))
    output.square().mean().backward()
    assert residual.grad is not None and residual.grad.abs().min() > 0
    assert depth.grad is not None and depth.grad.abs().min() > 0


def test_write_refuses_misshapen_and_missing_weights() -> None:
    architecture = architectures.get("gpt2")
    weights = architecture.read(random_model("gpt2", SMALL))
    with pytest.raises(ValueError, match="shape"):
        architecture.write(weights, architecture.build(replace(SMALL, width=32)).double())
    with pytest.raises((ValueError, KeyError)):
        architecture.write({k: w for k, w in weights.items() if k != "norm.bias"}, architecture.build(SMALL).double())
