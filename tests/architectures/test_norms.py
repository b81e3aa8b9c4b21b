"""What norms over all heads, and norms behind a branch, do to growth: the figures of docs/weights.md."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from growbench import architectures
from growbench.config.schema import ModelConfig
from growbench.growth.maps import tiling
from growbench.growth.weights import Axis, Select, deepen, widen

SIZES = ModelConfig(layers=4, width=32, heads=4, ffn=96, vocabulary=100, positions=32)
WIDE = replace(SIZES, width=64, heads=8, ffn=192)


def built(name: str, sizes: ModelConfig, std: float | None = None) -> nn.Module:
    """In float64. `std`: of matrices; None: as the class initialises them."""
    torch.manual_seed(0)
    model = architectures.get(name).build(sizes).double().eval()
    for parameter in model.parameters() if std else ():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, std if parameter.dim() > 1 else 0.3)
    return model


def tokens() -> Tensor:
    return torch.randint(100, (2, 32), generator=torch.Generator().manual_seed(0))


def change(name: str, heads: list[int]) -> float:
    """Of the logits, relative, where the new heads copy these."""
    architecture, source = architectures.get(name), built(name, SIZES, 0.2)
    maps = tiling(SIZES, WIDE)
    copied = Select((torch.tensor(heads)[:, None] * SIZES.head_size + torch.arange(SIZES.head_size)).flatten())
    maps |= {Axis.HEADS: copied, Axis.KV_HEADS: copied, Axis.HEAD_COUNT: Select(torch.tensor(heads))}
    wide = architecture.write(widen(architecture.read(source), maps), built(name, WIDE))
    with torch.no_grad():
        before, after = source(tokens()), wide(tokens())
    return float((after - before).norm() / before.norm())


def test_heads_copied_unevenly_change_the_function_only_where_one_norm_spans_them() -> None:
    even, uneven = [0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 0, 0, 0, 1]
    assert change("olmo2", even) < 1e-12 and change("qwen3", uneven) < 1e-12
    assert 0.05 < change("olmo2", uneven) < 0.5


def gradient_ratio(name: str, std: float | None) -> float:
    """The gradient of output matrices of new layers, which are zero, by that of the layer that each copies: the mean."""
    architecture, source = architectures.get(name), built(name, SIZES, std)
    deep = replace(SIZES, layers=8)
    weights = deepen(architecture.read(source), [layer // 2 for layer in range(8)])
    writes = {key for key, weight in weights.items() if weight.residual}
    for key in writes:
        weights[key].value[1::2] = 0
    model = architecture.write(weights, built(name, deep)).requires_grad_(True)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), source(tokens()))
    nn.functional.cross_entropy(model(tokens()), tokens().roll(-1, 1).flatten()).backward()
    gradients = architecture.canonical({key: each.grad for key, each in model.named_parameters() if each.grad is not None}, deep)
    norms = torch.stack([gradients[key].value.flatten(1).norm(dim=1) for key in sorted(writes)])
    return float((norms[:, 1::2] / norms[:, ::2]).mean())


@pytest.mark.parametrize(
    ("name", "std", "least", "most"),
    [("qwen3", None, 0.8, 1.25), ("olmo2", None, 2, 8), ("qwen3", 0.2, 0.4, 1.25), ("olmo2", 0.2, 100, 10_000)],
)
def test_identity_layers_in_front_of_a_norm_get_larger_gradients(name: str, std: float | None, least: float, most: float) -> None:
    """The norm multiplies by 1 / sqrt(eps) what is zero, and by 1 / its root mean square what an old layer writes."""
    assert least < gradient_ratio(name, std) < most
