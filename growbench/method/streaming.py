"""A task whose weights are lazy: a method that grows without data grows a checkpoint of any size, with no code of its own.

Models in it have no entries (they are on torch's meta device) and hold lazy canonical weights beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from growbench.architectures import Architecture, changed_settings, sizes_of
from growbench.architectures.library import META
from growbench.config.schema import ModelConfig, Training
from growbench.errors import Interrupted, UsageError
from growbench.growth import Weights
from growbench.growth.lazy import Lazy, lazy
from growbench.growth.lazy_draws import large_are_lazy
from growbench.method.interface import Method, Phase, Task, check_lengths
from growbench.method.training_state import Grow, Trained

BUDGET = Training(batch=1, steps=1000, lr=1e-3)  # of the training that the method plans, which does not take place


class NeedsData(Exception):
    """A method trains before its target exists."""


@dataclass(frozen=True)
class Grown:
    """The target as the method grew it, before any training."""

    tensors: Mapping[str, Lazy]  # by the names of the architecture's table
    sizes: ModelConfig
    settings: Mapping[str, float]  # those that differ from the source's


class StreamingTask(Task):
    """Growth alone: `phases` is followed up to its first yield."""

    @classmethod
    def growing(
        cls, architecture: Architecture, source: ModelConfig, target: ModelConfig, stored: Mapping[str, Tensor], seed: int
    ) -> StreamingTask:
        """The task of growing a checkpoint with these lazy tensors."""
        rng = torch.Generator().manual_seed(seed)
        task = cls(architecture, target, BUDGET.steps, BUDGET, torch.device("cpu"), rng, source)
        ours = {name: architecture.library.from_stored(name, tensor) for name, tensor in stored.items()}
        model = task.model_from(architecture.canonical(ours, source), source).requires_grad_(False).eval()
        return cast(StreamingTask, task.with_source(model))

    def read(self, model: nn.Module) -> Weights:
        weights = _weights_of(model)
        return super().read(model) if weights is None else dict(weights)

    def model_from(
        self, weights: Weights, config: ModelConfig | None = None, settings: Mapping[str, float] | None = None
    ) -> nn.Module:
        config = config or self.target_config
        check_lengths(weights, config)
        with META:
            model = self.architecture.build(config, settings)
        model.lazy_weights = dict(weights)  # type: ignore[assignment]
        return model

    @property
    def source_trained(self) -> Trained:
        raise NeedsData

    def grow_trained(self, trained: Trained, grow: Grow, config: ModelConfig | None = None) -> Trained:
        raise NeedsData


def _weights_of(model: nn.Module) -> Weights | None:
    return cast("Weights | None", vars(model).get("lazy_weights"))


def grown(name: str, method: Method, task: StreamingTask) -> Grown:
    """What the method makes of the task's source. Raises UsageError for one that needs data, and if it fails."""
    if not method.uses_source:
        raise UsageError(f"{name} grows no source: it trains the target from its start, as growbench run does")
    try:
        if method.keeps_source:
            raise NeedsData
        torch.manual_seed(task.rng.initial_seed())  # as a run does, for the target that some methods begin with
        with large_are_lazy(task.rng):
            phase: Phase = next(iter(method.phases(task)))
            weights = _weights_of(phase.model)
            if weights is None or sizes_of(phase.model) != task.target_config:
                raise NeedsData
            native = task.architecture.native(weights, task.target_config)
    except NeedsData:
        raise UsageError(
            f"{name} needs data before its target exists: growbench run EXPERIMENT --methods {name} --save trains and saves it"
        ) from None
    except (UsageError, Interrupted):
        raise
    except Exception as error:
        raise UsageError(f"{name} cannot grow this checkpoint: {type(error).__name__}: {error}") from error
    _check_shapes(native, phase.model)
    stored = {name: task.architecture.library.to_stored(name, tensor) for name, tensor in native.items()}
    return Grown({name: lazy(tensor) for name, tensor in stored.items()}, task.target_config, changed_settings(phase.model))


def _check_shapes(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.shape != tensors[name].shape:
            raise UsageError(f"{name}: the model has shape {tuple(parameter.shape)}, the weights {tuple(tensors[name].shape)}")
