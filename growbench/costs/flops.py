"""The FLOP counter.

A multiply-add counts as 2. Only matrix products count, attention in full even if causal; recomputation and optimizer do not.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
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


def _product(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _added_product(bias: Tensor, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


# for torch's counter: they take tensors, and not a tree of all arguments' shapes
_product._get_raw = _added_product._get_raw = True  # type: ignore[attr-defined]


def _distances(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a[:-1]) * (a[-1] + 2) * b[-2]  # by one product, with the squared norms as two more columns


def _refused(name: str) -> Callable[..., int]:
    def refuse(*args: Any, **kwargs: Any) -> int:
        raise UsageError(f"{name} is a product that the FLOP counter does not know: write it with matmul or einsum")

    return refuse


# products that torch's counter lacks: with vectors, in place, summed over a batch, of integers, in distances; others as it has
# them, but faster
PRODUCTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((aten.mm, aten.bmm, aten._int_mm), _product),
    **dict.fromkeys((aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_), _added_product),
    **dict.fromkeys((aten.addbmm, aten.addbmm_, aten._addmm_activation), _added_product),
    aten.mv: _mv,
    **dict.fromkeys((aten.addmv, aten.addmv_), _addmv),
    **dict.fromkeys((aten.dot, aten.vdot), _dot),
    aten._euclidean_dist: _distances,  # of torch.cdist
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


class _Kind(Enum):
    """What counting does with an operation."""

    PLAIN = "calls it"
    PRODUCT = "calls it, and adds its FLOPs"
    OTHER = "leaves it to torch's counter"


_kinds: dict[int, dict[Any, _Kind]] = {}  # of operations, by the number of those that count: a method may register its own


class _Mode(_FlopCounterMode):
    """Torch's, but asks only once of each operation whether it counts or decomposes, which takes most of a small model's time."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__(counter)
        self.known = _kinds.setdefault(len(counter.flop_registry), {})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = self.known.get(func)
        if kind is None:
            kind = self.known[func] = self._kind(func)
        if kind is _Kind.OTHER:
            return super().__torch_dispatch__(func, types, args, kwargs)
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        return result if kind is _Kind.PLAIN else self.counter._count_flops(func.overloadpacket, result, args, kwargs)

    def _kind(self, func: Any) -> _Kind:
        """Only an operation that does not decompose and gives tensors is called: torch treats those that give sizes apart."""
        if not isinstance(func, torch._ops.OpOverload) or func._can_decompose():
            return _Kind.OTHER
        if not all(isinstance(each.type, torch.TensorType) for each in func._schema.returns):
            return _Kind.OTHER
        return _Kind.PRODUCT if func.overloadpacket in self.counter.flop_registry else _Kind.PLAIN


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
