"""One run: a method's phases, trained step by step. The only training loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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
from growbench.data import TextData
from growbench.method import Method, Phase, Task, Trained, task_loss
from growbench.progress import Progress


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
    phases: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains what a method yields, and keeps the run's curve and costs.

    `add` receives each evaluation's row. With `target_loss` and `stop_at_target`, the run ends at the first scored
    evaluation at or below the target.
    """

    def __init__(
        self,
        task: Task,
        data: TextData,
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
        self.validation = [batch.to(self.device) for batch in data.validation_batches()]
        self.target_shapes = _shapes(task.architecture, task.target)
        self.outcome = Outcome(costs)
        self.costs = costs
        self.scored_steps = 0
        self.reached = False

    def run(self, method: Method) -> Outcome:
        """Train every phase of `method`. Raises TrainingFailed; `self.outcome` then holds what came before."""
        started = time.perf_counter()
        phases = method.phases(self.task)
        trained: Any = None
        try:
            while not self.reached:
                before = self.costs.flops["growth"]
                try:
                    phase = self.costs.charged("growth", partial(phases.send, trained))
                except StopIteration:
                    break
                if phase.scored and self.scored_steps >= self.task.budget:
                    break
                trained = self._train(phase, self.costs.flops["growth"] - before)
            if self.outcome.model is None or _parameter_shapes(self.outcome.model) != self.target_shapes:
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
        full_size = _parameter_shapes(model) == self.target_shapes
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

        flops_per_step = probe(0)
        left = self.task.budget - self.scored_steps
        self.progress.extend(phase.name, self.progress.done + (left if phase.scored else left + steps))
        row = {"phase": phase.name, "scored": phase.scored and full_size}
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
                costs.seconds["teacher"] += teacher
                costs.seconds[account] += sum(block) - teacher
                for each, flops in flops_per_step.items():
                    costs.flops[each] += done * flops
                recent = losses[:done].tolist()
                self._refuse_not_finite(recent, outcome.steps - done + 1)
                self._evaluate(model, row | {"train_loss": statistics.fmean(recent), "lr": peaks[0] * share})
                if self.reached:
                    break
                watch.mark()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak  # so that the next phase can go on with this optimizer
        last = probe(step)
        if last != flops_per_step:
            raise TrainingFailed(
                outcome.steps,
                f"phase {phase.name!r}: the work per step changed from {flops_per_step} to {last} FLOPs; use two phases",
            )
        outcome.phases.append(
            {
                "name": phase.name,
                "scored": phase.scored,
                "target_sized": full_size,
                "first_step": first_step,
                "steps": len(laps),
                "flops_per_step": flops_per_step,
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
        """Mean loss over the fixed validation batches, to the curve. Never charged; its FLOPs are counted once a phase."""
        model.eval()

        def mean_loss() -> Tensor:
            with torch.no_grad(), self.autocast:
                return torch.stack([task_loss(model, batch) for batch in self.validation]).mean()

        if counted:
            before = self.costs.flops["evaluation"]
            val_loss = self.costs.charged("evaluation", mean_loss).item()
            self.evaluation_flops = self.costs.flops["evaluation"] - before
        else:
            with self.costs.clocked("evaluation"):
                val_loss = mean_loss().item()
            self.costs.flops["evaluation"] += self.evaluation_flops
        model.train()
        self._refuse_not_finite([val_loss], self.outcome.steps)
        self.outcome.final_val_loss = val_loss
        flops, seconds = self.costs.total("flops"), self.costs.total("seconds")
        self.add(
            {"step": self.outcome.steps, "phase": row["phase"], "tokens": self.outcome.tokens, "val_loss": val_loss}
            | {"train_loss": row["train_loss"], "lr": row["lr"], "flops": flops, "seconds": seconds, "scored": row["scored"]}
        )
        self.progress.evaluated(val_loss, flops)
        self.reached = row["scored"] and val_loss <= self.stop_below

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


def _parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


def _shapes(architecture: Architecture, sizes: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return _parameter_shapes(architecture.build(sizes))
