"""All the data that an optimizer holds, of whatever class it is, as nested dictionaries that a checkpoint can store.

It is the optimizer's state, the settings of its parameter groups, and the attributes that its class added. Functions, modules
and dtypes are left out, because replay makes them anew. `Optimizer.state_dict` would lack the attributes, and
`load_state_dict` would cast the state to the dtype and the device of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

# optimizers that update each element of a parameter from that element alone; a subclass need not
ELEMENT_WISE = (ASGD, SGD, Adadelta, Adagrad, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop, Rprop)


@dataclass(frozen=True)
class ParameterIndex:
    """Stands for one of the optimizer's parameters, counted over all groups."""

    index: int

    def __repr__(self) -> str:
        return f"parameter {self.index}"


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor with its number among the optimizer's tensors: one that the optimizer holds twice has one number."""

    value: Tensor
    number: int
    on_host: bool  # in host memory while the parameters were on an accelerator


def is_element_wise(optimizer: Optimizer) -> bool:
    """Whether stepping a shard of a parameter is known to give the same as stepping the whole parameter."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return type(optimizer) in ELEMENT_WISE and not hooks and "step" not in vars(optimizer)


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A copy of nested dictionaries, lists and tuples, in which `leaf` was applied to everything that they hold, keys too."""
    if type(value) is dict:
        return {mapped(key, leaf): mapped(each, leaf) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(each, leaf) for each in value)
    return leaf(value)


def contents(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's data, with a ParameterIndex for each parameter and a StoredTensor for each other tensor."""
    parameters = parameters_of(optimizer)
    indices = {id(parameter): ParameterIndex(index) for index, parameter in enumerate(parameters)}
    on_accelerator = parameters[0].device.type != "cpu"
    numbers: dict[int, int] = {}

    def stored(value: Any) -> Any:
        if id(value) in indices:
            return indices[id(value)]
        if type(value) is Tensor:
            number = numbers.setdefault(id(value), len(numbers))
            return StoredTensor(value, number, on_accelerator and value.device.type == "cpu")
        return value

    found: dict[str, Any] = mapped(_data(optimizer), stored)
    return found


def restore(optimizer: Optimizer, stored: dict[str, Any], device: torch.device) -> None:
    """Give the data that `contents` returned to an optimizer of the same class and parameters. `device`: where its tensors go.

    Tensors without dimensions go where the parameters are: fused AdamW needs its step counts there.
    Raises ValueError for another optimizer.
    """
    check(optimizer, stored)
    parameters = parameters_of(optimizer)
    moved: dict[int, Tensor] = {}

    def value_of(value: Any) -> Any:
        if isinstance(value, ParameterIndex):
            return parameters[value.index]
        if not isinstance(value, StoredTensor):
            return value
        if value.number not in moved:
            own = torch.device("cpu") if value.on_host else device if value.value.dim() else parameters[0].device
            moved[value.number] = value.value.to(own)
        return moved[value.number]

    _set_data(optimizer, mapped(stored, value_of))


def check(optimizer: Optimizer, stored: dict[str, Any]) -> None:
    """Raise ValueError unless `restore` can give it to this optimizer. Changes nothing."""
    parameters = parameters_of(optimizer)

    def known(value: Any) -> None:
        if isinstance(value, ParameterIndex) and not 0 <= value.index < len(parameters):
            raise ValueError("the checkpoint is of another optimizer")

    mapped(stored, known)
    _check_data(optimizer, stored)


def move_state(optimizer: Optimizer, device: torch.device) -> None:
    """Move the state of an element-wise optimizer to a device, except tensors without dimensions. Others are left alone."""
    if type(optimizer) not in ELEMENT_WISE:
        return
    for state in optimizer.state.values():
        moved = {key: value.to(device) for key, value in state.items() if isinstance(value, Tensor) and value.dim()}
        state.update(moved)


@cache
def _common() -> frozenset[str]:
    """The attributes that every optimizer has. To make one imports torch's compiler, which takes a second."""
    return frozenset(vars(Optimizer([nn.Parameter(torch.zeros(1))], {})))


def _data(optimizer: Optimizer) -> dict[str, Any]:
    attributes = {name: value for name, value in vars(optimizer).items() if name not in _common() and not _is_code(value)}
    for name, value in attributes.items():
        if isinstance(value, Optimizer):
            attributes[name] = _data(value)
        elif _are_optimizers(value):
            attributes[name] = [_data(each) for each in value]
        elif isinstance(value, dict):
            attributes[name] = dict(value)
    groups = [{key: value for key, value in group.items() if not _is_code(value)} for group in optimizer.param_groups]
    return {"class": type(optimizer).__qualname__, "state": dict(optimizer.state), "groups": groups, "attributes": attributes}


def _check_data(optimizer: Optimizer, data: dict[str, Any]) -> None:
    """Raise ValueError unless the data are of an optimizer of this class and of as many parameters, and so those it wraps."""
    sizes = [len(group["params"]) for group in data["groups"]]
    if data["class"] != type(optimizer).__qualname__ or sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError("the checkpoint is of another optimizer")
    for name, value in data["attributes"].items():
        for wrapped, data_of_it in _wrapped(vars(optimizer).get(name), value):
            _check_data(wrapped, data_of_it)


def _set_data(optimizer: Optimizer, data: dict[str, Any]) -> None:
    """In place, so that what an optimizer shares with another one that it wraps stays shared."""
    _refill(optimizer.state, data["state"])
    for group, settings in zip(optimizer.param_groups, data["groups"], strict=True):
        group.update(settings)
    for name, value in data["attributes"].items():
        current = vars(optimizer).get(name)
        if isinstance(current, Optimizer) or _are_optimizers(current):
            for wrapped, data_of_it in _wrapped(current, value):
                _set_data(wrapped, data_of_it)
        elif isinstance(current, dict):
            _refill(current, value)
        else:
            setattr(optimizer, name, value)


def _are_optimizers(value: Any) -> bool:
    """Whether it is a list or a tuple of optimizers, which another one combines."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, Optimizer) for each in value)


def _wrapped(current: Any, data: Any) -> Iterator[tuple[Optimizer, dict[str, Any]]]:
    """The optimizers in an attribute, each with its data. Raises ValueError if the data are of more or fewer."""
    if isinstance(current, Optimizer):
        yield current, data
    elif _are_optimizers(current):
        if len(current) != len(data):
            raise ValueError("the checkpoint is of another optimizer")
        yield from zip(current, data, strict=True)


def _refill(current: dict[Any, Any], values: dict[Any, Any]) -> None:
    current.clear()
    current.update(values)


def _is_code(value: Any) -> bool:
    return not isinstance(value, Optimizer) and (callable(value) or isinstance(value, torch.dtype | torch.device))
