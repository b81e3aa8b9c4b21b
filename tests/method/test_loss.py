"""Cross-entropy against torch's own, and what it holds in float32 of logits in half precision."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from growbench.method import loss
from growbench.method.loss import compiled_loss, cross_entropy

ROWS, CLASSES = 7, 11


def made(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(ROWS, CLASSES, generator=generator)
    return logits.to(dtype).requires_grad_(), torch.randint(CLASSES, (ROWS,), generator=generator)


@pytest.mark.parametrize("part", [1, 2 * CLASSES, 2**17])  # elements: a row, two rows with one left over, all rows
@pytest.mark.parametrize("scale", [1.0, 0.25])  # what the loss is multiplied by, as with micro-batches
def test_half_precision_costs_the_rounding_of_the_logits_alone(part: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CPU_PART", part)
    logits, labels = made(torch.bfloat16)
    found = cross_entropy(logits, labels)
    (scale * found).backward()
    exact = logits.detach().float().requires_grad_()
    expected = functional.cross_entropy(exact, labels)
    (scale * expected).backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad is not None and exact.grad is not None
    torch.testing.assert_close(logits.grad, exact.grad.bfloat16(), rtol=2**-7, atol=0)  # at most one unit of the last place


def test_float32_is_as_torch_has_it() -> None:
    logits, labels = made(torch.float32)
    cross_entropy(logits, labels).backward()
    given, logits.grad = logits.grad, None
    functional.cross_entropy(logits, labels).backward()
    torch.testing.assert_close(given, logits.grad, rtol=1e-6, atol=1e-9)


class Largest(TorchDispatchMode):
    """Notes the elements of the largest float32 tensor that is made."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.found = max(self.found, result.numel())
        return result


def test_logits_in_half_precision_are_never_whole_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CPU_PART", 2 * CLASSES)
    logits, labels = made(torch.bfloat16)
    with Largest() as largest:
        cross_entropy(logits, labels).backward()
    assert largest.found == 2 * CLASSES


def test_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        made_by.append("compiler")
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))  # the default generates code for a minute
    loss._compiled.cache_clear()
    logits, labels = made(torch.bfloat16)
    expected = cross_entropy(logits, labels)
    (0.25 * expected).backward()
    assert logits.grad is not None
    gradient, logits.grad = logits.grad, None
    with compiled_loss():
        found = cross_entropy(logits, labels)
    loss._compiled.cache_clear()
    (0.25 * found).backward()
    assert made_by == ["compiler"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(logits.grad, gradient, rtol=2**-7, atol=0)  # at most one unit of the last place
    assert not loss._is_compiled.get()
