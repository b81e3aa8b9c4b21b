"""One run: a method's phases, trained step by step. The only training loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn

from growbench.architectures import parameter_shapes
from growbench.config.schema import Machine
from growbench.console import Progress, say
from growbench.costs.ledger import Costs, Stopwatch
from growbench.costs.published import paper_step
from growbench.data import Batch, Data
from growbench.data.feed import Feed
from growbench.method import Method, Phase, Task, Trained, schedule
from growbench.training.checkpoint import Checkpoint, Checkpoints
from growbench.training.evaluation import Evaluation, duplicates
from growbench.training.parallel import Parallel
from growbench.training.replicas import place
from growbench.training.state import Curve, Outcome, Stretch, TrainingFailed, charge, pack, refuse_not_finite, unpack
from growbench.training.step import Step, autocast

CHECKPOINT_SECONDS = 60.0  # at least, between two checkpoints


class Trainer:
    """Trains what a method yields, and keeps the run's curve and costs.

    `curve` receives each evaluation's row. The run ends at its first scored evaluation at or below
    the loss `stop_at`. With `checkpoints` it goes on from the last of them, and is kept in a new one
    every minute; at `branches`, numbers of scored steps, it keeps one for other runs to branch off.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        seed: int,
        costs: Costs,
        curve: Curve,
        progress: Progress,
        stop_at: float | None = None,
        checkpoints: Checkpoints | None = None,
        branches: Collection[int] = (),
        interrupted: Callable[[], bool] = lambda: False,
        machine: Machine = Machine(),  # noqa: B008  # frozen
        parallel: Parallel | None = None,
    ) -> None:
        self.task, self.data, self.seed, self.curve, self.progress = task, data, seed, curve, progress
        self.stop_below = float("-inf") if stop_at is None else stop_at
        self.checkpoints, self.branches, self.interrupted = checkpoints, branches, interrupted
        self.training, self.device, self.machine = task.training, task.device, machine
        self.parallel = parallel or Parallel(task.device)
        self.schedule = schedule.of(task.training)
        self.every = max(1, task.budget // 100)  # evaluations are at most 1 % of the budget apart
        precision = autocast(self.training, self.device)
        rows = machine.rows(self.training.batch)
        self.evaluation = Evaluation(data, rows, task.architecture.objective == "classes", costs, precision)
        self.target_shapes = task.architecture.shapes(task.target_config)
        self.outcome = Outcome(costs)
        self.costs = costs
        self.reached = False
        self.source_loss: float | None = None
        self.elapsed = 0.0  # seconds before this process took the run up

    def run(self, method: Method) -> Outcome:
        """Train every phase of `method`. Raises TrainingFailed; `self.outcome` then holds what came before."""
        self.started = self.saved = time.perf_counter()
        self.feed = Feed(self.data, self.seed, self.device, self.machine.workers, self.parallel.dp_rank, self.parallel.dp_degree)
        phases = method.phases(self.task)
        trained: Any = None
        try:
            if method.uses_source:
                self.evaluation.remember(self.task.source)
                self.source_loss, _ = self.evaluation.scores(self.task.source, counted=True)
            while not self.reached:
                before = self.costs.flops["growth"]
                try:
                    phase = self.costs.charged("growth", partial(phases.send, trained))
                except StopIteration:
                    break
                if phase.scored and self.outcome.scored_steps >= self.task.budget:
                    break
                trained = self._train(phase, self.costs.flops["growth"] - before)
            if self.outcome.model is None or not self._target_sized(self.outcome.target):
                raise TrainingFailed(self.outcome.steps, "the last scored model does not have the target's sizes")
        finally:
            phases.close()
            self.feed.close()
            self.costs.seconds["overhead"] = self._overhead()
        return self.outcome

    def _train(self, phase: Phase, growth_flops: int) -> Trained:
        """Carry out one phase: take it up where it was left, or evaluate; then step by step to its end."""
        now = self._begin(phase)
        ended = self.checkpoints.ended(now.number) if self.checkpoints else None
        newest = self.checkpoints.newest(now.number) if self.checkpoints and not ended else None
        if ended:
            self._restore(now, ended)
        else:
            now.flops = {kind: self._probe(now, step) for kind, step in phase.first_steps(now.steps).items()}
            now.paper_flops = self._paper_flops(now)
            if newest:
                self._restore(now, newest)
            else:
                self._open(now, growth_flops)
            with self.parallel.own_random_state() as now.randomness:
                self._steps(now)
            self._end(now)
        return Trained(now.model, now.optimizer, now.done, now.train_loss)

    def _begin(self, phase: Phase) -> Stretch:
        model = phase.model.to(self.device).train()
        optimizer = phase.optimizer or self.task.optimizer(model)
        outcome = self.outcome
        if phase.scored:
            outcome.model, outcome.target = model, phase.target or model
        steps = phase.length(self.task.budget, outcome.scored_steps)
        left = self.task.budget - outcome.scored_steps
        self.progress.extend(phase.name, self.progress.done + (left if phase.scored else left + steps))
        return Stretch(
            phase, len(outcome.phases), model, optimizer, steps, outcome.steps, self._target_sized(phase.target or model)
        )

    def _open(self, now: Stretch, growth_flops: int) -> None:
        """Evaluate before the first step, and record what growth did to the model."""
        change = self.evaluation.change(now.model)
        if change and change > 1e-6:  # less is rounding
            say(f"{self.progress.label:<18} growth: relative output change {change:.3g}")
        now.growth = {
            "growth_flops": growth_flops,
            "output_change": change,
            "loss_before": self.outcome.final_val_loss if self.outcome.phases else self.source_loss,
            "optimizer": "kept" if any(now.optimizer.state.values()) else "new",
            "duplicates": self._duplicates(now),
        }
        self._evaluate(now, None, now.peaks[0] * self._share(now.phase, 0, now.steps), counted=True)
        now.growth["loss_after"] = self.outcome.final_val_loss

    def _steps(self, now: Stretch) -> None:
        """Train to the phase's end, or to the target, evaluating at the run's cadence."""
        outcome, phase, watch = self.outcome, now.phase, Stopwatch(self.device)
        now.live = place(now.model, now.optimizer, self.task.architecture, self.parallel, phase.workload is None)
        do = Step.of(phase, now.live, self.training, self.machine, self.device, now.steps)
        if do.compiled:
            for first in phase.first_steps(now.steps).values():
                self.costs.compiling(lambda: do.backward(self._batch(now, first), first))  # noqa: B023
            now.live.optimizer.zero_grad()
        self.feed.waited = 0.0  # outside of the clock
        watch.mark()
        for step in range(now.done, now.done if self.reached else now.steps):
            share = self._share(phase, step, now.steps)
            now.set_rates(step, share)
            self.parallel.seed(self.seed, now.first_step + step)
            now.losses.append(do.backward(self._batch(now, step), step))
            do.update()
            watch.mark()
            now.done += 1
            outcome.steps += 1
            outcome.tokens += self.data.tokens_per_batch
            outcome.scored_steps += phase.scored
            self.progress.step()
            ends, branches = now.done == now.steps, phase.scored and outcome.scored_steps in self.branches
            late = not ends and time.perf_counter() - self.saved > CHECKPOINT_SECONDS
            interrupted, late = self.parallel.any_process(self.interrupted(), late)
            due = ends or now.done % self.every == 0
            if due or branches or late or interrupted:
                self._charge(now, watch.read())
                if due:
                    self._evaluate(now, self._settle(now), now.peaks[0] * share)
                self._keep(now, branches, interrupted or late)
                if interrupted:
                    raise KeyboardInterrupt
                if self.reached:
                    break
                watch.mark()
        now.join()

    def _keep(self, now: Stretch, branches: bool, step: bool) -> None:
        """Save the checkpoints that are due."""
        if self.checkpoints and branches:
            self.checkpoints.save_branch(self.outcome.scored_steps, self._checkpoint(now))
        if self.checkpoints and step:
            self.checkpoints.save_step(now.number, now.done, self._checkpoint(now))
        if step:
            self.saved = time.perf_counter()

    def _batch(self, now: Stretch, step: int) -> Batch:
        """This process's share of the batch of a step."""
        return self.feed.batch(now.first_step + step)

    def _probe(self, now: Stretch, step: int) -> dict[str, int]:
        """FLOPs of a step by account, over all shares of the batch."""
        do = Step.of(now.phase, now.whole, self.training, self.machine, self.device)
        flops = self.costs.probe(lambda: do.backward(self._batch(now, step), step), "train" if now.phase.scored else "operator")
        now.optimizer.zero_grad()
        return {account: each * self.parallel.dp_degree for account, each in flops.items()}

    def _paper_flops(self, now: Stretch) -> int | None:
        """FLOPs of a step by the counter of LiGO's paper; None where steps differ in kind."""
        if now.phase.workload is not None:
            return None
        teacher = self.task.source_config if "teacher" in now.flops[0] else None
        batch, sequence_length = self.training.batch, self.task.target_config.positions
        return paper_step(self.task.architecture, now.model, batch, sequence_length, teacher, now.phase.paper_step_flops)

    def _charge(self, now: Stretch, laps: list[float]) -> None:
        """Charge the steps since the last time."""
        costs, teacher = self.costs, self.costs.teacher_seconds()
        costs.seconds[costs.teacher_account] += teacher
        costs.seconds["train" if now.phase.scored else "operator"] += sum(laps) - teacher
        charge(costs.flops, now.flops, now.phase.workloads(range(len(now.laps), now.done)))
        now.laps += laps
        self.outcome.waited += self.feed.waited
        self.feed.waited = 0.0

    def _settle(self, now: Stretch) -> float:
        """The mean training loss since the last evaluation. Refuses a loss that is not finite."""
        losses = self.parallel.mean(torch.stack(now.losses)).tolist()
        refuse_not_finite(losses, self.outcome.steps - len(losses) + 1)
        now.losses, now.train_loss = [], losses[-1]
        return statistics.fmean(losses)

    def _end(self, now: Stretch) -> None:
        """Check that the work per step was what was charged, and record the phase."""
        first, last = now.flops[now.phase.workload_of(now.done - 1)], self._probe(now, now.done - 1)
        if last != first:
            raise TrainingFailed(
                self.outcome.steps,
                f"phase {now.phase.name!r}: the work per step changed from {first} to {last} FLOPs; use two phases",
            )
        now.reset_rates()
        self.evaluation.remember(now.model)
        now.growth["duplicates_end"] = self._duplicates(now)
        self.outcome.phases.append(now.record())
        if self.checkpoints:
            self.checkpoints.save_end(now.number, self._checkpoint(now))

    def _checkpoint(self, now: Stretch) -> Checkpoint:
        """The present moment. All processes take part."""
        now.live.gather()
        now.losses = [self.parallel.mean(loss) for loss in now.losses]
        state = pack(self.outcome, now) | {"overhead": self._overhead(), "reached": self.reached}
        state["evaluation_flops"] = self.evaluation.flops_each
        return Checkpoint.of(now.model, now.optimizer, self.task.rng, state, now.randomness)

    def _restore(self, now: Stretch, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, the end of the phase or within it: all is as it was, but for the time that replay takes."""
        checkpoint.restore(now.model, now.optimizer, self.task.rng, self.parallel.idle_state_device)
        state = checkpoint.state
        if len(state["phases"]) > now.number:
            self.evaluation.remember(now.model)
        self.progress.resume(state["steps"] - self.outcome.steps)
        unpack(state, self.outcome, now, self.device)
        self.reached = state["reached"]
        self.evaluation.flops_each = state["evaluation_flops"]
        self.started, self.elapsed = time.perf_counter(), self.costs.spent() + state["overhead"]

    def _overhead(self) -> float:
        return self.elapsed + time.perf_counter() - self.started - self.costs.spent()

    def _duplicates(self, now: Stretch) -> float | None:
        """The share of duplicated FFN units; None for what is not the target."""
        return duplicates(self.task.read(now.phase.target or now.model)) if now.full_size else None

    def _share(self, phase: Phase, step: int, steps: int) -> float:
        """The share of the peak learning rate at this step of the phase."""
        if phase.schedule is not None:
            return phase.schedule(step, steps)
        return self.schedule(self.outcome.scored_steps, self.task.budget) if phase.scored else schedule.constant(step, steps)

    def _evaluate(self, now: Stretch, train_loss: float | None, lr: float, counted: bool = False) -> None:
        """Evaluate, to the curve."""
        outcome, phase = self.outcome, now.phase
        val_loss, accuracy = self.evaluation.scores(now.live.model, counted)
        val_loss = self.parallel.mean(torch.tensor(val_loss, dtype=torch.float64)).item()  # the same in all processes
        refuse_not_finite([val_loss], outcome.steps)
        outcome.final_val_loss, outcome.final_val_accuracy = val_loss, accuracy
        del self.curve[outcome.rows :]  # what came after the checkpoint that the run goes on from
        outcome.rows += 1
        flops, seconds, scored = self.costs.total("flops"), self.costs.total("seconds"), phase.scored and now.full_size
        self.curve.append(
            {"step": outcome.steps, "phase": phase.name, "tokens": outcome.tokens, "val_loss": val_loss, "train_loss": train_loss}
            | {"lr": lr, "flops": flops, "seconds": seconds, "scored": scored}
            | ({} if accuracy is None else {"val_accuracy": accuracy})
        )
        self.progress.evaluated(val_loss, flops)
        self.reached = scored and val_loss <= self.stop_below

    def _target_sized(self, model: nn.Module | None) -> bool:
        """Whether a model has the target's parameters."""
        return model is not None and parameter_shapes(model) == self.target_shapes
