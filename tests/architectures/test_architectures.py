"""Every architecture: its table loses nothing, its models are the libraries', and growing by copies keeps their function."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional
from transformers import masking_utils

from growbench import architectures
from growbench.config.schema import ModelConfig
from growbench.data import Batch
from growbench.errors import UsageError
from growbench.growth import maps
from growbench.growth.weights import Axis, Extend, Maps, Select, Weights, axis_length, deepen, widen
from growbench.method import task_loss

# Few sizes are equal, so that no axis is taken for another by chance. Text has no patches.
SMALL = ModelConfig(layers=3, width=16, heads=2, ffn=40, vocabulary=37, positions=9, patch=4)
OTHER = {"kv_heads": 1, "class_layers": 1, "dropout": 0.1, "drop_path": 0.1, "tied": False}

NAMES = architectures.names()
TEXT = [name for name in NAMES if architectures.get(name).objective != "classes"]
IMAGES = [name for name in NAMES if name not in TEXT]
ROTARY = {name for name in NAMES if getattr(architectures.get(name).library, "rotary", False)}

each = pytest.mark.parametrize("name", NAMES)
TYINGS = [(name, tied) for name in NAMES for tied in (True, False) if tied or "tied" in architectures.get(name).options]
each_tying = pytest.mark.parametrize(("name", "tied"), TYINGS)
each_option = pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in NAMES] + [(name, {key: OTHER[key]}) for name in NAMES for key in architectures.get(name).options],
)


def has_types_for(name: str, layers: int, deeper: int) -> bool:
    """Whether every type of layer of the deeper model is one of the other's."""
    types = architectures.get(name).layer_types
    return set(types(replace(SMALL, layers=deeper))) == set(types(replace(SMALL, layers=layers)))


def random_model(name: str, sizes: ModelConfig) -> Any:
    """Every parameter random, biases and norms too, so that nothing is equal by chance. It is built once, and copied."""
    model = copy.deepcopy(_random_model(name, sizes))
    torch.manual_seed(1)  # whether it was there or not, a test draws the same numbers next
    return model


@cache
def _random_model(name: str, sizes: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    model = architectures.get(name).build(sizes).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs_of(name: str, sizes: ModelConfig) -> Tensor:
    """Four sequences or images, always the same. Token 1 is among them: transformers' RoBERTa pads with it."""
    generator = torch.Generator().manual_seed(1)
    if name in IMAGES:
        side = sizes.patch * math.isqrt(sizes.positions)
        return torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64)
    tokens = torch.randint(sizes.vocabulary, (4, sizes.positions), generator=generator)
    tokens[0, 2:4] = tokens[1, -1] = 1
    return tokens


def logits(name: str, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(inputs_of(name, architectures.sizes_of(model)))


def relative_error(name: str, model: nn.Module, other: nn.Module) -> float:
    expected = logits(name, model)
    return ((logits(name, other) - expected).norm() / expected.norm()).item()


def grown(name: str, weights: Weights, sizes: ModelConfig) -> nn.Module:
    """The model of these sizes that holds the weights."""
    architecture = architectures.get(name)
    return architecture.write(weights, architecture.build(sizes).double().eval())


def widened(name: str, model: nn.Module, sizes: ModelConfig, seed: int = 2) -> nn.Module:
    """The model grown to these sizes by copies."""
    copies = maps.copying(architectures.sizes_of(model), sizes, torch.Generator().manual_seed(seed))
    return grown(name, widen(architectures.get(name).read(model), copies), sizes)


@each_option
def test_write_after_read_is_bit_identical(name: str, options: dict[str, Any]) -> None:
    sizes = replace(SMALL, **options)
    model = random_model(name, sizes)
    copy = grown(name, architectures.get(name).read(model), sizes).state_dict()
    assert model.state_dict().keys() == copy.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, copy[key]), key


@each_tying
def test_a_model_without_layers_is_embeddings_and_head(name: str, tied: bool) -> None:
    """Its weights are those of a deeper model that are of no layer."""
    architecture, none = architectures.get(name), replace(SMALL, layers=0, tied=tied)
    model = random_model(name, none)
    weights, deeper = architecture.read(model), architecture.read(random_model(name, replace(none, layers=2)))
    assert weights.keys() == {key for key in deeper if not key.startswith("layers.")}
    assert {id(parameter) for *_, parameter in architecture.parameters(model)} == {id(each) for each in model.parameters()}
    assert relative_error(name, model, grown(name, weights, none)) == 0
    with pytest.raises(ValueError, match=r"weights lack layers\.attention"):
        architecture.write(weights, architecture.build(replace(none, layers=1)))


@each_option
def test_the_table_covers_every_parameter_once(name: str, options: dict[str, Any]) -> None:
    """But for what a layer 0 without a norm of its own reads from elsewhere: that is in the canonical weights twice."""
    architecture, sizes = architectures.get(name), replace(SMALL, **options)
    model = random_model(name, sizes)
    weights = architecture.read(model)
    read_twice = sum(model.get_parameter(row.first).numel() for row in architecture.table(sizes) if row.first)
    assert sum(w.value.numel() for w in weights.values()) == sum(p.numel() for p in model.parameters()) + read_twice
    assert architecture.native(weights, sizes).keys() == dict(model.named_parameters()).keys()


@each_option
def test_every_axis_has_the_length_that_the_sizes_give_it(name: str, options: dict[str, Any]) -> None:
    architecture, sizes = architectures.get(name), replace(SMALL, **options)
    weights = architecture.read(architecture.build(sizes))
    for key, weight in weights.items():
        assert len(weight.axes) == weight.value.dim(), key
        for axis, found in zip(weight.axes, weight.value.shape, strict=True):
            if axis in maps.copying(sizes, sizes, torch.Generator()) or axis is Axis.LAYER:
                assert found == axis_length(axis, sizes), key


@each_option
def test_parameters_names_every_parameter_by_its_canonical_weights(name: str, options: dict[str, Any]) -> None:
    architecture = architectures.get(name)
    model = random_model(name, replace(SMALL, **options))
    weights, named = architecture.read(model), list(architecture.parameters(model))
    assert {id(parameter) for *_, parameter in named} == {id(parameter) for parameter in model.parameters()}
    assert len({(key, layer) for key, layer, _ in named}) == len(named)
    for key, layer, parameter in named:
        value = weights[key].value if layer is None else weights[key].value[layer]
        assert torch.isin(value, parameter).all(), key


@pytest.mark.parametrize(("name", "tied"), [(name, tied) for name in TEXT for tied in (True, False)])
def test_ties_share_storage_after_write(name: str, tied: bool) -> None:
    sizes = replace(SMALL, tied=tied)
    model: Any = grown(name, architectures.get(name).read(random_model(name, sizes)), sizes)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@each
def test_the_stack_is_where_the_growing_layers_are(name: str) -> None:
    module, attribute = architectures.get(name).stack(architectures.get(name).build(SMALL))
    assert len(getattr(module, attribute)) == SMALL.layers


def test_conv1d_is_transposed_and_split_in_query_key_value() -> None:
    model = random_model("gpt2", SMALL)
    weights = architectures.get("gpt2").read(model)
    fused = model.transformer.h[1].attn.c_attn.weight  # (in, 3 x out)
    assert torch.equal(weights["layers.attention.key.weight"].value[1], fused[:, 16:32].T)


def test_the_first_layer_of_modernbert_takes_the_norm_of_the_embeddings() -> None:
    model = random_model("modernbert", SMALL)
    weights = architectures.get("modernbert").read(model)
    norms = weights["layers.attention.norm.weight"].value
    assert torch.equal(norms[0], weights["embeddings.norm.weight"].value)
    assert torch.equal(norms[1], model.model.layers[1].attn_norm.weight)


def turned(x: Tensor, base: float) -> Tensor:
    """Rotary positions: the pairs (i, i + half) of each head's dimensions are turned by position / base^(i / half)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / base ** (torch.arange(half, dtype=x.dtype) / half)
    a, b = x.split(half, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def turned_in_two(x: Tensor, side: int) -> Tensor:
    """DINOv3: half of the pairs is turned by a patch's row, half by its column, both from -1 to 1; no other token is turned."""
    quarter = x.shape[-1] // 4
    places = (torch.arange(side, dtype=x.dtype) + 0.5) / side * 2 - 1
    grid = torch.cartesian_prod(places, places)  # (patches, 2)
    angles = (2 * math.pi * grid[:, :, None] / 100 ** (torch.arange(quarter, dtype=x.dtype) / quarter)).flatten(1)
    others, patches = x.split([x.shape[-2] - side**2, side**2], -2)
    a, b = patches.chunk(2, -1)
    patches = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
    return torch.cat([others, patches], -2)


class ByHand:
    """A transformer layer from its canonical weights, each used for what its name says."""

    def __init__(self, name: str, weights: Weights, layer: int, sizes: ModelConfig) -> None:
        own = {key: weight.value[layer] for key, weight in weights.items() if key.startswith("layers.")}
        self.own = {key.removeprefix("layers."): value for key, value in own.items()}
        self.name, self.sizes, self.architecture = name, sizes, architectures.get(name)
        self.eps = {"bert": 1e-12, "vit": 1e-6, "cait": 1e-6}.get(name, 1e-5 if self.architecture.centred else 1e-6)
        self.eps = 1e-5 if name.startswith("olmo") else self.eps

    def __call__(self, x: Tensor) -> Tensor:
        if self.architecture.norm == "pre":
            x = x + self.norm("attention.post_norm", self.attention(self.norm("attention.norm", x)))
            return x + self.norm("ffn.post_norm", self.ffn(self.norm("ffn.norm", x)))
        x = self.norm("attention.norm", x + self.attention(x))
        return self.norm("ffn.norm", x + self.ffn(x))

    def linear(self, key: str, y: Tensor) -> Tensor:
        return functional.linear(y, self.own[f"{key}.weight"], self.own.get(f"{key}.bias"))

    def norm(self, key: str, y: Tensor) -> Tensor:
        """Unchanged if there is no such norm."""
        gain, bias = (self.own.get(f"{key}.{part}") for part in ("weight", "bias"))
        if gain is None:
            return y
        if self.architecture.centred:
            return functional.layer_norm(y, y.shape[-1:], gain, bias, self.eps)
        return y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt() * gain

    def heads(self, part: str, y: Tensor) -> Tensor:
        """Query, key or value (N, heads, T, head size): normed over all heads, or each by itself, as the norm is long."""
        y = self.linear(f"attention.{part}", y)
        long = len(self.own.get(f"attention.{part}_norm.weight", y[0, 0]))
        y = self.norm(f"attention.{part}_norm", y.unflatten(-1, (-1, long))).flatten(-2)
        heads = y.unflatten(-1, (-1, self.sizes.head_size)).transpose(1, 2)
        if self.name in ROTARY and part != "value":
            heads = turned(heads, {"olmo3": 5e5, "smollm3": 2e6}.get(self.name, 1e4))
        if self.name == "dinov3" and part != "value":
            heads = turned_in_two(heads, math.isqrt(self.sizes.positions))
        return heads if part == "query" else heads.repeat_interleave(self.sizes.heads // self.sizes.key_value_heads, 1)

    def attention(self, y: Tensor) -> Tensor:
        query, key, value = (self.heads(part, y) for part in ("query", "key", "value"))
        scores = query @ key.mT / self.sizes.head_size**0.5
        if self.architecture.objective == "causal":
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
        if self.name == "cait":
            scores = self.linear("attention.talk_before", scores.movedim(1, -1)).movedim(-1, 1)
        shares = scores.softmax(-1)
        if self.name == "cait":
            shares = self.linear("attention.talk_after", shares.movedim(1, -1)).movedim(-1, 1)
        return self.own.get("attention.scale", 1) * self.linear("attention.out", (shares @ value).transpose(1, 2).flatten(2))

    def ffn(self, y: Tensor) -> Tensor:
        gelu_tanh = partial(functional.gelu, approximate="tanh")
        usual = functional.gelu if self.architecture.centred else functional.silu
        activation = {"gpt2": gelu_tanh, "gemma3": gelu_tanh}.get(self.name, usual)
        up = self.linear("ffn.up", y)
        inner = activation(self.linear("ffn.gate", y)) * up if "ffn.gate.weight" in self.own else activation(up)
        return self.own.get("ffn.scale", 1) * self.linear("ffn.down", inner)


@pytest.mark.parametrize(("name", "kv_heads"), [(name, 0) for name in NAMES] + [("llama", 2), ("llama", 1)])
def test_canonical_names_say_what_the_library_uses_each_weight_for(name: str, kv_heads: int) -> None:
    """The second layer of the model, and the same by hand. Rotary positions are single precision in transformers."""
    sizes = replace(SMALL, heads=4, kv_heads=kv_heads)
    model, seen = random_model(name, sizes), []
    module, attribute = architectures.get(name).stack(model)
    hook = getattr(module, attribute)[1].register_forward_hook(lambda layer, given, result: seen.extend([given[0], result]))
    logits(name, model)
    hook.remove()
    given, result = seen
    expected = ByHand(name, architectures.get(name).read(model), 1, sizes)(given)
    precision = 1e-5 if name in {*ROTARY, "dinov3"} else 1e-12
    torch.testing.assert_close(result, expected, rtol=precision, atol=precision)


def logits_of_the_library(name: str, model: Any, inputs: Tensor) -> Tensor:
    """The same parameters in the library's own class."""
    sizes = architectures.sizes_of(model)
    if name in TEXT:
        shipped = type(model).__base__(model.config)
    else:
        side, ratio = sizes.patch * math.isqrt(sizes.positions), sizes.ffn / sizes.width
        made = partial(timm.create_model, "vit_small_patch16_dinov3") if name == "dinov3" else type(model).__base__
        shipped = made(
            img_size=side,
            patch_size=sizes.patch,
            num_classes=sizes.vocabulary,
            embed_dim=sizes.width,
            depth=sizes.layers,
            num_heads=sizes.heads,
            mlp_ratio=ratio,
            **({"depth_token_only": sizes.class_layers, "mlp_ratio_token_only": ratio} if name == "cait" else {}),
        )
    library = architectures.get(name).library
    shipped.double().eval().load_state_dict({key: library.to_stored(key, each) for key, each in model.state_dict().items()})
    # RoBERTa counts positions from 2, past its padding tokens: explicit ones say that there is no padding
    explicit = {"position_ids": torch.arange(2, 2 + inputs.shape[1])[None]} if name == "roberta" else {}
    with torch.no_grad():
        return shipped(inputs, **explicit).logits.flatten(0, 1) if name in TEXT else shipped(inputs)


def precision_of(name: str) -> float:
    """Fused activations round differently; RMSNorm is single precision in transformers, and double in ours."""
    return 1e-12 if architectures.get(name).centred else 1e-5


@each_option
@pytest.mark.parametrize("layers", [1, 3])
def test_models_compute_what_their_library_computes(name: str, options: dict[str, Any], layers: int) -> None:
    model = random_model(name, replace(SMALL, layers=layers, **options))
    expected = logits_of_the_library(name, model, inputs_of(name, SMALL))
    precision = precision_of(name)
    torch.testing.assert_close(logits(name, model), expected, rtol=precision, atol=precision)


@pytest.mark.parametrize("name", TEXT)
def test_the_logits_of_selected_positions_are_those_of_the_library(name: str) -> None:
    model, tokens = random_model(name, SMALL), inputs_of(name, SMALL)
    labelled, precision = torch.tensor([1, 7, 12, 35]), precision_of(name)
    expected = logits_of_the_library(name, model, tokens)[labelled]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, labelled), expected, rtol=precision, atol=precision)


@pytest.mark.parametrize("positions", [65, 66, 200])
def test_local_attention_of_modernbert_is_that_of_the_library(positions: int) -> None:
    """A layer of local attention sees 64 tokens to each side: the first sequence that it does not see all of has 66."""
    model = random_model("modernbert", replace(SMALL, positions=positions))
    local, window = logits("modernbert", model), model.config.sliding_window
    torch.testing.assert_close(
        local, logits_of_the_library("modernbert", model, inputs_of("modernbert", model.sizes)), rtol=1e-12, atol=1e-12
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.config, "sliding_window", positions)
        assert torch.equal(logits("modernbert", model), local) == (positions <= window + 1)


@each_option
def test_training_reaches_every_parameter_on_the_meta_device(name: str, options: dict[str, Any]) -> None:
    """Three layers have what types of layers there are; an option does the same in each, but paths are dropped in upper ones."""
    layers = 3 if not options else 2 if "drop_path" in options else 1
    with torch.device("meta"):
        model = architectures.get(name).build(replace(SMALL, layers=layers, **options)).train()
    rows = 4 if name in IMAGES else 36
    batch = Batch(
        inputs_of(name, SMALL).to("meta", torch.float32 if name in IMAGES else torch.int64),
        None,
        torch.zeros(rows, device="meta", dtype=torch.int64),
    )
    task_loss(model, batch).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, key


@each
def test_no_row_of_an_embedding_is_pinned_to_zero(name: str) -> None:
    """Every block is full: no token is padding, in the initialisation or in training."""
    torch.manual_seed(0)
    architecture = architectures.get(name)
    model = architecture.build(SMALL).double()
    for key, weight in architecture.read(model).items():
        if weight.role == "embedding" and weight.axes[-1] is Axis.WIDTH and len(weight.axes) > 1:
            assert weight.value.flatten(0, -2).norm(dim=-1).min() > 0, key
    if name in TEXT:
        model(inputs_of(name, SMALL)).square().sum().backward()
        assert model.get_input_embeddings().weight.grad[inputs_of(name, SMALL).unique()].norm(dim=-1).min() > 0


@each_tying
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_copying_preserves_the_function_at_integer_ratios(name: str, tied: bool, factor: int) -> None:
    """Chen et al. 2022: widening by copies, consumers divided, computes the same. Uneven copies of heads and neurons too."""
    sizes = replace(SMALL, tied=tied)
    wide = replace(sizes, width=factor * 16, heads=factor * 2, ffn=40 if factor == 1 else factor * 40 + 7)
    model = random_model(name, sizes)
    assert relative_error(name, model, widened(name, model, wide)) < 1e-12


@each_tying
def test_copying_changes_the_function_at_other_ratios(name: str, tied: bool) -> None:
    """Norms see the mean and the variance of uneven copies: a hundredth at least, where rounding is 1e-15."""
    sizes = replace(SMALL, tied=tied)
    model = random_model(name, sizes)
    assert relative_error(name, model, widened(name, model, replace(sizes, width=24, heads=3, ffn=60))) > 0.01


GROUPS = [
    ((4, 4), (8, 8)),  # no groups
    ((4, 2), (8, 4)),  # more key-value heads, groups of the same size
    ((4, 2), (12, 6)),
    ((4, 1), (8, 1)),  # one group, which grows
    ((4, 1), (12, 1)),
    ((4, 2), (8, 2)),  # larger groups
    ((4, 2), (12, 4)),  # both
    ((4, 2), (8, 8)),  # smaller groups, over which the old ones spread
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("source", "target"), GROUPS)
def test_copying_preserves_the_function_of_grouped_key_value_heads(
    source: tuple[int, int], target: tuple[int, int], tied: bool
) -> None:
    sizes, wide = (
        replace(SMALL, width=8 * heads, heads=heads, kv_heads=kv_heads, tied=tied) for heads, kv_heads in (source, target)
    )
    model = random_model("llama", sizes)
    for seed in range(3):
        assert relative_error("llama", model, widened("llama", model, wide, seed)) < 1e-12


def test_heads_that_lose_their_keys_and_values_are_noticed() -> None:
    """The check above can fail: heads in another order meet the keys and values of another group."""
    sizes = replace(SMALL, width=32, heads=4, kv_heads=2)
    model = random_model("llama", sizes)
    weights = architectures.get("llama").read(model)
    order = torch.arange(32).reshape(4, 8).flip(0).flatten()
    mixed = widen(weights, {Axis.HEADS: Select(order)})
    together = widen(mixed, {Axis.KV_HEADS: Select(torch.arange(16).reshape(2, 8).flip(0).flatten())})
    assert relative_error("llama", model, grown("llama", mixed, sizes)) > 0.05
    assert relative_error("llama", model, grown("llama", together, sizes)) < 1e-12


@pytest.mark.parametrize("name", TEXT)
def test_a_missing_division_at_a_tied_decoder_is_noticed(name: str) -> None:
    """A norm that does not compensate for the tied decoder changes the output by its whole size."""
    model = random_model(name, SMALL)
    weights = architectures.get(name).read(model)
    undivided = {key: replace(weight, consumes=weight.consumes and weight.role != "norm") for key, weight in weights.items()}
    wide = replace(SMALL, width=32, heads=4, ffn=80)
    copies = maps.copying(SMALL, wide, torch.Generator().manual_seed(2))
    assert relative_error(name, model, grown(name, widen(undivided, copies), wide)) > 0.5


@pytest.mark.parametrize(
    ("name", "tied"), [(name, tied) for name, tied in TYINGS if has_types_for(name, 3, 5)]
)  # of the others: test_families.py
def test_zero_residual_branches_on_top_are_the_identity_only_in_pre_norm(name: str, tied: bool) -> None:
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    model = random_model(name, sizes)
    deeper = deepen(architecture.read(model), [0, 1, 2, 2, 0])
    for weight in deeper.values():
        if weight.residual and Axis.LAYER in weight.axes:
            weight.value[3:] = 0
    error = relative_error(name, model, grown(name, deeper, replace(sizes, layers=5)))
    assert error == 0 if architecture.norm == "pre" else error > 0.01


@pytest.mark.parametrize("name", [name for name in NAMES if has_types_for(name, 3, 5)])
def test_a_copied_layer_on_top_changes_the_function(name: str) -> None:
    """The check above can fail: it is the zeros that make the identity."""
    model = random_model(name, SMALL)
    deeper = deepen(architectures.get(name).read(model), [0, 1, 2, 2, 0])
    assert relative_error(name, model, grown(name, deeper, replace(SMALL, layers=5))) > 0.01


def test_layers_of_class_attention_are_deepened_along_their_own_axis() -> None:
    """Zero residual branches on top of them are the identity too, and the growing layers keep their number."""
    model = random_model("cait", SMALL)
    deeper = deepen(architectures.get("cait").read(model), [0, 1, 1], Axis.CLASS_LAYER)
    for weight in deeper.values():
        if weight.residual and Axis.CLASS_LAYER in weight.axes:
            weight.value[2] = 0
    assert relative_error("cait", model, grown("cait", deeper, replace(SMALL, class_layers=3))) == 0


@each_tying
def test_growth_is_differentiable_to_maps_and_layer_mixing(name: str, tied: bool) -> None:
    """Every entry of every map: none of a learned operator's parameters would be left alone."""
    architecture, sizes = architectures.get(name), replace(SMALL, tied=tied)
    wide = replace(sizes, width=32, heads=4, ffn=64, layers=4)
    weights = architecture.read(random_model(name, sizes))
    used = {axis for weight in weights.values() for axis in weight.axes}
    grow = {
        axis: Extend(
            torch.randn(axis_length(axis, wide) - axis_length(axis, sizes), axis_length(axis, sizes)).double().requires_grad_()
        )
        for axis in maps.copying(sizes, wide, torch.Generator())
        if axis in used
    }
    depth = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    native = architecture.native(deepen(widen(weights, Maps(grow)), depth), wide)
    output = torch.func.functional_call(architecture.build(wide).double(), native, (inputs_of(name, sizes),))
    output.square().mean().backward()
    for learned in (depth, *(axis_map.matrix for axis_map in grow.values())):
        assert learned.grad is not None and learned.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, key) for name in NAMES for key in OTHER if key not in architectures.get(name).options],
)
def test_an_option_that_an_architecture_does_not_have_is_refused(name: str, option: str) -> None:
    architecture = architectures.get(name)
    with pytest.raises(UsageError, match=f"^{name} has no {option}: its options are {', '.join(architecture.options)}$"):
        architecture.build(replace(SMALL, **{option: OTHER[option]}))


def test_the_options_tested_here_are_all_that_there_are() -> None:
    assert OTHER.keys() == architectures.OPTIONS.keys()
    assert all(OTHER[key] != default for key, default in architectures.OPTIONS.items())


@pytest.mark.parametrize("name", sorted(ROTARY))
def test_odd_head_sizes_are_refused_where_positions_are_rotary(name: str) -> None:
    with pytest.raises(UsageError, match="width / heads = 5: rotary positions need an even head size"):
        architectures.get(name).build(replace(SMALL, width=10))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*ROTARY, "dinov3"}])
def test_odd_head_sizes_do_elsewhere(name: str) -> None:
    assert logits(name, random_model(name, replace(SMALL, width=10))).isfinite().all()


@each
@pytest.mark.parametrize(("width", "ffn"), [(24, 1), (56, 61), (88, 15), (88, 352)])
def test_the_ffn_has_exactly_the_neurons_that_were_asked_for(name: str, width: int, ffn: int) -> None:
    """timm takes the ratio to the width, and rounds width x ratio down: 56 x (61 / 56) is 60.99..."""
    architecture = architectures.get(name)
    with torch.device("meta"):
        model = architecture.build(replace(SMALL, width=width, ffn=ffn))
    neurons = {w.value.shape[1] for w in architecture.read(model).values() if w.role.endswith("ffn_up") and w.consumes}
    assert neurons == {ffn}


def test_write_refuses_misshapen_and_missing_weights() -> None:
    architecture = architectures.get("gpt2")
    weights = architecture.read(random_model("gpt2", SMALL))
    with pytest.raises(ValueError, match="shape"):
        architecture.write(weights, architecture.build(replace(SMALL, width=32)).double())
    with pytest.raises((ValueError, KeyError)):
        architecture.write({k: w for k, w in weights.items() if k != "norm.bias"}, architecture.build(SMALL).double())


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=f"'lama': did you mean llama\\? known: {', '.join(NAMES)}"):
        architectures.get("lama")


@each
def test_attention_takes_the_fused_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention takes no mask: there is none, but a flag where it is causal. CaiT's talking heads have no fused kernel."""
    calls = []
    fused = functional.scaled_dot_product_attention

    def watched(*arguments: Any, **options: Any) -> Tensor:
        calls.append(options | dict(zip(("query", "key", "value", "attn_mask"), arguments, strict=False)))
        return fused(*arguments, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(masking_utils, "is_torchdynamo_exporting", lambda: True)  # as when torch before 2.14 compiles
    logits(name, random_model(name, SMALL))
    attended = SMALL.class_layers if name == "cait" else SMALL.layers
    assert len(calls) == attended
    assert all(call.get("attn_mask") is None for call in calls)
    assert {bool(call.get("is_causal")) for call in calls} == {architectures.get(name).objective == "causal"}


GLOBAL, LOCAL = ("full_attention",), ("sliding_attention",)


def test_layers_have_the_types_that_the_family_gives_them() -> None:
    """Of a checkpoint: in the class's pattern if it follows that, else its own pattern goes on."""
    modernbert = architectures.get("modernbert")
    own = replace(SMALL, layers=4)
    assert modernbert.layer_types(own) == (GLOBAL, LOCAL, LOCAL, GLOBAL)
    assert architectures.get("gpt2").layer_types(own) == ("layer",) * 4
    usual = {"num_hidden_layers": 4, "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"]}
    alternating = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    for stored, expected in (
        (usual, (GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL)),
        (alternating, (LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL)),
    ):
        sizes = replace(own, layers=5, configuration=json.dumps(stored))
        assert modernbert.layer_types(sizes) == expected
        built: Any = modernbert.build(sizes)
        assert [(layer.attention_type,) for layer in built.model.layers] == list(expected)


def test_heads_have_a_size_of_their_own() -> None:
    """Wider heads than width / heads, grown in number: the same function, bit for bit the library's names and shapes."""
    sizes = replace(SMALL, head_dim=6, kv_heads=1)
    model = random_model("llama", sizes)
    assert model.get_parameter("model.layers.0.self_attn.o_proj.weight").shape == (16, 12)
    assert relative_error("llama", model, widened("llama", model, replace(sizes, width=32, heads=4, ffn=80))) < 1e-12
    with pytest.raises(UsageError, match=r"target\.head_dim = 8 must equal the source's 6"):
        widened("llama", model, replace(sizes, width=32, head_dim=8))


@each
def test_a_checkpoint_says_its_architecture(name: str, tmp_path: Path) -> None:
    sizes = replace(SMALL, layers=1, patch=16, positions=16)
    (tmp_path / "config.json").write_text(json.dumps(_stored_config(name, sizes)))
    assert architectures.of_checkpoint(tmp_path).name == name


def _stored_config(name: str, sizes: ModelConfig) -> dict[str, Any]:
    library: Any = architectures.get(name).library
    return library.config_json(sizes) | ({} if name in IMAGES else {"model_type": library.stock.config_class.model_type})


def test_deit_is_timms_vision_transformer_and_the_distilled_one_is_refused(tmp_path: Path) -> None:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 1, "num_classes": 3}
    for name in ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": {}, "model_args": arguments}))
        assert architectures.of_checkpoint(tmp_path).name == "vit"
        if "distilled" in name:
            with pytest.raises(
                UsageError, match="is a VisionTransformerDistilled, the experiment's models are VisionTransformer"
            ):
                architectures.get("vit").library.sizes(tmp_path)
        else:
            assert architectures.get("vit").library.sizes(tmp_path).width == 8


PICTURES = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2, "num_classes": 5}


def saved_by_timm(name: str, folder: Path, **arguments: Any) -> nn.Module:
    """One of timm's models, small and with random weights, in a folder."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **{**PICTURES, **arguments}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_for_hf(model, str(folder), model_args={**PICTURES, **arguments}, safe_serialization=True)
    return model


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_small_patch14_reg4_dinov2", {}),  # register tokens, layer scale
        ("vit_small_patch14_dinov2", {"num_classes": 0}),  # without a classifier: the logits are features
        ("vit_base_patch16_clip_224", {}),  # a norm before the layers, patches without bias
        ("vit_medium_patch16_gap_240", {}),  # no class token, a norm behind the pool
        ("vit_small_patch16_dinov3", {"global_pool": "token"}),  # no biases of queries and values
        ("vit_small_patch16_dinov3_qkvb", {}),
    ],
)
def test_timms_vision_transformers_are_read_with_what_they_have(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    stock = saved_by_timm(name, tmp_path, **arguments).double()
    architecture = architectures.of_checkpoint(tmp_path)
    sizes = architecture.library.sizes(tmp_path)
    weights = architecture.canonical(dict(stock.state_dict()), sizes)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(architecture.write(weights, architecture.build(sizes).double().eval())(images), stock(images))


def test_a_part_of_an_image_model_that_no_table_names_is_refused(tmp_path: Path) -> None:
    """Otherwise growth would leave it as it was."""
    saved_by_timm("vit_base_patch16_siglip_224", tmp_path)
    library = architectures.of_checkpoint(tmp_path).library
    with pytest.raises(
        UsageError, match="vit_base_patch16_siglip_224 has parameters that no table of growbench names: attn_pool"
    ):
        architectures.get("vit").rows(library.sizes(tmp_path))


def test_sizes_that_timm_rounds_are_refused(tmp_path: Path) -> None:
    saved_by_timm("vit_small_plus_patch16_dinov3", tmp_path)
    architecture = architectures.of_checkpoint(tmp_path)
    sizes = replace(architecture.library.sizes(tmp_path), ffn=61)
    with pytest.raises(UsageError, match="ffn = 61: timm's vit_small_plus_patch16_dinov3 would have 64"):
        architecture.build(sizes)
    with pytest.raises(UsageError, match=r"width / heads = 6: .* a multiple of 4"):
        architecture.build(replace(sizes, width=12, ffn=64))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "t5"},
            r"transformers' 't5' is no family .* it reads transformers' bert, .*, and timm's .*vit; a table",
        ),
        ({"model_type": "vit"}, "transformers' 'vit' is no family"),
        ({"architecture": "resnet50"}, "timm's 'resnet50' is no family"),
        ({}, "a model without model_type is no family"),
        ([], "config.json cannot be read"),
    ],
)
def test_a_checkpoint_of_an_unknown_family_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        architectures.of_checkpoint(tmp_path)
