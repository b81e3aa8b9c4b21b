"""Training state grows as weights do: what an optimizer keeps for each entry of a parameter is a canonical weight too."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench.architectures import Architecture, sizes_of
from growbench.errors import UsageError
from growbench.growth.weights import Weights
from growbench.method.optimizer import refuse_foreign_state

# grows canonical weights; the text says what they hold: "weight", or a key of the optimizer's state such as "exp_avg"
Grow = Callable[[Weights, str], Weights]


@dataclass(frozen=True)
class Trained:
    """What a yield returns: the phase's model and optimizer after training, its number of steps, its last training loss."""

    model: nn.Module  # the phase's own
    optimizer: Optimizer  # with its state; the next phase may use it
    steps: int  # done
    loss: float  # of the last training step, in nats


def grow_state(architecture: Architecture, trained: Trained, grow: Grow, model: nn.Module, optimizer: Optimizer) -> None:
    """Give `optimizer`, a new one of the grown `model`, the grown state of `trained`.

    What is kept for each entry of a parameter goes through `grow` under its key, with zeros where a parameter has no state. Of
    numbers, such as counts of steps, the largest is taken over. Raises UsageError for second moments that become negative, and
    for the state of another optimizer.
    """
    having, numbers = _keys(architecture, trained)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    natives = {parameter: name for name, parameter in model.named_parameters()}
    grown = {key: _grown(architecture, trained, grow, key, model) for key in having if key not in numbers}
    for name, _, parameter in architecture.parameters(model):
        for key in [key for key in having if name in having[key] and parameter in held]:
            if key in grown:
                value = torch.empty_like(parameter).copy_(grown[key][natives[parameter]])  # laid out in memory as the parameter
            else:
                value = copy.deepcopy(numbers[key])
            optimizer.state[parameter][key] = value
    refuse_foreign_state(optimizer)


def _keys(architecture: Architecture, trained: Trained) -> tuple[dict[str, set[str]], dict[str, Any]]:
    """By key of the optimizer's state: the canonical weights that have it, and the largest value of those that are numbers."""
    having: defaultdict[str, set[str]] = defaultdict(set)
    numbers: dict[str, Any] = {}
    for name, _, parameter in architecture.parameters(trained.model):
        for key, value in trained.optimizer.state.get(parameter, {}).items():
            having[key].add(name)
            if not isinstance(value, Tensor):
                numbers[key] = value
            elif value.shape != parameter.shape:
                numbers[key] = torch.maximum(numbers.get(key, value), value)
    return dict(having), numbers


def _grown(architecture: Architecture, trained: Trained, grow: Grow, key: str, model: nn.Module) -> dict[str, Tensor]:
    """What is kept under a key for each entry of the grown model's parameters, by their names."""
    state = trained.optimizer.state
    zeros = torch.zeros_like
    kept = {name: state.get(each, {}).get(key, zeros(each)).to(each.device) for name, each in trained.model.named_parameters()}
    read = architecture.canonical(kept, sizes_of(trained.model))
    power = -2 if key.endswith("_sq") else -1  # a gradient grows as what it is the gradient of becomes smaller
    read = {name: replace(weight, width_power=power * weight.width_power) for name, weight in read.items()}
    grown = architecture.native(grow(read, key), sizes_of(model))
    if key.endswith("_sq") and any(bool((value < 0).any()) for value in grown.values() if not value.is_meta):
        raise UsageError(f"{key} has negative entries after growth: squares of gradients grow by the squares of factors")
    return grown
