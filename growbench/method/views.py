"""Views: in a phase, a model computes with something else in place of some parameters, and of what some of its parts return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Output = Callable[[nn.Module, tuple[Any, ...], Any], Any]  # (module, its inputs, its output) -> what is seen as its output

# (model, steps done, steps of the phase) -> what is seen, by name: a tensor in place of a parameter, made from it by
# differentiable operations; an Output for a module. After all steps nothing but the model itself may be seen.
View = Callable[[nn.Module, int, int], Mapping[str, Tensor | Output]]
