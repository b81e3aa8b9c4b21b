"""The FLOP counter.

A multiply-add counts as 2. Only matrix products count, attention in full even if causal; recomputation and optimizer do not.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

from growbench.data import Batch
from growbench.errors import UsageError

T = TypeVar("T")
aten = torch.ops.aten


def _mv(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _addmv(bias: Any, matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _dot(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a[0]


def _mm(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _addmm(bias: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _distances(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a[:-1]) * (a[-1] + 2) * b[-2]  # by one product, with the squared norms as two more columns


def _refused(name: str) -> Callable[..., int]:
    def refuse(*args: Any, **kwargs: Any) -> int:
        raise UsageError(f"{name} is a product that the FLOP counter does not know: write it with matmul or einsum")

    return refuse


# products that torch's counter lacks: with vectors, in place, summed over a batch, of integers, in distances
PRODUCTS: dict[Any, Callable[..., int]] = {
    aten.mv: _mv,
    **dict.fromkeys((aten.addmv, aten.addmv_), _addmv),
    **dict.fromkeys((aten.dot, aten.vdot), _dot),
    aten._int_mm: _mm,
    aten._euclidean_dist: _distances,  # of torch.cdist
    **dict.fromkeys((aten.addmm_, aten.baddbmm_, aten.addbmm, aten.addbmm_, aten._addmm_activation), _addmm),
}
UNKNOWN = (
    aten._grouped_mm, aten._scaled_grouped_mm, aten._trilinear, aten.mkldnn_rnn_layer, aten._cudnn_rnn,
    aten._sparse_addmm, aten._sparse_sparse_matmul, aten.sspaddmm, aten.hspmm, aten.sparse_sampled_addmm,
    aten._sparse_mm_reduce_impl,
)  # fmt: skip
PRODUCTS |= {product: _refused(str(product)) for product in UNKNOWN}


class _NoModules:
    """Replaces torch's ModuleTracker, which fails if a module gets a view of a parameter under no_grad (CaiT)."""

    parents = frozenset({"Global"})  # only totals are needed

    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None: ...


class _Mode(_FlopCounterMode):
    """Torch's, but asks only once of each operation whether it counts or decomposes, which takes most of a small model's time."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__(counter)
        self.plain: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.plain:
            self.plain[func] = self._is_plain(func)
        if self.plain[func]:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _is_plain(self, func: Any) -> bool:
        """Whether an operation neither counts nor decomposes, and gives tensors: torch treats those that give sizes apart."""
        if not isinstance(func, torch._ops.OpOverload) or func.overloadpacket in self.counter.flop_registry:
            return False
        return not func._can_decompose() and all(isinstance(each.type, torch.TensorType) for each in func._schema.returns)


class _Counter(FlopCounterMode):
    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=PRODUCTS)
        self.mod_tracker = _NoModules()  # type: ignore[assignment]

    def __enter__(self) -> _Counter:
        self.flop_counts.clear()
        self.mode = _Mode(self)
        self.mode.__enter__()
        return self


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of the `with` block. Attention takes the math path, because the counter misses the fused CPU kernels."""
    counter = _Counter()
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


def count(function: Callable[[], T]) -> tuple[int, T]:
    """The FLOPs of `function()`, and its result."""
    with counting() as counter:
        result = function()
    return counter.get_total_flops(), result


def fvcore_forward(model: nn.Module, batch: Batch) -> int:
    """FLOPs of a forward pass by fvcore, an independent counter, whose result must equal ours.

    fvcore counts a multiply-add as 1, counts norms, and does not know fused attention. So its result is doubled, norms are left
    out, and attention is counted as two products.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore uses tracing, which torch has deprecated
        return _fvcore_forward(model, batch)


def _fvcore_forward(model: nn.Module, batch: Batch) -> int:
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

    def attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        *rows, queries, head_size = get_shape(inputs[0])
        keys, value_size = get_shape(inputs[1])[-2], get_shape(inputs[2])[-1]
        return Counter({"attention": math.prod(rows) * queries * keys * (head_size + value_size)})

    def nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return Counter()

    arguments = (batch.inputs,) if batch.positions is None else (batch.inputs, batch.positions)
    analysis = FlopCountAnalysis(model.eval(), arguments).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention, "aten::layer_norm", nothing)
    return 2 * int(analysis.total())
