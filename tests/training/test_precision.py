"""bf16 on a CPU: attention by matrix products, one copy of each weight a step, and what stays in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from growbench import architectures
from growbench.config.schema import Machine, ModelConfig, Training
from growbench.costs.flops import count
from growbench.data import Batch
from growbench.method import Phase
from growbench.training import precision
from growbench.training.precision import autocast
from growbench.training.replicas import Replica
from growbench.training.step import Step

CPU = torch.device("cpu")
BF16 = Training(batch=4, steps=1, lr=1.0, precision="bf16")
NEAR = (torch.arange(8)[:, None] - torch.arange(8)).abs() <= 2
attend = functional.scaled_dot_product_attention


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        (4, {}),
        (4, {"is_causal": True}),
        (4, {"attn_mask": NEAR}),
        (4, {"attn_mask": torch.randn(1, 1, 8, 8), "scale": 0.7}),
        (2, {"is_causal": True, "enable_gqa": True}),
        (1, {"attn_mask": NEAR, "enable_gqa": True}),
    ],
)
def test_attention_is_torchs_up_to_rounding_with_its_gradients(groups: int, options: dict[str, Any]) -> None:
    """Of heads that share keys and values too, against torch's definition in float64."""
    given = [torch.randn(3, heads, 8, 16, requires_grad=True) for heads in (4, groups, groups)]
    upstream = torch.randn(3, 4, 8, 16)
    with autocast(BF16, Machine(), CPU):
        found = attend(*given, **options)
    assert found.dtype == torch.bfloat16
    exact = [each.detach().double().requires_grad_() for each in given]
    mask = options.get("attn_mask")
    doubled = {"attn_mask": mask.double()} if isinstance(mask, Tensor) and mask.is_floating_point() else {}
    with sdpa_kernel(SDPBackend.MATH):
        expected = attend(*exact, **options | doubled)
    gradients = zip(
        torch.autograd.grad(found, given, upstream.bfloat16()),
        torch.autograd.grad(expected, exact, upstream.double()),
        strict=True,
    )
    for ours, torchs in [(found, expected), *gradients]:
        assert ((ours - torchs).norm() / torchs.norm()).item() < 0.01


@pytest.mark.parametrize(
    "options",
    [{"dropout_p": 0.1}, {"attn_mask": torch.ones(2, 1, 4, 4, dtype=torch.bool)}, {"attn_mask": torch.zeros(2, 2, 4, 4)}],
)
def test_attention_with_dropout_or_a_mask_for_each_row_is_torchs_in_float32(options: dict[str, Any]) -> None:
    given = [torch.randn(2, 2, 4, 8) for _ in range(3)]
    torch.manual_seed(1)
    expected = attend(*given, **options)
    torch.manual_seed(1)
    with autocast(BF16, Machine(), CPU):
        assert torch.equal(attend(*given, **options), expected)


def test_attention_over_long_sequences_is_torchs_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SHORT", 3)
    given = torch.randn(1, 2, 4, 8).bfloat16()
    for _ in range(2):  # the context can be entered again
        with autocast(BF16, Machine(), CPU):
            product, attended = functional.linear(given.float(), torch.randn(8, 8)), attend(given, given, value=given)
        assert (product.dtype, attended.dtype) == (torch.bfloat16, torch.float32)
    assert functional.linear(given.float(), torch.randn(8, 8)).dtype == torch.float32


def test_what_all_keys_and_values_share_costs_no_accuracy() -> None:
    """As early in training, where they differ little, and the gradient of the queries consists of these differences."""
    query, key, value = (torch.randn(2, 2, 16, 8).bfloat16().float().requires_grad_() for _ in range(3))
    alike = [(16 + each).detach().bfloat16().double().requires_grad_() for each in (key, value)]
    with autocast(BF16, Machine(), CPU):
        found = attend(query, *(each.float() for each in alike), is_causal=True)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attend(query.double(), *alike, is_causal=True)
    upstream = torch.randn(2, 2, 16, 8)
    ours, exact = (torch.autograd.grad(each, query, upstream.to(each.dtype))[0] for each in (found, expected))
    assert ((ours - exact).norm() / exact.norm()).item() < 0.02


class _Casts(TorchDispatchMode):
    """Counts how often tensors are cast from float32 to bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.of[id(args[0])] = self.of.get(id(args[0]), 0) + 1
        return func(*args, **(kwargs or {}))


def _step(name: str, training: Training, micro_batch: int = 0) -> Step:
    torch.manual_seed(0)
    config = ModelConfig(layers=2, width=16, heads=2, ffn=32)
    model = architectures.get(name).build(replace(config, vocabulary=32, positions=8))
    return Step.of(Phase(model=model), Replica(model, torch.optim.SGD(model.parameters())), training, Machine(micro_batch), CPU)


def _batch() -> Batch:
    inputs = torch.randint(32, (4, 8))
    return Batch(inputs, torch.arange(32), inputs.flatten())


@pytest.mark.parametrize("name", ["gpt2", "modernbert", "qwen3"])
def test_a_step_casts_each_weight_once_and_counts_the_flops_of_float32(name: str) -> None:
    exact, rounded = (_step(name, replace(BF16, precision=kind), micro_batch=2) for kind in ("float32", "bf16"))
    batch = _batch()
    flops = [count(lambda step=step: step.backward(batch, 0))[0] for step in (exact, rounded)]
    assert flops[0] == flops[1] > 0
    casts = _Casts()
    with casts:
        rounded.backward(batch, 0)
    weights = [each for each in rounded.live.model.parameters() if each.dim() > 1]
    times = [casts.of.get(id(each), 0) for each in weights]
    assert max(times) == 1 and sum(times) > len(times) / 2
    assert all(each.dtype == torch.float32 and each.grad.dtype == torch.float32 for each in weights if each.grad is not None)


def test_the_gradients_of_micro_batches_in_bf16_add_up_to_those_of_the_batch() -> None:
    batch, found = _batch(), []
    for micro_batch in (0, 1):
        step = _step("gpt2", BF16, micro_batch)
        step.backward(batch, 0)
        found.append(nn.utils.parameters_to_vector([each.grad for each in step.live.model.parameters()]))
    assert ((found[0] - found[1]).norm() / found[0].norm()).item() < 0.02


def test_rms_norm_is_computed_in_float32() -> None:
    given, norm = torch.randn(3, 8).bfloat16(), nn.RMSNorm(8)
    with autocast(BF16, Machine(), CPU):
        assert torch.equal(norm(given), norm(given.float())) and norm(given).dtype == torch.float32


def test_layer_norm_takes_weights_that_are_products() -> None:
    """As a growth operator makes them."""
    given, weight, bias = torch.randn(3, 8), torch.randn(8).bfloat16(), torch.randn(8).bfloat16()
    with autocast(BF16, Machine(), CPU):
        found = functional.layer_norm(given, (8,), weight, bias)
    assert torch.equal(found, functional.layer_norm(given, (8,), weight.float(), bias.float()))
