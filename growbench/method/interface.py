"""The plugin interface: everything that the author of a growth method imports.

A method is a frozen dataclass whose fields are its hyperparameters. Its `phases` yields stretches of training that the
runner carries out, and what it computes between two yields is its growth. The runner owns data, device, clock and counter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from growbench import architectures
from growbench.architectures import Architecture
from growbench.config.schema import Experiment, ModelConfig, Training
from growbench.costs.ledger import Costs
from growbench.data import Batch
from growbench.errors import UsageError
from growbench.growth.maps import copying, interleave, stack, stack_and_top
from growbench.growth.weights import WIDTHS, Axis, AxisMap, Extend, Maps, Project, Select, Weight, Weights, deepen, length, widen
from growbench.method import schedule
from growbench.method.loss import cross_entropy
from growbench.method.schedule import Schedule, constant

__all__ = [
    "WIDTHS", "Axis", "AxisMap", "Batch", "Extend", "Maps", "Method", "ModelConfig", "Phase", "Phases", "Project", "Schedule",
    "Select", "Task", "Trained", "Weight", "Weights", "constant", "copying", "cross_entropy", "deepen", "interleave", "length",
    "stack", "stack_and_top", "task_loss", "tunable", "widen",
]  # fmt: skip


Number = TypeVar("Number", int, float)


LossFn = Callable[[nn.Module, Batch, int], Tensor]  # (model, batch, step within the phase) -> scalar


def task_loss(model: nn.Module, batch: Batch, step: int = 0) -> Tensor:
    """The task's own loss: mean cross-entropy in nats over the batch's scored positions, or its images."""
    return cross_entropy(model(batch.inputs, batch.positions), batch.labels)


def one_kind(step: int) -> int:
    """Every step does the same work."""
    return 0


@dataclass(kw_only=True)
class Phase:
    """A stretch of training that the runner carries out. The work per step must not change within a phase, but by `kind`.

    An optimizer of the method's own, best made by `task.optimizer(model)`, brings what the phase starts with: its state,
    and for each of its param groups a peak `lr`, and a `schedule` if the group is not to follow the phase's.
    """

    model: nn.Module  # trained in place; requires_grad says what is frozen
    steps: int | float | None = None  # a number of steps, a share of the budget, or None: the rest of the budget
    loss: LossFn = task_loss
    optimizer: Optimizer | None = None  # None: task.optimizer(model)
    schedule: Schedule | None = None  # None: the run's schedule goes on where it is (constant in unscored phases)
    scored: bool = True  # False: charged as operator, outside the budget, and cannot reach the target
    name: str = "train"
    kind: Callable[[int], int] = one_kind  # where steps differ in their work: which kind of work a step of the phase is

    def first_steps(self, steps: int) -> dict[int, int]:
        """The first step of each kind of work among `steps`."""
        return {0: 0} if self.kind is one_kind else {self.kind(step): step for step in reversed(range(steps))}

    def length(self, budget: int, done: int) -> int:
        """Steps of this phase when `done` of the budget's scored steps lie behind. Raises UsageError if it has none."""
        left = budget - done if self.scored else budget
        steps = left if self.steps is None else round(self.steps * budget) if isinstance(self.steps, float) else self.steps
        if steps < 1 or (self.steps is None and not self.scored):
            raise UsageError(f"phase {self.name!r}: {self.steps} of {budget} steps: needs at least one step, unscored a number")
        return min(steps, left) if self.scored else steps


@dataclass(frozen=True)
class Trained:
    """What a yield gives back: the phase's model and optimizer as training left them, steps done, last training loss."""

    model: nn.Module
    optimizer: Optimizer
    steps: int
    loss: float


Phases = Generator[Phase, Trained, None]


@dataclass
class Task:
    """What a method has to work with. Everything random in a method comes from `rng`."""

    architecture: Architecture
    target: ModelConfig  # what to grow to
    budget: int  # scored steps
    training: Training
    device: torch.device
    rng: torch.Generator  # on the CPU, seeded by the run's seed
    teacher: Callable[..., AbstractContextManager[None]]  # with task.teacher(): no gradients, its costs apart
    source_sizes: ModelConfig
    _source: nn.Module | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        which: Literal["source", "target"],
        vocabulary: int,
        costs: Costs,
        seed: int = 0,
        source: nn.Module | None = None,
    ) -> Task:
        """The experiment's task: to train its target (from `source`), or its source."""
        training = experiment.train if which == "target" else experiment.source_train
        return cls(
            architecture=architectures.of(experiment),
            target=experiment.sizes(which, vocabulary),
            budget=training.steps,
            training=training,
            device=costs.device,
            rng=torch.Generator().manual_seed(seed),
            teacher=costs.teacher,
            source_sizes=experiment.sizes("source", vocabulary),
            _source=source,
        )

    @property
    def source(self) -> nn.Module:
        """The trained small model, frozen and in evaluation mode."""
        if self._source is None:
            raise RuntimeError("this method says uses_source = False, so there is no source model")
        return self._source

    @property
    def schedule(self) -> Schedule:
        """The run's own schedule, for a phase that is to go through all of it by itself."""
        return schedule.of(self.training)

    def with_source(self, source: nn.Module) -> Task:
        """The same task from another small model."""
        return replace(self, _source=source)

    def build(self, sizes: ModelConfig | None = None) -> nn.Module:
        """A freshly initialised model, of the target's sizes unless told otherwise."""
        with self.device:
            return self.architecture.build(sizes or self.target)

    def read(self, model: nn.Module) -> Weights:
        """A model's canonical weights, without gradients."""
        return self.architecture.read(model)

    def grow(self, weights: Weights, sizes: ModelConfig | None = None) -> nn.Module:
        """A model holding these canonical weights. Raises ValueError if a parameter is missing or misshapen."""
        return self.architecture.write(weights, self.build(sizes))

    def train_only(self, model: nn.Module, trained: Callable[[str, int | None], bool]) -> nn.Module:
        """Freeze all weights but those that `trained`(canonical name, layer or None) says; returns the model.

        Where everything below a layer is frozen, autograd does not go there. Layers of class attention belong to the head:
        their layer is None.
        """
        for name, layer, parameter in self.architecture.parameters(model):
            parameter.requires_grad_(trained(name, layer if name.startswith("layers.") else None))
        return model

    def optimizer(self, model: nn.Module, lr: float | None = None, weight_decay: float | None = None) -> Optimizer:
        """The task's AdamW over the trainable parameters; matrices and embeddings decay, norms and biases do not.

        A model may say more: timm's image models exempt positions and class token by `no_weight_decay()`.
        """
        exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
        parameters = [(p, p.dim() > 1 and name not in exempt) for name, p in model.named_parameters() if p.requires_grad]
        decay = self.training.weight_decay if weight_decay is None else weight_decay
        groups = [
            {"params": [p for p, decays in parameters if decays], "weight_decay": decay},
            {"params": [p for p, decays in parameters if not decays], "weight_decay": 0.0},
        ]
        return AdamW(
            [group for group in groups if group["params"]],
            lr=self.training.lr if lr is None else lr,
            betas=self.training.betas,
            eps=self.training.eps,
            fused=self.device.type in ("cpu", "cuda"),
        )


def tunable(default: Number, low: Number, high: Number, /) -> Number:
    """A hyperparameter that `growbench tune` looks for from `low` to `high`: by ratio where that is ten or more.

    Only whole numbers where `default` is one.
    """
    if not low <= default <= high:
        raise ValueError(f"tunable({default}, {low}, {high}): must be a default, and a range that holds it")
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class Method(ABC):
    """A growth method. Its docstring is its card; its first line says what the method does."""

    paper: ClassVar[str]  # URL
    uses_source: ClassVar[bool] = True  # False: starts from nothing, and is charged no source
    keeps_source: ClassVar[bool] = False  # True: the final model needs the source; the target is its submodule `column`

    @abstractmethod
    def phases(self, task: Task) -> Phases:
        """Yield the phases of training in order. Depend on nothing but `task` and what the yields gave back."""
