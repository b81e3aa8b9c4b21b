"""Single entries of parameters with a learning rate of their own: their part of each step of the optimizer is scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Muon, NAdam, Optimizer, RAdam, RMSprop

from growbench.method import Phase
from growbench.method.interface import MethodError
from growbench.method.optimizer import members_of

# optimizers whose step is the learning rate times what does not depend on it, and whose state does not depend on it either; not
# Adafactor, ASGD and Rprop; a subclass need not
LINEAR = (SGD, Adadelta, Adagrad, Adam, AdamW, Adamax, Muon, NAdam, RAdam, RMSprop)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Entries of one parameter that an entry schedule scales."""

    parameter: nn.Parameter  # as this process steps it: whole, or its shard
    where: Tensor  # bool, of its shape
    schedule: int  # which of the phase's entry schedules


@dataclass
class ScaledEntries:
    """All such entries of a phase. `factors`: of each entry schedule in the next step."""

    parts: list[Scaled] = field(default_factory=list)
    factors: Sequence[float] = ()

    @classmethod
    def of(cls, phase: Phase, shard_of: Callable[[nn.Parameter, Tensor], tuple[nn.Parameter, Tensor]]) -> ScaledEntries:
        """`shard_of`: what this process steps in place of a parameter, and the same part of a tensor of its shape."""
        return cls(
            [
                Scaled(*shard_of(phase.model.get_parameter(name), where), number)
                for number, each in enumerate(phase.entry_schedules)
                for name, where in each.where.items()
            ],
            [1.0] * len(phase.entry_schedules),
        )

    @contextmanager
    def scaled(self) -> Iterator[None]:
        """Scale what the `with` block adds to these entries, by their factors. To all others it adds the same bits as without."""
        before = [(each, each.parameter.detach().clone()) for each in self.parts if self.factors[each.schedule] != 1]
        yield
        with torch.no_grad():
            for each, old in before:
                stepped = torch.lerp(old, each.parameter, self.factors[each.schedule])
                each.parameter.copy_(torch.where(each.where, stepped, each.parameter))


def check(phase: Phase, model: nn.Module, optimizer: Optimizer) -> None:
    """Raise MethodError unless the phase's entry schedules name entries of parameters in training, and can be exact."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, where in (item for each in phase.entry_schedules for item in each.where.items()):
        wrong = _wrong(name, where, parameters)
        if wrong:
            raise MethodError(f"phase {phase.name!r}: entry_schedules: {wrong}")
    if phase.entry_schedules and (unknown := next((each for each in members_of(optimizer) if type(each) not in LINEAR), None)):
        raise MethodError(
            f"phase {phase.name!r}: entry_schedules: steps of {type(unknown).__name__} are not known to be proportional to the "
            f"learning rate: use {', '.join(kind.__name__ for kind in LINEAR)}, or task.optimizer(model)"
        )


def _wrong(name: str, where: object, parameters: dict[str, nn.Parameter]) -> str:
    """What is wrong with the entries of one parameter; empty if all is well."""
    if name not in parameters:
        return f"{name!r} is no parameter of the model that is trained"
    if not isinstance(where, Tensor) or where.dtype != torch.bool:
        return f"{name}: {where.dtype if isinstance(where, Tensor) else type(where).__name__}: must be a tensor of bool"
    if where.shape != parameters[name].shape:
        return f"{name}: shape {tuple(where.shape)}: must be the parameter's, {tuple(parameters[name].shape)}"
    return ""
