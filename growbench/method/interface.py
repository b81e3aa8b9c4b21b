"""The plugin interface: a method, its task and its phases. Authors import it from growbench.method.

A method is a frozen dataclass whose fields are its hyperparameters. Its generator `phases` yields phases of training, which
growbench carries out. What it computes between two yields is charged as growth. growbench owns data, device, clock and FLOP
counter.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, dataclass_transform

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench import architectures
from growbench.architectures import Architecture
from growbench.config.schema import Experiment, ModelConfig, Training
from growbench.costs import teaching
from growbench.costs.published import ligo_paper_construction, ligo_paper_step
from growbench.data import Batch
from growbench.errors import UsageError, closest
from growbench.growth import WIDTHS, Axis, Weights, axis_length
from growbench.method import entries, optimizer, schedule
from growbench.method.entries import EntrySchedule
from growbench.method.loss import cross_entropy
from growbench.method.optimizer import CombinedOptimizer
from growbench.method.options import COMMON, COMMON_NAMES, State, tunable
from growbench.method.schedule import Schedule, constant
from growbench.method.training_state import Grow, Trained, grow_state
from growbench.method.views import View

__all__ = [
    "Batch", "CombinedOptimizer", "EntrySchedule", "Grow", "Method", "ModelConfig", "Phase", "Phases", "Schedule", "Task",
    "Trained", "UsageError", "View", "constant", "cross_entropy", "ligo_paper_construction", "ligo_paper_step", "task_loss",
    "tunable",
]  # fmt: skip

NO_STATE = "the source has no optimizer state, which a source has only if it was trained in this experiment"
LossFn = Callable[[nn.Module, Batch, int], Tensor]  # (model, batch, step within the phase) -> scalar


def task_loss(model: nn.Module, batch: Batch, step: int = 0) -> Tensor:
    """The task's own loss: mean cross-entropy in nats over the batch's labelled positions, or over its images."""
    return cross_entropy(model(batch.inputs, batch.positions), batch.labels)


class MethodError(UsageError):
    """A method breaks the plugin interface. The text says what it did and what to write instead."""


@dataclass(kw_only=True)
class Phase:
    """A phase of training, which growbench carries out.

    Its length is `steps`, or a `share` of the budget, or by default the rest of the budget. FLOPs are counted on one step, so
    all steps must do the same work; if they do not, `workload` gives the workload of each step. An `optimizer` keeps its state,
    and each of its param groups has a peak `lr`.
    """

    model: nn.Module  # trained in place; requires_grad says what is frozen
    steps: int | None = None  # a number of steps, at least 1
    share: float | None = None  # of the budget, above 0 and up to 1
    loss: LossFn = task_loss  # (model, batch, step within the phase) -> scalar, in nats
    optimizer: Optimizer | None = None  # None: task.optimizer(model)
    schedule: Schedule | None = None  # None: the run's schedule continues (operator: constant)
    group_schedules: Sequence[Schedule | None] = ()  # one per param group of `optimizer`; None: the phase's
    entry_schedules: Sequence[EntrySchedule] = ()  # for single entries of parameters, as new rows, beside the schedules above
    view: View | None = None  # what steps and evaluations use in place of parts of `model`: see growbench.method.views
    account: Literal["train", "operator"] = "train"  # operator: outside the budget; not scored
    name: str = "train"  # as curves and tables show it
    target: nn.Module | None = None  # the part of `model` that has the target's sizes; None: all of it
    workload: Callable[[int], int] | None = None  # step within the phase -> number of the workload
    paper_step_flops: Callable[[int, int], int] | None = None  # (batch, sequence length) -> FLOPs as LiGO's paper counts

    def __post_init__(self) -> None:
        """Raises MethodError for wrong values, so that the error is raised on the method's own line."""
        if wrong := self._wrong():
            raise MethodError(f"phase {self.name!r}: {wrong}")

    @property
    def scored(self) -> bool:
        """Whether its steps count against the budget and its losses can reach the target loss."""
        return self.account == "train"

    def workload_of(self, step: int) -> int:
        """The workload of a step: 0 if all steps do the same work."""
        return 0 if self.workload is None else self.workload(step)

    def first_steps(self, steps: int) -> dict[int, int]:
        """The first step of each workload among `steps`."""
        return {0: 0} if self.workload is None else {self.workload(step): step for step in reversed(range(steps))}

    def workloads(self, steps: range) -> Counter[int]:
        """The number of these steps that have each workload."""
        return Counter({0: len(steps)}) if self.workload is None else Counter(map(self.workload, steps))

    def length(self, budget: int, done: int) -> int:
        """Steps of this phase if `done` steps of the budget were trained before it. Raises MethodError if there are none."""
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
        return self._wrong_length() or entries.wrong(self.entry_schedules)

    def _wrong_length(self) -> str:
        if self.steps is not None and (not isinstance(self.steps, int) or isinstance(self.steps, bool)):
            return f"steps = {self.steps}: must be a whole number; share= takes a share of the budget"
        if self.share is not None and not 0 < self.share <= 1:
            return f"share = {self.share}: must be above 0 and at most 1; steps= takes a number of steps"
        if self.steps is None and self.share is None and not self.scored:
            return "is outside of the budget, so it must say steps= or share="
        return ""


Phases = Generator[Phase, Trained, None]


@dataclass
class Task:
    """What a method has to work with. All randomness in a method must come from `rng`."""

    architecture: Architecture  # native(weights, config) turns canonical weights into parameters, under autograd
    target_config: ModelConfig  # the sizes to grow to
    budget: int  # scored steps
    training: Training  # the experiment's [train]: batch, steps, lr, schedule, ...
    device: torch.device  # of every model
    rng: torch.Generator  # on the CPU, seeded by the run's seed
    source_config: ModelConfig  # the sizes of the source
    _source: nn.Module | None = field(default=None, repr=False)
    _resume_source: Callable[[nn.Module], Trained] | None = field(default=None, repr=False)  # gives a copy of it its optimizer

    def __post_init__(self) -> None:
        self.target_config, self.source_config = map(self.architecture.marked, (self.target_config, self.source_config))

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        which: Literal["source", "target"],
        vocabulary: int,
        device: torch.device,
        seed: int = 0,
        source: nn.Module | None = None,
    ) -> Task:
        """The task of training the experiment's target, given `source`, or of training its source."""
        training = experiment.train if which == "target" else experiment.source_train
        return cls(
            architecture=architectures.of(experiment, which),
            target_config=experiment.sizes(which, vocabulary),
            budget=training.steps,
            training=training,
            device=device,
            rng=torch.Generator().manual_seed(seed),
            source_config=experiment.sizes("source", vocabulary),
            _source=source,
        )

    @property
    def source(self) -> nn.Module:
        """The trained small model, frozen and in evaluation mode."""
        if self._source is None:
            raise RuntimeError(
                "this method declares uses_source = False, so it has no source model: remove that line to grow one"
            )
        return self._source

    @property
    def source_trained(self) -> Trained:
        """A copy of the small model at the end of its training, with its optimizer. It can be grown, and trained further.

        Raises UsageError if the optimizer's state is not known: of a pretrained source, and of one that earlier code stored.
        """
        model = self.model_from(self.read(self.source), self.source_config, self.settings(self.source))
        if self._resume_source is None:
            raise UsageError(NO_STATE)
        return self._resume_source(model)

    @property
    def schedule(self) -> Schedule:
        """The run's schedule, for a phase that goes through all of it from the start."""
        return schedule.of(self.training)

    def teacher(self, precomputed: bool = False) -> AbstractContextManager[None]:
        """`with task.teacher():` runs a teacher's forward pass, without gradients, charged to the account `teacher`.

        `precomputed`: count its outputs as stored before the run. The costs are then overhead, which is not charged. Stored
        outputs come from a frozen model.
        """
        return teaching.teacher(precomputed)

    def with_source(self, source: nn.Module, resume: Callable[[nn.Module], Trained] | None = None) -> Task:
        """The same task with another source model. `resume` gives a copy of it its optimizer; None: that is not known."""
        return replace(self, _source=source, _resume_source=resume)

    def build(self, config: ModelConfig | None = None, settings: Mapping[str, float] | None = None) -> nn.Module:
        """A freshly initialised model of these sizes (None: the target's). `settings`: those that are not as usual."""
        with self.device:
            return self.architecture.build(config or self.target_config, settings)

    def settings(self, model: nn.Module) -> dict[str, float]:
        """A model's settings that `build` and `model_from` can change: norm_eps, unless its library cannot store it."""
        return self.architecture.library.settings(model)

    def read(self, model: nn.Module) -> Weights:
        """A copy of a model's canonical weights, detached from autograd."""
        weights = self.architecture.read(model)
        return {name: replace(weight, value=weight.value.clone()) for name, weight in weights.items()}

    def model_from(
        self, weights: Weights, config: ModelConfig | None = None, settings: Mapping[str, float] | None = None
    ) -> nn.Module:
        """A model of these sizes (None: the target's) with these canonical weights, and with `settings` as in `build`.

        Raises ValueError if a weight is missing or has the wrong shape, and UsageError for a setting that the model lacks.
        """
        check_lengths(weights, config or self.target_config)
        return self.architecture.write(weights, self.build(config, settings))

    def grow_trained(self, trained: Trained, grow: Grow, config: ModelConfig | None = None) -> Trained:
        """A trained model grown to these sizes (None: the target's), and an optimizer with the grown state.

        `grow(weights, key)` grows canonical weights. The key says what they hold: "weight", or, as the optimizer names it, what
        it keeps for each entry: "exp_avg" and "exp_avg_sq" of Adam. Counts of steps go on.
        """

        def checked(weights: Weights, key: str) -> Weights:
            grown = grow(weights, key)
            if not isinstance(grown, dict):
                raise MethodError(
                    f"grow_trained: grow returned a {type(grown).__name__} for {key}: must be a dictionary of weights"
                )
            check_lengths(grown, config or self.target_config, f"{key} of ")
            return grown

        model = self.model_from(checked(self.read(trained.model), "weight"), config, self.settings(trained.model))
        optimizer = self.optimizer(model)
        grow_state(self.architecture, trained, checked, model, optimizer)
        return Trained(model, optimizer, trained.steps, trained.loss)

    def train_only(self, model: nn.Module, trained: Callable[[str, int | None], bool]) -> nn.Module:
        """Freeze the parameters for which `trained(canonical name, layer)` is False, unfreeze the others; return the model.

        The layer is None for what does not repeat, and for layers of class attention, which belong to the head. Autograd stops
        at the lowest layer that is trained if everything below it is frozen.
        """
        for name, layer, parameter in self.architecture.parameters(model):
            parameter.requires_grad_(trained(name, layer if name.startswith("layers.") else None))
        return model

    def new_entries(self, model: nn.Module) -> dict[str, Tensor]:
        """For an EntrySchedule: for each parameter that grew, by name, True for the entries that the source did not have.

        Raises UsageError where the source's heads cannot come first.
        """
        return entries.new_entries(self.architecture, model, self.source_config)

    def optimizer(
        self,
        model: nn.Module,
        lr: float | None = None,
        weight_decay: float | None = None,
        kind: Literal["adamw", "muon"] | None = None,
    ) -> Optimizer:
        """The task's optimizer over the model's trainable parameters, with these values in place of the task's."""
        training = self.training if kind is None else replace(self.training, optimizer=kind)
        return optimizer.of(model, self.architecture, training, self.device, lr, weight_decay)


def check_lengths(weights: Weights, config: ModelConfig, what: str = "") -> None:
    """Raise ValueError for a weight with a growing axis whose length differs from that of a model of these sizes.

    `what` stands before its name in the message.
    """
    for name, weight in weights.items():
        for axis, found in zip(weight.axes, weight.value.shape, strict=True):
            if axis in (Axis.LAYER, *WIDTHS) and found != (expected := axis_length(axis, config)):
                by = "deepen(weights, layers)" if axis is Axis.LAYER else "widen(weights, maps)"
                wrong = f"{what}{name}: its {axis.value} axis has length {found}, the model's {expected}"
                raise ValueError(f"{wrong}: grow it by {by}, or give model_from the weights' own sizes")


CLASS_FIELDS = ("paper", "uses_source", "keeps_source", "control", "wraps", "miniature")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
@dataclass(frozen=True)
class Method(ABC):
    """A growth method. Every subclass becomes a frozen dataclass, whose fields are the method's hyperparameters.

    The class's docstring describes the method; its first line says what the method does.
    """

    paper: ClassVar[str]  # URL
    uses_source: ClassVar[bool] = True  # False: trains without a source model, and is not charged for one
    control: ClassVar[bool] = False  # True: a control that uses a source; those without a source are known by that
    keeps_source: ClassVar[bool] = False  # True: the final model contains the source; each phase names its `target`
    wraps: ClassVar[tuple[str, ...]] = ()  # names or files of other methods that it gets from the registry
    miniature: ClassVar[Mapping[str, Any]] = {}  # what it is checked at, if not at the usual: {"target.width": 32}
    state: State = field(default="new", kw_only=True, metadata=COMMON)  # what the task's optimizer has of old units after growth
    rewarm_steps: int = field(default=0, kw_only=True, metadata=COMMON)  # after each growth, in which the learning rate rises
    rewarm_peak: float = field(default=1.0, kw_only=True, metadata=COMMON)  # what it rises to: a multiple of the schedule's rate

    def __init_subclass__(cls) -> None:
        """Raises UsageError for a field without a type annotation, which would be no hyperparameter, and for a taken name."""
        for name, value in vars(cls).items():
            is_data = not (name.startswith("_") or callable(value) or hasattr(value, "__get__"))
            if is_data and name not in CLASS_FIELDS and name not in inspect.get_annotations(cls):
                raise UsageError(
                    f"{cls.__name__}.{name} = {value!r} has no type: {closest(name, CLASS_FIELDS)}write {name}: "
                    f"{type(value).__name__} = {value!r} for a hyperparameter, or {name}: ClassVar[{type(value).__name__}] for a "
                    "constant"
                )
            if name in COMMON_NAMES and name not in inspect.get_annotations(cls):
                raise UsageError(f"{cls.__name__}.{name} hides a hyperparameter that every method has: rename it")
        dataclass(frozen=True)(cls)

    @abstractmethod
    def phases(self, task: Task) -> Phases:
        """Yield the phases of training in order. The code may depend only on `task` and on what the yields returned."""
