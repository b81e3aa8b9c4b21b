"""A phase's model as its view shows it: in the losses of the steps, and in evaluations.

Tensors take the place of parameters by torch.func.functional_call, outputs of modules are replaced by forward hooks. Both last as
long as one loss or one forward pass, and the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from growbench.data import Batch
from growbench.method import Phase
from growbench.method.interface import LossFn, MethodError
from growbench.method.views import Output, View

Part = TypeVar("Part", bound=nn.Module | Tensor)


class LossScope(nn.Module):
    """A module whose forward computes a loss on the model inside it.

    DDP, FSDP2 and functional_call prepare parameters when their module is called. They wrap this one, so that a loss gets the
    model itself and may call any part of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, loss: Callable[[], Tensor] | None = None) -> Any:
        """What `loss` returns; without it, what the model returns for `inputs`."""
        return self.model(*inputs) if loss is None else loss()


def seen(model: nn.Module, shown: Mapping[str, Tensor | Output], call: Callable[[], Tensor]) -> Tensor:
    """What `call` returns if it uses the model with what is `shown` in place of its own. Raises MethodError as `with_view`."""
    _refuse(model, shown)
    tensors = {f"model.{name}": value for name, value in shown.items() if isinstance(value, Tensor)}
    with ExitStack() as stack:
        for name, value in shown.items():
            if not isinstance(value, Tensor):
                stack.callback(model.get_submodule(name).register_forward_hook(value).remove)
        result: Tensor = functional_call(LossScope(model), tensors, (), {"loss": call})
    return result


@dataclass(frozen=True)
class SeenLoss:
    """A phase's loss, of its model as the view shows it."""

    loss: LossFn
    view: View
    steps: int  # of the phase

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        return seen(model, self.view(model, step, self.steps), partial(self.loss, model, batch, step))


class SeenModel(nn.Module):
    """A model as its view shows it at one step, without gradients."""

    def __init__(self, model: nn.Module, view: View, step: int, steps: int) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.shown = view(model, step, steps)

    def forward(self, *inputs: Any) -> Tensor:
        return seen(self.model, self.shown, partial(self.model, *inputs))


def with_view(phase: Phase, model: nn.Module, steps: int) -> Phase:
    """The phase with the loss that its view makes. Raises MethodError for a view that cannot be, or does not end as the model."""
    if phase.view is None:
        return phase
    if not callable(phase.view):
        raise MethodError(f"phase {phase.name!r}: view is a {type(phase.view).__name__}: must be a function")
    with torch.no_grad():
        for step in (0, steps):
            try:
                _refuse(model, phase.view(model, step, steps), ends=step == steps)
            except MethodError as error:
                raise MethodError(f"phase {phase.name!r}: after {step} of {steps} steps: {error}") from None
    return replace(phase, loss=SeenLoss(phase.loss, phase.view, steps))


def _refuse(model: nn.Module, shown: object, ends: bool = False) -> None:
    """Raise MethodError for what a view cannot show. `ends`: whether it is shown after all steps."""
    if not isinstance(shown, Mapping):
        raise MethodError(f"view returned a {type(shown).__name__}: must be a dictionary")
    for name, value in shown.items():
        if wrong := _wrong(model, name, value, ends):
            raise MethodError(f"view: {name or 'the model'}: {wrong}")


def _wrong(model: nn.Module, name: str, value: object, ends: bool) -> str:
    """What is wrong with one thing that a view shows; empty if all is well."""
    if isinstance(value, Tensor):
        return _wrong_tensor(_found(model.get_parameter, name), value, ends)
    if not callable(value):
        return f"a {type(value).__name__}: must be a tensor, or a function of a module, its inputs and its output"
    if _found(model.get_submodule, name) is None:
        return "the model has no module of this name"
    return "must not be shown at the end of the phase, when the model computes as it is" if ends else ""


def _wrong_tensor(own: Tensor | None, value: Tensor, ends: bool) -> str:
    if own is None:
        return "the model has no parameter of this name"
    if value.shape != own.shape:
        return f"shape {tuple(value.shape)}: must be the parameter's, {tuple(own.shape)}"
    changed = ends and not own.is_meta and not torch.equal(value, own)
    return "must equal the model's own parameter at the end of the phase, when the model computes as it is" if changed else ""


def _found(get: Callable[[str], Part], name: str) -> Part | None:
    """A part of a model by its name; None if there is none."""
    try:
        return get(name)
    except AttributeError:
        return None
