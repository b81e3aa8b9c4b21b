"""What an optimizer keeps for each entry of a weight is carried along while a method grows the weights.

Within `Carrier.carrying()` torch's functions are watched. What copies, cuts, joins or reshapes weights does the same to their
state. `widen` and `deepen` grow the state by rules of their own (`carry`). Any other function loses it, and is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

# grown: as gradients grow, so that a grown gradient follows its grown mean; kept: old units keep theirs, new ones start at zero
Rule = Literal["grown", "kept"]
State = dict[str, Tensor]  # by the optimizer's keys, each of the weight's shape

# of torch's functions, those whose result holds entries of their arguments and nothing else
MOVES = frozenset(
    {
        "clone", "detach", "contiguous", "to", "cpu", "cuda", "float", "double", "index_select", "__getitem__", "narrow",
        "select", "chunk", "split", "unbind", "stack", "cat", "flatten", "unflatten", "reshape", "view", "permute",
        "transpose", "squeeze", "unsqueeze", "movedim", "flip", "roll", "index_copy", "where", "data", "T", "mT",
    }
)  # fmt: skip
WRITES = frozenset({"__setitem__", "copy_", "index_copy_", "zero_"})  # likewise, into their first argument
ADDS = frozenset({"add", "__add__", "__radd__", "add_"})  # what is added, as noise, has no state
STATISTICS = frozenset({"mean", "std", "var", "sum", "norm", "amax", "amin", "max", "min", "median"})
NEUTRAL = frozenset(  # their result holds no entries of their arguments
    {
        "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty",
        "new_full", "new_tensor", "requires_grad_",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Lost:
    """The state of what was computed from weights by a function that has no rule. A statistic may scale what is added to them."""

    function: str
    statistic: bool = False


class Carrier:
    """Knows the state of all tensors that were made from known weights."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._states = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> State | Lost | None:
        """None: it was not made from known weights."""
        found: State | Lost | None = self._states.get(tensor)
        return found

    def set(self, tensor: Tensor, state: State | Lost) -> None:
        self._states[tensor] = state

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """Within it, state is carried along."""
        token = _current.set(self)
        try:
            with _Watch(self):
                yield
        finally:
            _current.reset(token)


_current: ContextVar[Carrier | None] = ContextVar("_current", default=None)


def carry(old: Tensor, new: Tensor, grow: Callable[[Tensor, Rule], Tensor | None], what: str) -> Tensor:
    """`new`, to which `old` was grown, with its state grown by `grow`, if any is carried along. `what` grows it, in words.

    A second moment grows by the squares of the factors. `grow` returns None if it has no rule.
    """
    carrier = _current.get()
    state = carrier.of(old) if carrier else None
    if carrier is None or state is None or new is old:
        return new
    if isinstance(state, dict):
        roots = {key: entry.sqrt() if key.endswith("_sq") else entry for key, entry in state.items()}
        grown = {key: grow(root, carrier.rule) for key, root in roots.items()}
        known = {key: root.square() if key.endswith("_sq") else root for key, root in grown.items() if root is not None}
        state = known if known.keys() == state.keys() else Lost(what)
    carrier.set(new, state)
    return new


class _Watch(TorchFunctionMode):
    """Carries state from the arguments of torch's functions to their results."""

    def __init__(self, carrier: Carrier) -> None:
        super().__init__()
        self.carrier = carrier

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        sources = args[:1] if name == "to" else (args, kwargs)  # not what only gives a type
        given = [found for each in _tensors(sources) if (found := self.carrier.of(each)) is not None]
        if not given or name in NEUTRAL:
            return func(*args, **kwargs)
        lost = min((each for each in given if isinstance(each, Lost)), key=lambda each: each.statistic, default=None)
        if name in WRITES and lost is None:
            return self._write(func, args, kwargs, name)
        changes = name in ("__set__", "__setitem__") or (name.endswith("_") and not name.endswith("__"))
        in_place = args[0] if changes else None
        base = in_place._base if in_place is not None else None
        state: Any = lost
        if name in ADDS and (carried := self._added(args, kwargs)) is not None:
            state = carried
        elif name in MOVES and lost is None:
            state = {key: func(*(moved := self._entries(key, (args, kwargs)))[0], **moved[1]) for key in _keys(given)}
        elif name in STATISTICS:
            state = Lost(f"torch's {name}", statistic=True)
        elif lost is None or not all(isinstance(each, Lost) for each in given):
            state = Lost(f"torch's {name}")
        result = func(*args, **kwargs)
        if in_place is not None:
            self.carrier.set(in_place, state)
            if base is not None:
                self.carrier.set(base, Lost(f"torch's {name} of a part"))
        else:
            self._set(result, state)
        return result

    def _write(self, func: Any, args: Any, kwargs: Any, name: str) -> Any:
        """Write into a tensor, and the state of what is written into its state: zeros if that has none, or is a number."""
        target, rest = args[0], args[1:]
        given = [self.carrier.of(each) for each in _tensors((args, kwargs))]
        state = {}
        for key in _keys(given):
            entry = self._entries(key, target).clone()
            of_rest, of_kwargs = self._entries(key, (rest, kwargs))
            if name == "__setitem__":
                of_rest = rest[0], of_rest[1] if isinstance(rest[1], Tensor) else 0.0
            func(entry, *of_rest, **of_kwargs)
            state[key] = entry
        result = func(*args, **kwargs)
        self.carrier.set(target, state)
        if target._base is not None:
            self.carrier.set(target._base, Lost(f"torch's {name} of a part"))
        return result

    def _entries(self, key: str, values: Any) -> Any:
        """The arguments of a function with the entries of their state under a key in their place; zeros where there are none."""

        def entries(value: Tensor) -> Tensor:
            state = self.carrier.of(value)
            if isinstance(state, dict) and key in state:
                return state[key]
            return torch.zeros_like(value) if value.is_floating_point() else value

        return tree_map_only(Tensor, entries, values)

    def _added(self, args: Any, kwargs: Any) -> State | None:
        """The state of a sum: that of its only term that has one. None: it is not known."""
        states = [self.carrier.of(each) for each in _tensors((args, kwargs))]
        carried = [(state, each) for state, each in zip(states, _tensors((args, kwargs)), strict=True) if isinstance(state, dict)]
        others = [state for state in states if isinstance(state, Lost)]
        if len(carried) != 1 or kwargs or not all(state.statistic for state in others):
            return None
        state, term = carried[0]
        return state if all(each.dim() <= term.dim() for each in _tensors(args)) else None

    def _set(self, result: Any, state: Any) -> None:
        """Give a function's results their state."""
        for place, each in enumerate(result if isinstance(result, (tuple, list)) else [result]):
            if isinstance(each, Tensor) and each.is_floating_point():
                several = isinstance(result, (tuple, list)) and isinstance(state, dict)
                self.carrier.set(each, {key: entry[place] for key, entry in state.items()} if several else state)


def _keys(states: Iterable[State | Lost | None]) -> list[str]:
    """The keys of all states, in order."""
    return list(dict.fromkeys(key for state in states if isinstance(state, dict) for key in state))


def _tensors(values: Any) -> list[Tensor]:
    """All tensors within a function's arguments."""
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _name(func: Any) -> str:
    """A function's name; of a property that is read, the property's."""
    return str(func.__self__.__name__ if func.__name__ == "__get__" else func.__name__)
