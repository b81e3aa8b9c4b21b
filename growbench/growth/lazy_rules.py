"""How a selection of an operation's result follows from selections of its inputs, operation by operation.

Each rule says along which dimensions of the result a selection can be passed on, and computes the result for such a selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from growbench.growth.lazy import Evaluation, InPlace, Node, Operation
from growbench.growth.lazy_arithmetic import Rule, all_dims, arithmetic, copied, mapped, pointwise, scaled
from growbench.growth.selections import Selection, broadcast, consecutive, joined, runs, selected, within

aten = torch.ops.aten


def of(op: Operation) -> Rule:
    """The rule of an operation; without one, the inputs are computed whole."""
    maker: Callable[[Operation], Rule | None]
    if isinstance(op.function, InPlace):
        maker = _in_place
    elif torch.Tag.reduction in op.function.tags:
        maker = _reduction
    else:
        maker = MAKERS.get(op.function.overloadpacket, pointwise if torch.Tag.pointwise in op.function.tags else _whole)
    return maker(op) or _whole(op)


def _whole(op: Operation) -> Rule:
    return Rule((), lambda passed, at: op.whole(at))


def _named(op: Operation) -> dict[str, Any]:
    """All arguments of an operation by name."""
    arguments = op.function._schema.arguments
    found = {each.name: each.default_value for each in arguments if each.has_default_value()}
    return found | {each.name: value for each, value in zip(arguments, op.args, strict=False)} | dict(op.kwargs)


def _in_place(op: Operation) -> Rule | None:
    """Slices are written into by functions of single entries: other dimensions than the slices' are passed on."""
    change: InPlace = op.function
    function = change.function.overloadpacket
    if not (torch.Tag.pointwise in change.function.tags or function in (aten.copy_, aten.fill_, aten.zero_, aten.index_fill_)):
        return None
    shape, touched = op.shape, set()
    for view in change.views:
        if view.function.overloadpacket is not aten.slice:
            return None
        dim, places = _sliced(view.args, shape)
        if len(places) != shape[dim]:
            touched.add(dim)
        shape = torch.Size([*shape[:dim], len(places), *shape[dim + 1 :]])
    if function is aten.index_fill_:
        touched.add(op.kwargs["dim"] % len(shape))
    views = [view for view in change.views if _sliced(view.args, op.shape)[0] in touched]
    narrowed = InPlace(change.function, views, change.written)

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        index = {"index": op.kwargs["index"]} if "index" in op.kwargs else {}
        arguments = mapped(dict(op.kwargs), lambda each: at.exact(each, broadcast(passed, each.shape, shape))) | index
        return narrowed(at.exact(op.args[0], passed), **arguments)

    return Rule([dim for dim in all_dims(op) if dim not in touched], compute)


def _sliced(args: Sequence[Any], shape: torch.Size) -> tuple[int, range]:
    """The dimension of a slice, and its indices."""
    dim = args[0] if args else 0
    start, end, step = (args[place] if place < len(args) else None for place in (1, 2, 3))
    return dim % len(shape), range(shape[dim])[slice(start, end, step)]


def _reduction(op: Operation) -> Rule | None:
    """Entries may be computed alone along dimensions that come first, and are further out in memory than those that are reduced.

    Elsewhere torch rounds an entry otherwise than among all.
    """
    named = _named(op)
    source, dims = named["self"], named.get("dim")
    if op.place is not None or not isinstance(dims, list) or not dims:
        return None
    keep, reduced = named.get("keepdim", False), {dim % len(source.shape) for dim in dims}
    left = [dim for dim in range(len(source.shape)) if dim not in reduced]
    strides = source.meta.stride()
    inner = max(strides[dim] for dim in reduced)
    alike = op.function.overloadpacket not in (aten.std, aten.var)  # which are computed in another way if there is one result
    places = {  # in the result, by the dimension of the source
        dim: dim if keep else number
        for number, dim in enumerate(takewhile(lambda dim: strides[dim] > inner, left))
        if alike and source.shape[dim] > 1  # where a selection can be smaller
    }

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        value = at.laid_out(source, {dim: passed[place] for dim, place in places.items() if place in passed})
        with _threads(1 if places else torch.get_num_threads()):  # only a sum of all entries is divided among them
            result: Tensor = op.function(value, *op.args[1:], **op.kwargs)
        return result

    return Rule(places.values(), compute, small=True)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _index_select(op: Operation) -> Rule | None:
    source, dim, index = op.args
    if not isinstance(index, Tensor) or not source.shape:
        return None
    dim %= len(source.shape)
    several = runs(index)
    indices = several[0] if several and len(several) == 1 else index

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        if dim in passed:
            return at.value(source, {**passed, dim: within(passed[dim], indices)})
        return selected(at.value(source, passed), {dim: indices})

    return Rule(all_dims(op), compute)


def _picked(op: Operation) -> Rule:
    """select and unbind: one index of a dimension, which is dropped."""
    source, named = op.args[0], _named(op)
    dim = named["dim"] % len(source.shape)
    place = (named["index"] if op.place is None else op.place) % source.shape[dim]

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        rest = {each if each < dim else each + 1: indices for each, indices in passed.items()}
        return at.value(source, {dim: range(place, place + 1), **rest}).select(dim, 0)

    return Rule(all_dims(op), compute)


def _split(op: Operation) -> Rule:
    """Also with sizes: consecutive parts, of which the operation is one."""
    source, sizes, dim = op.args[0], op.args[1], _named(op)["dim"] % len(op.shape)
    place = op.place or 0
    start = place * sizes if isinstance(sizes, int) else sum(sizes[:place])
    return _narrowed(op, dim, range(source.shape[dim])[start : start + op.shape[dim]])


def _narrowed(op: Operation, dim: int, indices: range) -> Rule:
    def compute(passed: Selection, at: Evaluation) -> Tensor:
        chosen = within(passed[dim], indices) if dim in passed else indices
        chosen = consecutive(chosen) if isinstance(chosen, range) else chosen
        return at.value(op.args[0], {**passed, dim: chosen})

    return Rule(all_dims(op), compute)


def _permuted(op: Operation) -> Rule:
    source = op.args[0]
    order = list(range(len(source.shape)))
    if op.function.overloadpacket is aten.permute:
        order = [dim % len(order) for dim in op.args[1]]
    elif order:
        first, second = op.args[1:] or (0, -1)  # t has no dimensions of its own
        order[first], order[second] = order[second], order[first]

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        return at.value(source, {order[dim]: indices for dim, indices in passed.items()}).permute(order)

    return Rule(all_dims(op), compute)


def _unsqueezed(op: Operation) -> Rule:
    source, dim = op.args[0], op.args[1] % len(op.shape)

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        return at.value(source, {each if each < dim else each - 1: indices for each, indices in passed.items()}).unsqueeze(dim)

    return Rule([each for each in all_dims(op) if each != dim], compute)


def _expanded(op: Operation) -> Rule:
    source = op.args[0]

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        shape = [len(passed[dim]) if dim in passed else size for dim, size in enumerate(op.shape)]
        return at.value(source, broadcast(passed, source.shape, op.shape)).expand(shape)

    return Rule(all_dims(op), compute)


def _viewed(op: Operation) -> Rule | None:
    """Dimensions in front of and behind those that change are passed on."""
    source, old, new = op.args[0], op.args[0].shape, op.shape
    if not source.meta.numel() or source.meta.dtype != op.meta.dtype:
        return None
    front = 0
    while front < min(len(old), len(new)) and old[front] == new[front]:
        front += 1
    back = 0
    while back < min(len(old), len(new)) - front and old[-1 - back] == new[-1 - back]:
        back += 1
    dims = [*range(front), *range(len(new) - back, len(new))]

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        wanted = {dim if dim < front else dim - len(new) + len(old): indices for dim, indices in passed.items()}
        return at.value(source, wanted).reshape([len(passed[dim]) if dim in passed else size for dim, size in enumerate(new)])

    return Rule(dims, compute)


def _stacked(op: Operation) -> Rule:
    sources, dim = op.args[0], _named(op)["dim"] % len(op.shape)

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        chosen = [sources[place] for place in passed[dim]] if dim in passed else sources
        rest = {each if each < dim else each - 1: indices for each, indices in passed.items() if each != dim}
        return joined([each.unsqueeze(dim) for each in _alike(chosen, [rest] * len(chosen), at)], dim)

    return Rule(all_dims(op), compute)


def _joined(op: Operation) -> Rule | None:
    """cat. Along its dimension, a selection is cut into runs that one source holds."""
    sources, dim = op.args[0], _named(op)["dim"] % len(op.shape)
    if any(len(source.shape) != len(op.shape) for source in sources):  # an empty one of one dimension is allowed
        return None
    lengths = torch.tensor([source.shape[dim] for source in sources])
    ends = lengths.cumsum(0)

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        if dim not in passed:
            return joined(_alike(sources, [passed] * len(sources), at), dim)
        wanted = passed[dim]
        indices = torch.arange(wanted.start, wanted.stop) if isinstance(wanted, range) else wanted
        owners = torch.searchsorted(ends, indices, right=True)
        chosen, wants = [], []
        for run in indices.tensor_split((owners.diff() != 0).nonzero().flatten() + 1):
            if len(run):
                owner = int(torch.searchsorted(ends, run[0], right=True))
                inside = run - (ends[owner] - lengths[owner])
                consecutive = bool((inside.diff() == 1).all())
                chosen.append(sources[owner])
                wants.append({**passed, dim: range(int(inside[0]), int(inside[0]) + len(inside)) if consecutive else inside})
        return joined(_alike(chosen, wants, at), dim)

    return Rule(all_dims(op), compute)


def _alike(sources: Any, wanted: Any, at: Evaluation) -> list[Tensor]:
    """Parts of several sources, in one type."""
    values = [at.value(source, each) for source, each in zip(sources, wanted, strict=True)]
    if len({value.dtype for value in values}) == 1:
        return values
    return [
        value.to(at.rounded or (source.meta.dtype if isinstance(source, Node) else source.dtype))
        for value, source in zip(values, sources, strict=True)
    ]


def _indexed(op: Operation) -> Rule | None:
    """Advanced indexing of neighbouring dimensions, as if they were one: all other dimensions are passed on."""
    source, indices = op.args
    used = [dim for dim, index in enumerate(indices) if index is not None]
    if any(not isinstance(indices[dim], Tensor) or indices[dim].dtype == torch.bool for dim in used):
        return None
    first, last = used[0], used[-1]
    if used != list(range(first, last + 1)):  # they come first in the result
        return None
    places = torch.broadcast_tensors(*(indices[dim] for dim in used))
    flat = torch.zeros_like(places[0])
    for index, size in zip(places, source.shape[first:], strict=False):
        if index.numel() and not -size <= int(index.min()) <= int(index.max()) < size:
            return None
        flat = flat * size + index % size
    picked, more = flat.shape, flat.dim() - len(used)
    behind = range(first + flat.dim(), len(op.shape))

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        value = at.value(source, {dim - more if dim in behind else dim: wanted for dim, wanted in passed.items()})
        value = selected(value.flatten(first, last), {first: flat.flatten()})
        return value.reshape([*value.shape[:first], *picked, *value.shape[first + 1 :]])

    return Rule([*range(first), *behind], compute)


def _aligned(op: Operation) -> Rule:
    """index_copy and the like: all tensors but the index have the result's dimensions, of which one is worked on."""
    named = _named(op)
    dim = named["dim"] % len(op.shape)

    def compute(passed: Selection, at: Evaluation) -> Tensor:
        return op.function(
            **{
                name: value
                if name == "index"
                else mapped(value, lambda each: at.exact(each, broadcast(passed, each.shape, op.shape)))
                for name, value in named.items()
            }
        )

    return Rule([each for each in all_dims(op) if each != dim], compute)


MAKERS: Mapping[Any, Callable[[Operation], Rule | None]] = {
    aten.clone: copied,
    aten.detach: copied,
    aten.alias: copied,
    aten._to_copy: copied,
    aten.mul: scaled,
    aten.div: scaled,
    aten.add: arithmetic,
    aten.sub: arithmetic,
    aten.index_select: _index_select,
    aten.select: _picked,
    aten.unbind: _picked,
    aten.slice: lambda op: _narrowed(op, *_sliced(op.args[1:], op.args[0].shape)),
    aten.split: _split,
    aten.split_with_sizes: _split,
    aten.transpose: _permuted,
    aten.permute: _permuted,
    aten.t: _permuted,
    aten.unsqueeze: _unsqueezed,
    aten.expand: _expanded,
    aten.view: _viewed,
    aten._unsafe_view: _viewed,
    aten.reshape: _viewed,
    aten.stack: _stacked,
    aten.cat: _joined,
    aten.index: _indexed,
    aten.index_copy: _aligned,
    aten.index_fill: _aligned,
    aten.index_add: _aligned,
}
