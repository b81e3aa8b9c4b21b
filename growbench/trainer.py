"""One run: a method's phases, trained step by step. The only training loop."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from growbench import schedule
from growbench.architectures import Architecture
from growbench.config import ModelConfig, Training
from growbench.cost import Costs, Stopwatch
from growbench.data import Data
from growbench.evaluation import Evaluation
from growbench.method import Method, Phase, Task, Trained
from growbench.progress import Progress, say


class TrainingFailed(Exception):
    """A run that cannot go on: what went wrong, and at which step."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step


@dataclass
class Outcome:
    """What a run leaves behind, complete or as far as it came."""

    costs: Costs
    model: nn.Module | None = None  # the last scored one
    steps: int = 0
    tokens: int = 0
    final_val_loss: float | None = None
    final_val_accuracy: float | None = None  # of images
    phases: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains what a method yields, and keeps the run's curve and costs.

    `add` receives each evaluation's row. With `target_loss` and `stop_at_target`, the run ends at the first scored
    evaluation at or below the target.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        seed: int,
        costs: Costs,
        add: Callable[[dict[str, Any]], None],
        progress: Progress,
        target_loss: float | None = None,
        stop_at_target: bool = False,
    ) -> None:
        self.task, self.data, self.seed, self.add, self.progress = task, data, seed, add, progress
        self.stop_below = target_loss if stop_at_target and target_loss is not None else float("-inf")
        self.training: Training = task.training
        self.device = task.device
        self.schedule = schedule.of(task.training)
        self.every = max(1, task.budget // 100)  # evaluations are at most 1 % of the budget apart
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision(self.training, self.device) == "bf16")
        self.evaluation = Evaluation(data, task.architecture.objective == "classes", costs, self.autocast)
        self.target_shapes = _shapes(task.architecture, task.target)
        self.outcome = Outcome(costs)
        self.costs = costs
        self.scored_steps = 0
        self.reached = False

    def run(self, method: Method) -> Outcome:
        """Train every phase of `method`. Raises TrainingFailed; `self.outcome` then holds what came before."""
        started = time.perf_counter()
        phases = method.phases(self.task)
        self.column = "column" if method.keeps_source else ""
        trained: Any = None
        try:
            if method.uses_source:
                self.evaluation.remember(self.task.source)
            while not self.reached:
                before = self.costs.flops["growth"]
                try:
                    phase = self.costs.charged("growth", partial(phases.send, trained))
                except StopIteration:
                    break
                if phase.scored and self.scored_steps >= self.task.budget:
                    break
                trained = self._train(phase, self.costs.flops["growth"] - before)
            if self.outcome.model is None or not self._target_sized(self.outcome.model):
                raise TrainingFailed(self.outcome.steps, "the last scored model does not have the target's sizes")
        finally:
            phases.close()
            spent = sum(seconds for account, seconds in self.costs.seconds.items() if account not in ("source", "overhead"))
            self.costs.seconds["overhead"] = time.perf_counter() - started - spent
        return self.outcome

    def _train(self, phase: Phase, growth_flops: int) -> Trained:
        """Carry out one phase: evaluate, then step by step, evaluating at the run's cadence and at the end."""
        outcome, costs, account = self.outcome, self.costs, "train" if phase.scored else "operator"
        model = phase.model.to(self.device).train()
        optimizer = phase.optimizer or self.task.optimizer(model)
        parameters = _trained_parameters(model, optimizer)
        steps = phase.length(self.task.budget, self.scored_steps)
        peaks = [group["lr"] for group in optimizer.param_groups]
        full_size = self._target_sized(model)
        if phase.scored:
            outcome.model = model
        first_step = outcome.steps

        def step_loss(step: int) -> Tensor:
            batch = self.data.train_batch(first_step + step, self.seed).to(self.device)
            with self.autocast:
                return phase.loss(model, batch, step)

        def probe(step: int) -> dict[str, int]:
            flops = costs.probe(lambda: step_loss(step).backward(), account)
            optimizer.zero_grad()
            return flops

        flops_by_kind = {kind: probe(step) for kind, step in phase.first_steps(steps).items()}
        left = self.task.budget - self.scored_steps
        self.progress.extend(phase.name, self.progress.done + (left if phase.scored else left + steps))
        row = {"phase": phase.name, "scored": phase.scored and full_size}
        change = self.evaluation.change(model)
        if change and change > 1e-6:  # less is rounding
            say(f"{self.progress.label:<18} growth: relative output change {change:.3g}")
        self._evaluate(model, row | {"train_loss": None, "lr": peaks[0] * self._share(phase, 0, steps)}, counted=True)
        losses = torch.zeros(self.every, device=self.device)
        watch, laps = Stopwatch(self.device), []
        watch.mark()
        for step in range(steps):
            share = self._share(phase, step, steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (group["schedule"](step, steps) if "schedule" in group else share)
            loss = step_loss(step)
            loss.backward()
            clip_grad_norm_(parameters, self.training.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses[step % self.every] = loss.detach()
            watch.mark()
            outcome.steps += 1
            outcome.tokens += self.data.tokens_per_batch
            self.scored_steps += phase.scored
            self.progress.step()
            if (step + 1) % self.every == 0 or step + 1 == steps:
                done = step % self.every + 1
                block = watch.read()
                laps += block
                teacher = costs.teacher_seconds()
                costs.seconds[costs.teacher_account] += teacher
                costs.seconds[account] += sum(block) - teacher
                _charge(costs.flops, flops_by_kind, map(phase.kind, range(step + 1 - done, step + 1)))
                recent = losses[:done].tolist()
                self._refuse_not_finite(recent, outcome.steps - done + 1)
                self._evaluate(model, row | {"train_loss": statistics.fmean(recent), "lr": peaks[0] * share})
                if self.reached:
                    break
                watch.mark()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak  # so that the next phase can go on with this optimizer
        first, last = flops_by_kind[phase.kind(step)], probe(step)
        if last != first:
            raise TrainingFailed(
                outcome.steps, f"phase {phase.name!r}: the work per step changed from {first} to {last} FLOPs; use two phases"
            )
        self.evaluation.remember(model)
        spent: Counter[str] = Counter()
        _charge(spent, flops_by_kind, map(phase.kind, range(len(laps))))
        outcome.phases.append(
            {
                "name": phase.name,
                "scored": phase.scored,
                "target_sized": full_size,
                "first_step": first_step,
                "steps": len(laps),
                "flops_per_step": {each: flops / len(laps) for each, flops in spent.items()},
                "output_change": change,
                "median_step_seconds": statistics.median(laps),
                "growth_flops": growth_flops,
            }
        )
        return Trained(model, optimizer, len(laps), recent[-1])

    def _share(self, phase: Phase, step: int, steps: int) -> float:
        """The share of the peak learning rate at this step of the phase."""
        if phase.schedule is not None:
            return phase.schedule(step, steps)
        return self.schedule(self.scored_steps, self.task.budget) if phase.scored else schedule.constant(step, steps)

    def _evaluate(self, model: nn.Module, row: dict[str, Any], counted: bool = False) -> None:
        """Evaluate, to the curve."""
        val_loss, accuracy = self.evaluation.scores(model, counted)
        self._refuse_not_finite([val_loss], self.outcome.steps)
        self.outcome.final_val_loss = val_loss
        self.outcome.final_val_accuracy = accuracy
        flops, seconds = self.costs.total("flops"), self.costs.total("seconds")
        self.add(
            {"step": self.outcome.steps, "phase": row["phase"], "tokens": self.outcome.tokens, "val_loss": val_loss}
            | {"train_loss": row["train_loss"], "lr": row["lr"], "flops": flops, "seconds": seconds, "scored": row["scored"]}
            | ({} if accuracy is None else {"val_accuracy": accuracy})
        )
        self.progress.evaluated(val_loss, flops)
        self.reached = row["scored"] and val_loss <= self.stop_below

    def _target_sized(self, model: nn.Module) -> bool:
        """Whether a model, or its part that is the target where the method keeps the source, has the target's parameters."""
        return _parameter_shapes(model.get_submodule(self.column)) == self.target_shapes

    def _refuse_not_finite(self, losses: list[float], first_step: int) -> None:
        for step, loss in enumerate(losses, first_step):
            if loss != loss or abs(loss) == float("inf"):
                raise TrainingFailed(step, f"the loss is {loss}")


def precision(training: Training, device: torch.device) -> str:
    """float32 or bf16: what `auto` means on this device."""
    if training.precision == "auto":
        return "bf16" if device.type == "cuda" else "float32"
    return training.precision


def _trained_parameters(model: nn.Module, optimizer: Optimizer) -> list[nn.Parameter]:
    """The model's trainable parameters. Raises ValueError unless the optimizer holds exactly these."""
    trainable = {id(p): (name, p) for name, p in model.named_parameters() if p.requires_grad}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for key, (name, _) in trainable.items() if key not in held]
    if missing or len(held) != len(trainable):
        raise ValueError(
            f"the optimizer must hold exactly the trainable parameters; it lacks {missing or 'none, and holds others'}"
        )
    return [p for _, p in trainable.values()]


def _charge(flops: MutableMapping[str, int], by_kind: dict[int, dict[str, int]], kinds: Iterable[int]) -> None:
    """Add the FLOPs of steps of these kinds of work to `flops`, by account."""
    for kind, steps in Counter(kinds).items():
        for account, each in by_kind[kind].items():
            flops[account] += steps * each


def _parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


def _shapes(architecture: Architecture, sizes: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return _parameter_shapes(architecture.build(sizes))
