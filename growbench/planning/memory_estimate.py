"""The memory of a training step, estimated on the meta device: each tensor is tracked until it is freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from growbench.architectures.library import changes_values
from growbench.costs.flops import PRODUCTS
from growbench.training.precision import SHORT

aten, attend = torch.ops.aten, functional.scaled_dot_product_attention

# functions used by models that autocast on CUDA computes in half precision, and in float32
HALVED = {
    functional.linear, torch.conv2d, torch.matmul, Tensor.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    torch.einsum, torch.tensordot, attend,
}  # fmt: skip
PRECISE = {
    functional.layer_norm, functional.softmax, torch.softmax, Tensor.softmax, functional.log_softmax, torch.log_softmax,
    Tensor.log_softmax, functional.cross_entropy, functional.kl_div, functional.rms_norm,
}  # fmt: skip

FLOPS = flop_registry | {func: each if hasattr(each, "_get_raw") else shape_wrapper(each) for func, each in PRODUCTS.items()}
ANY = aten.any.default
RANDOM = {aten.rand.generator, aten.randn.generator, aten.randperm.generator}
MOST_KNOWN = 50_000  # operations whose results are kept; more are forgotten
LARGEST_RANDOM = 2**20  # elements; larger random tensors are weights, or their order, whose values are not needed


class _Known(NamedTuple):
    """What an operation does with arguments of these shapes."""

    like: Any  # shapes and types of its results, if these are new meta tensors; None: it is carried out each time
    flops: int
    mixed: bool  # whether one argument is a small random tensor on the CPU, the others are meta tensors


_known: dict[torch.dtype, dict[Any, _Known]] = {}  # by default dtype, and by operation and arguments


class TensorTracker(TorchDispatchMode):
    """Tracks every meta tensor that is made inside until it is freed. Bytes: `live` now, `peak` since `reset`.

    Also counts `flops`, by the formulas of torch's counter, because a second dispatch mode would double the time. torch infers
    result shapes on the meta device in Python, which is slow, so what an operation does with equal arguments is found out once
    for all plans.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._known = _known.setdefault(torch.get_default_dtype(), {})
        self._tracked: dict[int, weakref.ref[Any]] = {}  # storages
        self._paused = False
        if len(self._known) > MOST_KNOWN:
            self._known.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled inside, and torch's guard against it takes time at every operation

    def reset(self) -> None:
        """Start a new peak."""
        self.peak = self.live

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Tensors that are made inside count as no memory."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if changes_values(func) and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        key = func, tuple(map(_key, args)), _key(kwargs) if kwargs else ()
        known = self._known.get(key)
        if known is None:
            known, result = self._find_out(func, args, kwargs)
            if not any(isinstance(each, torch.Generator) for each in kwargs.values()):
                self._known[key] = known
        elif known.like is not None:
            result = _made(known.like)
        else:
            result = self._carried_out(func, args, kwargs, known.mixed)
        self.flops += known.flops
        if not self._paused:
            for each in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(each, Tensor) and each.is_meta:
                    self._track(each.untyped_storage())
        return result

    def _find_out(self, func: Any, args: Any, kwargs: Any) -> tuple[_Known, Any]:
        """What an operation does, and its results."""
        mixed = not func._schema.is_mutable and len({each.is_meta for each in _tensors(args) if each.dim()}) > 1
        result = self._carried_out(func, args, kwargs, mixed)
        formula = FLOPS.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        return _Known(_like(result) if _makes_new(func, args, kwargs, result) else None, flops, mixed), result

    def _carried_out(self, func: Any, args: Any, kwargs: Any, mixed: bool) -> Any:
        if func in RANDOM and np.prod(args[0]) > LARGEST_RANDOM:
            kwargs = kwargs | {"device": "meta", "generator": None}
        if func is ANY and args[0].is_cpu and args[0].dtype == torch.bool:
            return torch.tensor(args[0].numpy().any())  # torch's own takes fifty times as long
        if mixed:
            args = _each(lambda each: each.to("meta"), args)
        return func(*args, **kwargs)

    def _track(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self._tracked:
            size = storage.nbytes()

            def freed(_: Any) -> None:
                del self._tracked[place]
                self.live -= size

            self._tracked[place] = weakref.ref(storage, freed)
            self.live += size
            self.peak = max(self.peak, self.live)


def _key(argument: Any) -> Any:
    """The properties of an argument that decide the shapes of an operation's results."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.is_meta
    if isinstance(argument, (tuple, list)):
        return tuple(map(_key, argument))
    if isinstance(argument, dict):
        return tuple((name, _key(value)) for name, value in argument.items())
    return type(argument), argument


def _tensors(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(*value)


def _each(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    """The arguments of a function with `function(tensor)` in the place of every tensor. torch's own tree_map is slow."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, (tuple, list)):
        parts = [_each(function, value) for value in values]
        return parts if isinstance(values, list) else tuple(parts)
    if isinstance(values, dict):
        return {key: _each(function, value) for key, value in values.items()}
    return values


def _makes_new(func: Any, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether an operation's results are new meta tensors: neither its arguments nor views of them."""
    made = list(_tensors(result))
    if func._schema.is_mutable or func.is_view or not made or not all(each.is_meta for each in made):
        return False
    given = {each.untyped_storage()._cdata for each in _tensors(args, *kwargs.values()) if each.is_meta}
    return not any(each.untyped_storage()._cdata in given for each in made)


def _like(result: Any) -> Any:
    if isinstance(result, Tensor):
        return tuple(result.shape), result.stride(), result.dtype
    return [each if each is None else _like(each) for each in result]


def _made(like: Any) -> Any:
    if isinstance(like, tuple):
        shape, stride, dtype = like
        with torch._C.DisableTorchFunction():  # a DeviceEmulation has nothing to say here
            return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return [each if each is None else _made(each) for each in like]


class DeviceEmulation(TorchFunctionMode):
    """Makes functions of meta tensors keep for the backward pass what they would keep on `device`.

    Fused attention keeps query, key, value and output, but no attention weights; only dropout on the CPU prevents it, and bf16
    there. For half precision it applies CUDA autocast's lists of functions, because autocast ignores meta tensors. The result
    is an estimate.
    """

    def __init__(self, device: torch.device, bf16: bool, tracker: TensorTracker) -> None:
        super().__init__()
        self.gpu, self.bf16, self.tracker = device.type != "cpu", bf16, tracker
        self._halves: dict[int, Tensor] = {}  # half-precision copies of parameters, which autocast keeps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.bf16 and func in HALVED:
            args, kwargs = _each(self._half, args), _each(self._half, kwargs)
        elif self.bf16 and func in PRECISE:
            args, kwargs = _each(_single, args), _each(_single, kwargs)
        if func is attend and (self.gpu or not kwargs.get("dropout_p")):
            by_products = self.bf16 and not self.gpu and max(args[0].shape[-2], args[1].shape[-2]) <= SHORT
            return _FusedAttention.apply(*args[:3], by_products, self.tracker)  # type: ignore[no-untyped-call]
        if func is functional.dropout and self.gpu and kwargs["training"]:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]  # keeps a mask of one byte per element
        return func(*args, **kwargs)

    def _half(self, value: Tensor) -> Tensor:
        if value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad and torch.is_grad_enabled()):
            return value.to(torch.bfloat16)
        if id(value) not in self._halves:
            self._halves[id(value)] = value.to(torch.bfloat16)
        return self._halves[id(value)]


def _single(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value


class _FusedAttention(torch.autograd.Function):
    """Fused attention, or one that keeps its weights. Its products are computed for their FLOPs, but take no other memory.

    Shape legend: B rows, H heads, T queries, S keys, D head size. Grouped keys and values have fewer heads.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, keeps_weights: bool, tracker: TensorTracker) -> Tensor:
        with tracker.paused():
            weights = query @ _for_each_head(key, query).mT  # (B, H, T, S)
            weights @ _for_each_head(value, query)
        output = _rows_first(query, value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, torch.empty_like(weights) if keeps_weights else sums)
        ctx.tracker = tracker
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        of_query, of_key, of_value, *_ = ctx.needs_input_grad
        with ctx.tracker.paused():
            weights = gradient.new_empty((*query.shape[:-1], key.shape[-2]))
            if of_query or of_key:
                gradient @ _for_each_head(value, query).mT
            if of_query:
                weights @ _for_each_head(key, query)
            if of_key:
                weights.mT @ query
            if of_value:
                weights.mT @ gradient
        given = zip((query, key, value), (of_query, of_key, of_value), strict=True)
        return *(_rows_first(each, each.shape[-1]) if needed else None for each, needed in given), None, None


def _for_each_head(grouped: Tensor, query: Tensor) -> Tensor:
    return grouped.repeat_interleave(query.shape[1] // grouped.shape[1], 1)


def _rows_first(like: Tensor, head_size: int) -> Tensor:
    """A new tensor (B, H, T, D) with the memory layout (B, T, H, D), as fused kernels make it."""
    rows, heads, length, _ = like.shape
    return like.new_empty(rows, length, heads, head_size).transpose(1, 2)
