"""The plugin interface: everything that the author of a growth method imports.

A method is a frozen dataclass whose fields are its hyperparameters. Its `phases` yields stretches of training that the
runner carries out, and what it computes between two yields is its growth. The runner owns data, device, clock and counter.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar, dataclass_transform

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from growbench import architectures
from growbench.architectures import Architecture
from growbench.config.schema import Experiment, ModelConfig, Training
from growbench.costs.ledger import Costs
from growbench.costs.published import ligo_paper_construction, ligo_paper_step
from growbench.data import Batch
from growbench.errors import UsageError
from growbench.growth.maps import copying, interleave, stack, stack_and_top
from growbench.growth.weights import WIDTHS, Axis, AxisMap, Extend, Maps, Select, Weight, Weights, deepen, length, widen
from growbench.method import schedule
from growbench.method.loss import cross_entropy
from growbench.method.schedule import Schedule, constant

__all__ = [
    "WIDTHS",
    "Axis",
    "AxisMap",
    "Batch",
    "Extend",
    "Maps",
    "Method",
    "ModelConfig",
    "Phase",
    "Phases",
    "Schedule",
    "Select",
    "Task",
    "Trained",
    "UsageError",
    "Weight",
    "Weights",
    "constant",
    "copying",
    "cross_entropy",
    "deepen",
    "interleave",
    "length",
    "ligo_paper_construction",
    "ligo_paper_step",
    "stack",
    "stack_and_top",
    "task_loss",
    "tunable",
    "widen",
]  # fmt: skip


Number = TypeVar("Number", int, float)


LossFn = Callable[[nn.Module, Batch, int], Tensor]  # (model, batch, step within the phase) -> scalar


def task_loss(model: nn.Module, batch: Batch, step: int = 0) -> Tensor:
    """The task's own loss: mean cross-entropy in nats over the batch's scored positions, or its images."""
    return cross_entropy(model(batch.inputs, batch.positions), batch.labels)


class MethodError(UsageError):
    """A method breaks the plugin interface: what it did, and what to write instead."""


@dataclass(kw_only=True)
class Phase:
    """A stretch of training that the runner carries out.

    Its length is `steps`, or a `share` of the budget, or neither: the rest of the budget. Every step does the same work; where
    it does not, `workload` says which of several workloads a step has. An optimizer of the method's own, best made by
    `task.optimizer(model)`, brings its state, and for each of its param groups a peak `lr`.
    """

    model: nn.Module  # trained in place; requires_grad says what is frozen
    steps: int | None = None  # a number of steps, at least 1
    share: float | None = None  # of the budget, above 0 and up to 1
    loss: LossFn = task_loss  # (model, batch, step within the phase) -> scalar, in nats
    optimizer: Optimizer | None = None  # None: task.optimizer(model)
    schedule: Schedule | None = None  # None: the run's schedule goes on where it is (constant in an operator's phase)
    group_schedules: Sequence[Schedule | None] = ()  # one a param group of `optimizer`; None: the phase's
    account: Literal["train", "operator"] = "train"  # operator: outside of the budget, and its losses reach no target
    name: str = "train"  # as curves and tables show it
    target: nn.Module | None = None  # the part of `model` that is the target, where `model` holds more
    workload: Callable[[int], int] | None = None  # step within the phase -> number of its workload
    paper_step_flops: Callable[[int, int], int] | None = None  # (batch, sequence length) -> FLOPs by the counter of LiGO's paper

    def __post_init__(self) -> None:
        """Raises MethodError for wrong values, so that the error is raised on the method's own line."""
        if wrong := self._wrong():
            raise MethodError(f"phase {self.name!r}: {wrong}")

    @property
    def scored(self) -> bool:
        """Whether its steps are steps of the budget, and its losses can reach the target."""
        return self.account == "train"

    def workload_of(self, step: int) -> int:
        """The workload of a step; 0 where all are the same."""
        return 0 if self.workload is None else self.workload(step)

    def first_steps(self, steps: int) -> dict[int, int]:
        """The first step of each workload among `steps`."""
        return {0: 0} if self.workload is None else {self.workload(step): step for step in reversed(range(steps))}

    def workloads(self, steps: range) -> Counter[int]:
        """How many of these steps have each workload."""
        return Counter({0: len(steps)}) if self.workload is None else Counter(map(self.workload, steps))

    def length(self, budget: int, done: int) -> int:
        """Steps of this phase when `done` of the budget's steps lie behind. Raises MethodError if it has none."""
        left = budget - done if self.scored else budget
        asked = self.steps if self.steps is not None else left if self.share is None else round(self.share * budget)
        if asked < 1:
            raise MethodError(f"phase {self.name!r}: {asked} steps of a budget of {budget}: must have at least one")
        return min(asked, left) if self.scored else asked

    def _wrong(self) -> str:
        """What is wrong with the fields, whatever the budget is; empty if all is well."""
        if not isinstance(self.model, nn.Module):
            return f"model is a {type(self.model).__name__}: must be a torch.nn.Module; task.model_from(weights) makes one"
        if self.account not in ("train", "operator"):
            return f"account = {self.account!r}: must be 'train' or 'operator'"
        if self.steps is not None and self.share is not None:
            return f"steps = {self.steps} and share = {self.share}: give one of them"
        return self._wrong_length()

    def _wrong_length(self) -> str:
        if self.steps is not None and (not isinstance(self.steps, int) or isinstance(self.steps, bool)):
            return f"steps = {self.steps}: must be a whole number; share= takes a share of the budget"
        if self.share is not None and not 0 < self.share <= 1:
            return f"share = {self.share}: must be above 0 and at most 1; steps= takes a number of steps"
        if self.steps is None and self.share is None and not self.scored:
            return "is outside of the budget, so it must say steps= or share="
        return ""


@dataclass(frozen=True)
class Trained:
    """What a yield gives back: the phase's model and optimizer as training left them, steps done, last training loss."""

    model: nn.Module  # the phase's own
    optimizer: Optimizer  # with its state: the next phase may go on with it
    steps: int  # done
    loss: float  # of the last training step, in nats


Phases = Generator[Phase, Trained, None]


@dataclass
class Task:
    """What a method has to work with. Everything random in a method comes from `rng`."""

    architecture: Architecture  # the table of its weights: native(weights, config) gives parameters under autograd
    target_config: ModelConfig  # the sizes to grow to
    budget: int  # scored steps
    training: Training  # the experiment's [train]: batch, steps, lr, schedule, ...
    device: torch.device  # of every model
    rng: torch.Generator  # on the CPU, seeded by the run's seed
    teacher: Callable[..., AbstractContextManager[None]]  # with task.teacher(): no gradients, its costs apart
    source_config: ModelConfig  # the sizes of the source
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
            target_config=experiment.sizes(which, vocabulary),
            budget=training.steps,
            training=training,
            device=costs.device,
            rng=torch.Generator().manual_seed(seed),
            teacher=costs.teacher,
            source_config=experiment.sizes("source", vocabulary),
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

    def build(self, config: ModelConfig | None = None) -> nn.Module:
        """A freshly initialised model, of the target's sizes unless told otherwise."""
        with self.device:
            return self.architecture.build(config or self.target_config)

    def read(self, model: nn.Module) -> Weights:
        """A copy of a model's canonical weights, without gradients."""
        weights = self.architecture.read(model)
        return {name: replace(weight, value=weight.value.clone()) for name, weight in weights.items()}

    def model_from(self, weights: Weights, config: ModelConfig | None = None) -> nn.Module:
        """A model that holds these canonical weights, of the target's sizes unless told otherwise.

        Raises ValueError if a parameter is missing or misshapen.
        """
        _check_lengths(weights, config or self.target_config)
        return self.architecture.write(weights, self.build(config))

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


def _check_lengths(weights: Weights, config: ModelConfig) -> None:
    """Refuse weights whose growing axes have not the lengths of a model of these sizes."""
    for name, weight in weights.items():
        for axis, found in zip(weight.axes, weight.value.shape, strict=True):
            if axis in (Axis.LAYER, *WIDTHS) and found != (expected := length(axis, config)):
                by = "deepen(weights, layers)" if axis is Axis.LAYER else "widen(weights, maps)"
                raise ValueError(f"{name}: its {axis.value} axis has length {found}, the model's {expected}: grow it by {by}")


CLASS_FIELDS = ("paper", "uses_source", "keeps_source", "wraps")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
@dataclass(frozen=True)
class Method(ABC):
    """A growth method. Its annotated fields are its hyperparameters: each subclass is made a frozen dataclass.

    Its docstring is its card; the first line says what the method does.
    """

    paper: ClassVar[str]  # URL
    uses_source: ClassVar[bool] = True  # False: starts from nothing, and is charged no source
    keeps_source: ClassVar[bool] = False  # True: the final model needs the source; each phase says which part is its `target`
    wraps: ClassVar[tuple[str, ...]] = ()  # names or files of the methods that it takes from the registry

    def __init_subclass__(cls) -> None:
        """Raises UsageError for a field that has no type, which would be no hyperparameter."""
        for name, value in vars(cls).items():
            is_data = not (name.startswith("_") or callable(value) or hasattr(value, "__get__"))
            if is_data and name not in CLASS_FIELDS and name not in inspect.get_annotations(cls):
                raise UsageError(
                    f"{cls.__name__}.{name} = {value!r} has no type: write {name}: {type(value).__name__} = {value!r} for a "
                    f"hyperparameter, or {name}: ClassVar[{type(value).__name__}] for a constant"
                )
        dataclass(frozen=True)(cls)

    @abstractmethod
    def phases(self, task: Task) -> Phases:
        """Yield the phases of training in order. Depend on nothing but `task` and what the yields gave back."""
