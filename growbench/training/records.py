"""What training records of a run: held-out loss, phases, and the counters that a checkpoint holds beside its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from growbench.costs.accounts import Account, Unit

Amount = int | float | None  # of FLOPs or seconds; None: not known


@dataclass(frozen=True)
class HeldOutLoss:
    """A model's loss on the whole of a held-out split, by document. Of images, each is a document of its own."""

    losses: NDArray[np.float64]  # (documents,) the mean over a document's labels, in nats
    labels: NDArray[np.int64]  # (documents,) how many each has
    accuracy: float | None = None  # of images

    @property
    def loss(self) -> float:
        """The mean over all labels, in nats."""
        return float(np.average(self.losses, weights=self.labels))


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One phase as it was trained. None: nothing to record, or not recorded by the version that stored it."""

    name: str | None = None
    scored: bool | None = None  # its steps are steps of the budget, and its losses can reach the target
    target_sized: bool | None = None  # it trained a model of the target's sizes
    first_step: int = 0  # of the run
    steps: int
    flops_per_step: Mapping[Account, int | float] = field(default_factory=dict)  # the mean over its steps
    paper_flops_per_step: int | None = None  # by the counter of LiGO's paper
    paper_output_share: float | None = None  # of positions, at which it counts outputs; None: 0.15625, as all earlier versions
    median_step_seconds: float | None = None
    seconds: float | None = None  # of all its steps
    cpu_seconds: float | None = None  # likewise, of all threads of the process, and of its child processes that ended
    growth_flops: Amount = None  # of the growth before it
    output_change: float | None = None  # of the logits by growth, relative
    loss_before: float | None = None  # validation loss before and after growth
    loss_after: float | None = None
    optimizer: str | None = None  # the optimizer's state at its start: new or kept
    settings: Mapping[str, float] | None = None  # of its model, that are not its architecture's usual ones
    duplicates: float | None = None  # share of FFN units that equal another one, at its start
    duplicates_end: float | None = None


@dataclass(frozen=True, kw_only=True)
class PhaseUnderWay:
    """How far the present phase is. The fields are those of PhaseState."""

    done: int
    evaluated: int
    step_seconds: list[float]
    train_loss: float
    growth: dict[str, Any]
    cpu_seconds: float | None = None  # None: not measured in a checkpoint of earlier code


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run is. The first fields are those of Outcome."""

    steps: int
    tokens: int
    scored_steps: int
    rows: int
    waited: float
    val_loss: float | None
    phases: list[PhaseRecord]  # that have ended
    flops: dict[Account, int]
    seconds: dict[Account, float]
    phase: PhaseUnderWay
    losses: list[float]  # of the steps since the last evaluation
    overhead: float  # seconds
    reached: bool  # the loss to stop at
    evaluation_flops: int  # of one evaluation
    energy: dict[str, dict[Account, float]] = field(default_factory=dict)  # joules, by part; not in a checkpoint of earlier code

    def spent(self, unit: Unit) -> Mapping[Account, float]:
        """The run's costs so far, by account."""
        return self.flops if unit is Unit.FLOPS else self.seconds

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> RunState:
        """The reverse. Raises ValueError if it holds something else."""
        return _reader().validate_python(json.loads(text))


@cache
def _reader() -> TypeAdapter[RunState]:
    return TypeAdapter(RunState)
