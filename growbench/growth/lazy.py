"""Tensors that are computed later, and only in the part that is wanted: for growth of models that are larger than memory.

Operations on a `Lazy` tensor are recorded. `part` then computes a selection of the result, such as one layer or some rows. Where
growbench.growth.lazy_rules has a rule for an operation, the selection is passed on to its inputs, so that only what is needed is
read; elsewhere the inputs are computed whole. The entries are those that torch computes at once, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from growbench.growth.selections import Selection, selected

aten = torch.ops.aten
FILLS: dict[Any, Callable[[Sequence[Any]], float]] = {  # operations whose result is one value everywhere, by their arguments
    aten.new_zeros: lambda args: 0,
    aten.zeros_like: lambda args: 0,
    aten.new_empty: lambda args: 0,
    aten.empty_like: lambda args: 0,
    aten.new_ones: lambda args: 1,
    aten.ones_like: lambda args: 1,
    aten.new_full: lambda args: args[2],
    aten.full_like: lambda args: args[1],
}

SAME = (aten.detach.default, aten.alias.default)  # views of a whole tensor as it is


@dataclass(eq=False)
class Node:
    """A tensor that can be computed. `meta` has its shape, strides and type, and no entries."""

    meta: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.meta.shape

    def compute(self, wanted: Selection, at: Evaluation) -> Tensor:
        """The wanted part. Its type may be a narrower one that holds the same entries."""
        raise NotImplementedError


@dataclass(eq=False)
class Stored(Node):
    """A tensor that is read from somewhere when it is wanted."""

    read: Callable[[Selection], Tensor]

    def compute(self, wanted: Selection, at: Evaluation) -> Tensor:
        return self.read(wanted)


@dataclass(eq=False)
class Filled(Node):
    """A tensor of one value."""

    value: float

    def compute(self, wanted: Selection, at: Evaluation) -> Tensor:
        shape = [len(wanted[dim]) if dim in wanted else size for dim, size in enumerate(self.shape)]
        return torch.full(shape, self.value, dtype=self.meta.dtype)


@dataclass(eq=False)
class Operation(Node):
    """A recorded operation. Its lazy inputs are nodes."""

    function: Any  # of torch.ops, or InPlace
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    place: int | None = None  # which of several results
    _eager: list[Tensor] = field(init=False)  # inputs that are known already
    _versions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._eager = [each for each in tree_leaves((self.args, self.kwargs)) if isinstance(each, Tensor)]
        self._versions = [each._version for each in self._eager]

    @cached_property
    def _rule(self) -> Any:
        from growbench.growth import lazy_rules  # which knows the classes of this module

        return lazy_rules.of(self)

    def compute(self, wanted: Selection, at: Evaluation) -> Tensor:
        if self._versions != [each._version for each in self._eager]:
            raise RuntimeError(f"a tensor was changed in place after {self.function} had used it: change a clone of it")
        rule = self._rule
        passed = {dim: indices for dim, indices in wanted.items() if dim in rule.dims}
        left = {dim: indices for dim, indices in wanted.items() if dim not in rule.dims}
        if not left and not rule.small:
            return rule.compute(passed, at)
        exactly = at.exactly  # because others may want it
        return selected(exactly.kept(self, passed, lambda: rule.compute(passed, exactly)), left)

    def whole(self, at: Evaluation) -> Tensor:
        """All of it, from all of its inputs."""
        args, kwargs = tree_map(lambda each: at.laid_out(each, {}) if isinstance(each, Node) else each, (self.args, self.kwargs))
        result = self.function(*args, **kwargs)
        return cast(Tensor, result if self.place is None else result[self.place])


class Evaluation:
    """Computes nodes. It keeps what it had to compute in excess of what was wanted, for other parts of the same tensor.

    `rounded`: the type that its values are rounded to by whoever asks for them. They may be rounded to it already.
    """

    def __init__(self, rounded: torch.dtype | None = None) -> None:
        self.rounded = rounded
        self._exactly = None if rounded is None else Evaluation()
        self._kept: dict[Any, Tensor] = {}

    @property
    def exactly(self) -> Evaluation:
        """One whose values are not rounded, for operands."""
        return self._exactly or self

    def value(self, source: Node | Tensor, wanted: Selection) -> Tensor:
        """The wanted part of a node, or of an eager tensor, in any type that holds its entries."""
        return source.compute(wanted, self) if isinstance(source, Node) else selected(source, wanted)

    def exact(self, source: Node | Tensor, wanted: Selection) -> Tensor:
        """Likewise, in its own type, for arithmetic."""
        value = self.exactly.value(source, wanted)
        return value.to(source.meta.dtype) if isinstance(source, Node) else value

    def laid_out(self, source: Node | Tensor, wanted: Selection) -> Tensor:
        """Likewise, with entries in memory in the order that torch would have them in, on which the rounding of sums depends."""
        value = self.exact(source, wanted)
        strides = (source if isinstance(source, Tensor) else source.meta).stride()
        order = sorted(range(value.dim()), key=lambda dim: -strides[dim])
        return value.permute(order).contiguous().permute([order.index(dim) for dim in range(value.dim())])

    def kept(self, node: Node, wanted: Selection, compute: Callable[[], Tensor]) -> Tensor:
        key = (
            node,
            *((dim, indices if isinstance(indices, range) else tuple(indices.tolist())) for dim, indices in wanted.items()),
        )
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]


def lazy(value: Tensor) -> Lazy:
    """A tensor that is known, if it is not lazy already."""
    return value if isinstance(value, Lazy) else Lazy(Stored(_meta(value), lambda wanted: selected(value, wanted)))


@dataclass(frozen=True)
class View:
    """How a lazy tensor looks at its base."""

    function: Any
    args: Sequence[Any]  # after the base
    kwargs: Mapping[str, Any]
    place: int | None

    def on(self, base: Node, meta: Tensor) -> Operation:
        return Operation(meta, self.function, (base, *self.args), self.kwargs, self.place)

    def of(self, base: Tensor) -> Tensor:
        """The view of an eager tensor."""
        result = self.function(base, *self.args, **self.kwargs)
        return cast(Tensor, result if self.place is None else result[self.place])


@dataclass(frozen=True)
class InPlace:
    """An operation that writes into a view of a tensor, made one that returns the changed tensor."""

    function: Any
    views: Sequence[View]  # from the tensor to what is written into
    written: str  # the argument that is written into, by its name

    def __call__(self, whole: Tensor, **arguments: Any) -> Tensor:
        changed = whole.clone()
        part = changed
        for view in self.views:
            part = view.of(part)
        self.function(**{self.written: part}, **arguments)
        return changed


class Lazy(Tensor):
    """A tensor whose operations are recorded. What is written into a view is written into its base, and into all other views."""

    _node: Node
    _lazy_base: Lazy | None
    _view: View | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, node: Node, base: Lazy | None = None, view: View | None = None) -> Lazy:
        meta = node.meta
        lazy: Lazy = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, meta.shape, strides=meta.stride(), dtype=meta.dtype, device=torch.device("cpu")
        )
        lazy._node, lazy._lazy_base, lazy._view = node, base, view
        return lazy

    @property
    def node(self) -> Node:
        """What it holds now."""
        if self._lazy_base is not None and self._view is not None:
            base = self._lazy_base.node
            if cast(Operation, self._node).args[0] is not base:  # something was written since
                self._node = self._view.on(base, self._node.meta)
        return self._node

    def is_whole(self) -> bool:
        """Whether it is all of its base, in the same order."""
        return self._lazy_base is None or (self._lazy_base.is_whole() and cast(View, self._view).function in SAME)

    def replace(self, node: Node) -> None:
        """Give a tensor that is whole other content."""
        base = self
        while base._lazy_base is not None:
            base = base._lazy_base
        base._node = node

    def part(self, wanted: Selection, at: Evaluation | None = None) -> Tensor:
        """The wanted part. Its type may be a narrower one that holds the same entries."""
        return (at or Evaluation()).value(self.node, wanted)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Lazy({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if function._schema.is_mutable:
            return _written(function, args, kwargs)
        returns = function._schema.returns
        is_random = torch.Tag.nondeterministic_seeded in function.tags
        if is_random or not all(str(each.type) in ("Tensor", "List[Tensor]") for each in returns):
            return _at_once(function, args, kwargs)
        metas, fill = tree_map(_meta, (args, kwargs)), FILLS.get(function.overloadpacket)
        if fill:
            return cls(Filled(function(*metas[0], **{**metas[1], "device": "meta"}), fill(args)))
        try:
            result = function(*metas[0], **metas[1])
        except (RuntimeError, NotImplementedError):  # its shape depends on entries; or the call is wrong, which is raised again
            return _at_once(function, args, kwargs)
        is_view = any(each.alias_info is not None for each in returns)
        rest = tree_map(_node, (args[1:], kwargs))
        first = tree_map(_node, args[0])

        def recorded(meta: Tensor, place: int | None) -> Lazy:
            view = View(function, rest[0], rest[1], place)
            return cls(view.on(first, meta), args[0] if is_view else None, view if is_view else None)

        if isinstance(result, Tensor):
            return recorded(result, None)
        return type(result)(recorded(meta, place) for place, meta in enumerate(result))


def _meta(each: Any) -> Any:
    if isinstance(each, Lazy):
        return each.node.meta
    if isinstance(each, Tensor):
        return torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="meta")
    return each


def _node(each: Any) -> Any:
    return each.node if isinstance(each, Lazy) else each


def _at_once(function: Any, args: Any, kwargs: Any) -> Any:
    """The result of eager tensors, computed from the whole inputs."""
    at = Evaluation()
    args, kwargs = tree_map(lambda each: at.laid_out(each.node, {}) if isinstance(each, Lazy) else each, (args, kwargs))
    return function(*args, **kwargs)


def _written(function: Any, args: Any, kwargs: Any) -> Any:
    """Carry out an operation that writes into one of its arguments, and returns it."""
    named = {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)} | dict(kwargs)
    (target_name,) = [each.name for each in function._schema.arguments if each.is_write]
    target = named.pop(target_name)
    if not isinstance(target, Lazy):
        _at_once(function, args, kwargs)
        return target
    if torch.Tag.nondeterministic_seeded in function.tags:  # each evaluation would draw anew
        drawn = torch.empty_strided(target.shape, target.stride(), dtype=target.dtype)  # on which the numbers depend
        _at_once(aten.copy_.default, [drawn, target], {})
        function(**{target_name: drawn}, **named)
        function, target_name, named = aten.copy_.default, "self", {"src": drawn}
    root = target
    views: list[View] = []
    while root._lazy_base is not None and root._view is not None:
        views.insert(0, root._view)
        root = root._lazy_base
    change = InPlace(function, tuple(views), target_name)
    root._node = Operation(root._node.meta, change, (root._node,), tree_map(_node, named))
    return target
