"""The training loop: it trains the phases of one method step by step. There is no other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch

from growbench.console import say
from growbench.costs.accounts import Account, Unit
from growbench.costs.ledger import CpuClock, Stopwatch
from growbench.data import Batch
from growbench.data.feed import Feed
from growbench.elapsed import Part, Spent, elapsed
from growbench.errors import Interrupted
from growbench.method import Method
from growbench.training.audit import Audit, hidden_steps, untouched
from growbench.training.checkpoint import Checkpoint
from growbench.training.evaluation import Evaluation, duplicates
from growbench.training.graphs import CapturedStep, capture
from growbench.training.optimizer_state import parameters_of
from growbench.training.parallel import Parallel
from growbench.training.phases import PhaseDriver, PhaseObserver, observed
from growbench.training.precision import autocast
from growbench.training.replicas import place
from growbench.training.state import Outcome, PhaseState, TrainingFailed, charge, pack, refuse_not_finite, unpack
from growbench.training.step import Step
from growbench.training.work import Output, Stop, Work

CHECKPOINT_SECONDS = 60.0  # least time between two checkpoints


class Due(NamedTuple):
    """What must be done before the next step; the same in all processes."""

    evaluation: bool
    branch: bool  # a checkpoint for other runs to branch off
    checkpoint: bool
    interruption: bool
    stop: bool  # as many steps are done as were asked for
    probe: bool  # of the next step
    capture: bool  # likewise


class Trainer:
    """Trains the phases that a method yields, and records the run's curve and costs."""

    def __init__(
        self,
        work: Work,
        output: Output,
        stop: Stop | None = None,
        parallel: Parallel | None = None,
        observers: Sequence[PhaseObserver] = (),
    ) -> None:
        self.work, self.output, self.stop, self.observers = work, output, stop or Stop(), observers
        self.task, self.costs, self.training, self.device = work.task, work.costs, work.task.training, work.task.device
        self.parallel = parallel or Parallel(self.device)
        self.every = max(1, self.task.budget // 100)  # steps between two evaluations: 1 % of the budget
        machine, classifies = work.machine, self.task.architecture.objective == "classes"
        passes = autocast(self.training, machine, self.device)
        self.evaluation = Evaluation(work.data, machine.micro_batch_size(self.training.batch), classifies, work.costs, passes)
        self.feed = Feed(work.data, work.seed, self.device, machine.workers, self.parallel.dp_rank, self.parallel.dp_degree)
        self.watch, self.cpu = Stopwatch(self.device), CpuClock()
        self.outcome = Outcome(work.costs)
        self.source_loss: float | None = None
        self.reached = False  # whether the run has reached the loss to stop at
        self.started = self.saved = time.perf_counter()
        self.elapsed = 0.0  # seconds that the run took before it was resumed

    def run(self, method: Method) -> Outcome:
        """Train every phase of `method`. Raises TrainingFailed; then `self.outcome` holds the results up to that step."""
        driver = PhaseDriver(method, self.task, self.costs, self.observers, self.work.limits)
        self.audit = Audit(method, self.costs)
        try:
            with self.costs.keeping():
                self._run(method, driver)
        finally:
            driver.guard.restore()
            self.feed.close()
            self.costs.seconds[Account.OVERHEAD] = self._overhead()
        return self.outcome

    def _run(self, method: Method, driver: PhaseDriver) -> None:
        if method.uses_source:
            self.evaluation.remember(self.task.source)
            self.source_loss, _ = self.evaluation.scores(self.task.source, counted=True)
        stopped = False
        for start in driver:
            now = PhaseState.of(start, self.task.schedule, self.task.budget)
            self._announce(now)
            if not self._restore_end(now):
                self._begin(now)
                with self.parallel.own_random_state() as now.randomness:
                    stopped = self._train(now)
                if stopped:
                    break
                self._end(now)
            self.outcome.train_loss = now.train_loss
            driver.trained(now.train_loss)
            if self.reached:
                break
        self.outcome.end(self.evaluation)
        self.audit.run_ended(self.outcome.phases, stopped)

    def _train(self, now: PhaseState) -> bool:
        """Train a phase to its end, or to the loss to stop at. Before each step and after the last, do what is due.

        True if the run stopped within the phase, after as many steps as were asked for.
        """
        while True:
            due = self._due(now)
            if any(due):
                self._charge(now)
                self.audit.refuse_threads(now.phase.name)
            if due.evaluation:
                self._evaluate(now)
            if due.branch or due.checkpoint:
                self._save(now, due)
            if due.interruption:
                raise Interrupted
            if due.stop:
                return True
            if now.ended or self.reached:
                break
            if due.probe:
                with untouched(now.model, self.task.rng):
                    self._check_work(now, now.done)
            if due.capture:
                self._capture(now)
            self._step(now, clock_stopped=any(due))
        now.join()
        return False

    def _due(self, now: PhaseState) -> Due:
        evaluation = now.evaluated != now.done and (now.ended or now.done % self.every == 0)
        branch = now.done > 0 and now.phase.scored and self.outcome.scored_steps in self.output.branches
        late = not now.ended and self.parallel.is_main_process and time.perf_counter() - self.saved > CHECKPOINT_SECONDS
        interruption, late = self.parallel.any_process(self.stop.interrupted(), late)
        stop = self.stop.is_due(self.outcome)
        checkpoint = interruption or stop or late
        return Due(evaluation, branch, checkpoint, interruption, stop, probe=now.next_is_hidden, capture=now.to_capture)

    def _step(self, now: PhaseState, clock_stopped: bool) -> None:
        """One training step, on the clock."""
        step = now.step
        if step is None:
            step, clock_stopped = self._place(now), True
        if clock_stopped:
            self.costs.energy.start()
            self.cpu.start()
            self.watch.mark()
        with observed(self.observers, now.start, now.done, now.flops[now.timetable.workloads[now.done]]):
            now.set_rates()
            self.parallel.seed(self.work.seed, now.start.first_step + now.done)
            batch = self._batch(now, now.done)
            with self.costs.gradients.allowed():
                now.losses.append(step.backward(batch, now.done))
            with self.costs.gradients.no_backward() if now.next_is_hidden else nullcontext():
                step.update()
        self.watch.mark()
        self.audit.step_done(now.phase.name)
        now.done += 1
        self.outcome.steps += 1
        self.outcome.tokens += self.work.data.tokens_per_batch
        self.outcome.scored_steps += now.phase.scored
        self.output.progress.step()

    def _place(self, now: PhaseState) -> Step:
        """Replicate or shard the phase's model over the processes, and compile it if that pays off."""
        now.live = place(now.phase, now.optimizer, self.task.architecture, self.parallel, now.skips_parameters)
        now.step = step = Step.of(now.phase, now.live, self.training, self.work.machine, self.device, now.start.steps)
        if step.compiled:
            for first in now.timetable.first_steps().values():
                self.costs.compiling(lambda: step.backward(self._batch(now, first), first))  # noqa: B023
            now.live.zero_grad()
        now.to_capture = self.work.machine.graphs and not self.observers
        self.evaluation.forget()
        self.feed.waited = 0.0
        return step

    def _capture(self, now: PhaseState) -> None:
        """Have CUDA graphs do the phase's steps from now on, if they can."""
        step, batch = now.step, self._batch(now, now.done)
        assert isinstance(step, Step)
        with untouched(now.model, self.task.rng):
            now.step = self.costs.compiling(lambda: capture(step, batch))
            if isinstance(now.step, CapturedStep):
                self.costs.compiling(lambda: self.evaluation.capture(now.evaluation_module))
        now.to_capture, self.feed.waited = False, 0.0

    def _announce(self, now: PhaseState) -> None:
        outcome, start = self.outcome, now.start
        if now.phase.scored:
            outcome.model, outcome.target, outcome.optimizer = start.model, start.target, start.optimizer
        left = self.task.budget - outcome.scored_steps
        progress = self.output.progress
        progress.extend(now.phase.name, progress.done + (left if now.phase.scored else left + start.steps))

    def _begin(self, now: PhaseState) -> None:
        """Count the FLOPs of a step of each workload. Then resume the phase, or, if it is new, measure what growth changed."""
        now.hidden = hidden_steps(self.work.seed, now.start.number, now.start.steps)
        now.flops = {workload: self._probe(now, step) for workload, step in now.timetable.first_steps().items()}
        now.count_as_paper(self.task)
        newest = self.output.checkpoints.newest(now.start.number, now.check) if self.output.checkpoints else None
        if newest:
            self._restore(now, newest)
            return
        change = self.evaluation.change(now.evaluation_module)
        if change and change > 1e-6:  # less is rounding
            say(f"{self.output.progress.label:<18} growth: relative output change {change:.3g}")
        now.growth = {
            "growth_flops": now.start.growth_flops,
            "output_change": change,
            "loss_before": self.outcome.val_loss if self.outcome.phases else self.source_loss,
            "optimizer": "kept" if now.start.keeps_optimizer_state else "new",
            "duplicates": self._duplicates(now),
        }

    def _end(self, now: PhaseState) -> None:
        """Check that the last step took as many FLOPs as were charged, and record the phase."""
        self._check_work(now, now.done - 1)
        now.reset_rates()
        self.evaluation.remember(now.model)
        now.growth["duplicates_end"] = self._duplicates(now)
        self.outcome.phases.append(now.record())
        if self.output.checkpoints:
            self.output.checkpoints.save_end(now.start.number, self._checkpoint(now))

    def _check_work(self, now: PhaseState, step: int) -> None:
        """Raise TrainingFailed unless this step takes as many FLOPs as are charged for it."""
        charged, found = now.flops[now.timetable.workloads[step]], self._probe(now, step)
        if found != charged:
            change = f"from {sum(charged.values()):,} to {sum(found.values()):,} FLOPs"
            wrong = f"phase {now.phase.name!r}: the work per step changed {change}; use two phases"
            raise TrainingFailed(self.outcome.steps, wrong)

    def _evaluate(self, now: PhaseState) -> None:
        """Evaluate, and add a row to the curve. At the start of a phase also count the FLOPs of an evaluation."""
        outcome, begins = self.outcome, now.done == 0
        train_loss = None if begins else self._mean_train_loss(now)
        val_loss, accuracy = self.evaluation.scores(now.evaluation_module, counted=begins)
        val_loss = self.parallel.mean(torch.tensor(val_loss, dtype=torch.float64)).item()  # the same in all processes
        refuse_not_finite([val_loss], outcome.steps)
        outcome.val_loss, now.evaluated = val_loss, now.done
        if begins:
            now.growth["loss_after"] = val_loss
        scored = now.counts
        row = {
            "step": outcome.steps,
            "phase": now.phase.name,
            "tokens": outcome.tokens,
            "val_loss": val_loss,
            "train_loss": train_loss,
            "lr": now.peaks[0] * now.timetable.lr_multipliers[max(now.done - 1, 0)],
            "flops": self.costs.total(Unit.FLOPS),
            "seconds": self.costs.total(Unit.SECONDS),
            "scored": scored,
        }
        del self.output.curve[outcome.rows :]  # drops rows newer than the checkpoint that the run was resumed from
        self.output.curve.append(row if accuracy is None else row | {"val_accuracy": accuracy})
        outcome.rows += 1
        self.output.progress.show(val_loss, row["flops"])
        self.reached = scored and val_loss <= self.stop.at_loss

    def _mean_train_loss(self, now: PhaseState) -> float:
        """The mean training loss (nats) since the last evaluation. Raises TrainingFailed for a loss that is not finite."""
        losses = self.parallel.mean(torch.stack(now.losses)).tolist()
        refuse_not_finite(losses, self.outcome.steps - len(losses) + 1)
        now.losses, now.train_loss = [], losses[-1]
        return statistics.fmean(losses)

    def _charge(self, now: PhaseState) -> None:
        """Read the clock, and charge the steps since it was read last."""
        step_seconds = self.watch.read()
        self.costs.charge_steps(now.account, sum(step_seconds))
        charge(self.costs.flops, now.flops, now.timetable.count(range(len(now.step_seconds), now.done)))
        if step_seconds:
            spent = Spent(sum(step_seconds), self.cpu.read())
            elapsed.move(Part.STEPS, spent)
            if now.cpu_seconds is not None:
                now.cpu_seconds += spent.cpu_seconds
        now.step_seconds += step_seconds
        self.outcome.waited, self.feed.waited = self.outcome.waited + self.feed.waited, 0.0

    def _batch(self, now: PhaseState, step: int) -> Batch:
        """This process's part of the batch of a step."""
        return self.feed.batch(now.start.first_step + step)

    def _probe(self, now: PhaseState, step: int) -> dict[Account, int]:
        """FLOPs of a step by account, over all parts of the batch."""
        do = Step.of(now.phase, now.live, self.training, self.work.machine, self.device)

        def once() -> None:
            with now.live.accumulating():
                do.backward(self._batch(now, step), step)

        parameters, waited = parameters_of(now.optimizer), self.feed.waited
        flops = self.costs.probe(once, now.account, parameters)
        self.feed.waited = waited  # the clock stands while a step is counted
        now.skips_parameters |= any(parameter.grad is None for parameter in parameters)
        flops = {account: each * self.parallel.dp_degree for account, each in flops.items()} | now.optimizer_flops()
        now.live.zero_grad()
        return flops

    def _duplicates(self, now: PhaseState) -> float | None:
        """The share of duplicated FFN units; None for a model that is not of the target's sizes."""
        return duplicates(self.task.read(now.start.target)) if now.start.target_sized else None

    def _save(self, now: PhaseState, due: Due) -> None:
        """Write the checkpoints that are due."""
        if self.output.checkpoints and due.branch:
            self.output.checkpoints.save_branch(self.outcome.scored_steps, self._checkpoint(now))
        if self.output.checkpoints and due.checkpoint:
            self.output.checkpoints.save_step(now.start.number, now.done, self._checkpoint(now))
        if due.checkpoint:
            self.saved = time.perf_counter() + (self.output.checkpoints.pause() if self.output.checkpoints else 0.0)

    def _checkpoint(self, now: PhaseState) -> Checkpoint:
        """A checkpoint of the present state. All processes must call this together."""
        now.live.gather()
        now.losses = [self.parallel.mean(loss) for loss in now.losses]
        state = pack(self.outcome, now, self._overhead(), self.reached, self.evaluation.flops_each)
        return Checkpoint.of(now.model, now.optimizer, self.task.rng, state, now.randomness)

    def _restore_end(self, now: PhaseState) -> bool:
        """Load the phase as it was at its end, if an earlier process trained it to there. Returns whether it did."""
        ended = self.output.checkpoints.ended(now.start.number, now.check) if self.output.checkpoints else None
        if ended:
            self._restore(now, ended)
        return ended is not None

    def _restore(self, now: PhaseState, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Only the seconds that replay takes are added to the run."""
        checkpoint.restore(now.model, now.optimizer, self.task.rng, self.parallel.idle_state_device(now.optimizer))
        state = checkpoint.state
        if len(state.phases) > now.start.number:  # the phase had ended; what this takes is in the checkpoint's costs already
            self.evaluation.remember(now.model)
        self.output.progress.resume(state.steps - self.outcome.steps)
        unpack(state, self.outcome, now, self.device)
        self.reached = state.reached
        self.evaluation.flops_each = state.evaluation_flops
        self.started, self.elapsed = time.perf_counter(), self.costs.spent() + state.overhead

    def _overhead(self) -> float:
        return self.elapsed + time.perf_counter() - self.started - self.costs.spent()
