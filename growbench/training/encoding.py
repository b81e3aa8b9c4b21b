"""An optimizer's contents as JSON and tensors, which a safetensors file can hold: no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from growbench.training.optimizer_state import ParameterIndex, StoredTensor


def encoded(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """An optimizer's contents as JSON. Adds its tensors to `tensors`. Raises ValueError for what `path` cannot store."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, ParameterIndex):
        return {"parameter": value.index}
    if isinstance(value, StoredTensor):
        tensors[f"optimizer.{value.number}"] = value.value
        return {"tensor": value.number, "on_host": value.on_host}
    if type(value) in (list, tuple):
        items = [encoded(each, tensors, f"{path}[{place}]") for place, each in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict:
        pairs = [(key, f"{path}[{key!r}]") for key in value]
        return {"dict": [[encoded(key, tensors, at), encoded(value[key], tensors, at)] for key, at in pairs]}
    raise ValueError(
        f"{path} is of type {type(value).__name__}; an optimizer may hold tensors, numbers, strings, None, "
        "and lists, tuples and dictionaries of them"
    )


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse."""
    if type(value) is list:
        return [decoded(each, tensors) for each in value]
    if type(value) is not dict:
        return value
    if "parameter" in value:
        return ParameterIndex(value["parameter"])
    if "tensor" in value:
        number = value["tensor"]
        return StoredTensor(tensors[f"optimizer.{number}"], number, value["on_host"])
    if "tuple" in value:
        return tuple(decoded(each, tensors) for each in value["tuple"])
    return {decoded(key, tensors): decoded(each, tensors) for key, each in value["dict"]}


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory that share no memory, as safetensors requires."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        found[name] = value
    return found
