"""One experiment: methods x seeds. Skips what is done, goes on after a failure, and keeps everything."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_model, save_model
from torch import nn

from growbench import architectures, registry
from growbench.config.schema import Experiment, Training
from growbench.console import Progress, say
from growbench.costs import memory
from growbench.costs.accounts import Account, Unit
from growbench.costs.hardware import Hardware, cpu_stepping, device_name
from growbench.costs.ledger import Costs, charged
from growbench.data import Data, load, tokenizer_to_save
from growbench.errors import UsageError
from growbench.formatting import quantity
from growbench.method import Task
from growbench.planning.branches import branching_step
from growbench.planning.plan import check_sizes, refuse
from growbench.registry import Found, get
from growbench.runs import saved_models, store
from growbench.runs.records import Cost, PhaseRecord, RunConfig, RunCosts, RunError, RunRecord, RunStatus
from growbench.runs.reproduced import versions
from growbench.runs.signals import Interruption
from growbench.training import tensor_parallel
from growbench.training.checkpoint import Checkpoint, Checkpoints
from growbench.training.parallel import Parallel
from growbench.training.state import TrainingFailed
from growbench.training.trainer import Output, Stop, Trainer, Work

LADDER = (0.4, 0.55, 0.7, 0.85, 1.0)  # budgets of the ladder protocol, shares of scratch's


Source = tuple[nn.Module, Cost]  # the small model, and what its training cost


Trunk = tuple[Checkpoints, Checkpoint]  # of the run that another one branches off, and where it does


@dataclass(frozen=True)
class Job:
    """One run to do: a method on a seed at a share of the budget, or the small model's own training."""

    found: Found
    seed: int
    budget: float = 1.0
    which: Literal["source", "target"] = "target"

    @property
    def name(self) -> str:
        return store.name(self.found.name, self.seed, self.budget)


@dataclass(frozen=True)
class Benchmark:
    """Trains methods on one experiment, and stores each run below `folder`."""

    experiment: Experiment
    folder: Path  # results/<experiment>
    parallel: Parallel
    target_loss: float | None = None  # None: scratch's mean final validation loss
    stop_at_target: bool = False  # which is then given
    budgets: Sequence[float] = (1.0,)  # shares of the full one, each trained with a complete schedule of its own
    save: bool = False  # keep the trained models
    _sources: dict[int, Source | None] = field(default_factory=dict, repr=False)  # of the latest seed

    def run(self, methods: Iterable[Found], seeds: Iterable[int]) -> bool:
        """Train what is not done yet: scratch first, whose final loss is the target. False if a method failed."""
        methods, seeds = list(methods), list(seeds)
        experiment = self.experiment
        pretrained = self._pretrained  # read first: one that cannot be used is refused before any work
        check_sizes(experiment, 1000)  # whatever the vocabulary: before the data are prepared
        data = self._load_data(experiment.train)
        if data.evaluation_batches < experiment.data.evaluation_batches:
            say(f"validation data fill {data.evaluation_batches} batches, not {experiment.data.evaluation_batches}")
        for found, budget in itertools.product(methods, self.budgets):  # refuses impossible sizes before anything trains
            refuse(experiment.at(budget, found.training), found, data.vocabulary, self.parallel.device)
        if self.parallel.is_main_process:
            _check_folder(self.folder)
        self._check_parallelism()
        if pretrained and None in (pretrained[1].flops, pretrained[1].seconds):
            say(f"source: {store.UNKNOWN_SOURCE}")
        if self.save:
            tokenizer_to_save(data)  # refuses one that is not there
        succeeded = True
        target = self.target_loss
        for stage in ([f for f in methods if f.name == "scratch"], [f for f in methods if f.name != "scratch"]):
            left = [Job(found, seed) for seed in seeds for found in stage]
            elsewhere: set[str] = set()  # what another process was at
            while left:
                done = {job.name: self._work(job, data, target, job.name in elsewhere) for job in left}
                succeeded &= False not in done.values()
                left = [job for job in left if done[job.name] is None]
                if left:
                    self._wait_for({job.name for job in left} - elsewhere)
                    elsewhere |= {job.name for job in left}
            target = self.target_loss if self.target_loss is not None else self._scratch_loss(seeds)
        return succeeded

    def _load_data(self, training: Training) -> Data:
        architecture = architectures.of(self.experiment)
        return load(self.experiment.data, architecture.objective, architecture.tokenizer, training.batch)

    def _work(self, full: Job, data: Data, target: float | None, was_elsewhere: bool) -> bool | None:
        """Do what is missing of a method on a seed, at every budget. False if a run failed, None if another process is at it."""
        with self._claimed(full.name) as mine:
            if not mine:
                return None
            ladder = [replace(full, budget=budget) for budget in sorted(self.budgets, reverse=True)]
            missing = [job for job in ladder if not self._done(job, data)]
            if not missing:
                return True
            stored = [run for job in missing if (run := store.load(self.folder / job.name))]
            if was_elsewhere and any(run.record.status == RunStatus.FAILED for run in stored):
                return False
            source = self._source(data, full.seed) if needs_source(full) else None
            if needs_source(full) and source is None:
                say(f"{full.name:<18} needs the small model, whose training failed")
                return False
            return self._climb(missing, data, target, source)

    @contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """Whether no other process on this results folder has a claim of that name; it has one no more once it is dead."""
        lock = FileLock(self.folder / ".locks" / f"{name}.lock")
        with contextlib.suppress(Timeout):
            if self.parallel.is_main_process:
                lock.acquire(blocking=False)
        (mine,) = self.parallel.any_process(lock.is_locked)
        try:
            yield mine
        finally:
            lock.release()

    def _wait_for(self, names: Collection[str]) -> None:
        """A moment, while another process is at runs of these names, among others."""
        for name in sorted(names):
            say(f"{name:<18} is another process's work: waiting for it")
        time.sleep(1)

    def _climb(self, ladder: Sequence[Job], data: Data, target: float | None, source: Source | None) -> bool:
        """Train one method at several budgets, the largest first: under wsd the others branch off the full one where they can."""
        found, at = ladder[0].found, self.experiment.at
        full, longest = Job(found, ladder[0].seed), at(1.0, found.training)
        branches = {
            job.budget: step
            for job in ladder
            if job != full
            and (step := branching_step(longest, at(job.budget, found.training), found.method, data.vocabulary)) is not None
        }
        trunk = Checkpoints(self.folder / full.name / "checkpoints", self.parallel.is_main_process)
        succeeded = True
        for job in ladder:
            branch = trunk.branch(branches[job.budget]) if job.budget in branches else None
            waiting = branches.values() if job == full else ()
            succeeded &= self._train(job, data, target, source, (trunk, branch) if branch else None, waiting)
        if (self.folder / full.name / "run.json").is_file():  # else it is to be gone on with
            trunk.remove()
        return succeeded

    def _scratch_loss(self, seeds: Iterable[int]) -> float | None:
        """The mean final validation loss of the scratch runs that finished; None if none did."""
        runs = [store.load(self.folder / store.name("scratch", seed)) for seed in seeds]
        losses = [run.final_loss for run in runs if run and run.finished]
        return statistics.fmean(losses) if losses else None

    def _source(self, data: Data, seed: int) -> Source | None:
        """The small model: pretrained, or trained once per configuration and seed; None if its training failed."""
        if self._pretrained:
            return self._pretrained
        job = Job(replace(get("scratch"), name=registry.SOURCE), seed, which="source")
        unsaid = [job.name]
        while seed not in self._sources:
            with self._claimed(job.name) as mine:
                if mine:
                    self._sources.clear()
                    self._sources[seed] = self._trained_source(job, self._load_data(self.experiment.source_train))
            if not mine:
                self._wait_for(unsaid)
                unsaid = []
        return self._sources[seed]

    def _trained_source(self, job: Job, data: Data) -> Source | None:
        architecture = architectures.of(self.experiment)
        folder = self.folder / job.name
        weights = folder / "model.safetensors"
        if not (weights.is_file() and self._done(job, data)) and not self._train(job, data):
            return None
        with self.parallel.device:
            model = architecture.build(self.experiment.sizes("source", data.vocabulary))
        load_model(model, weights, device=str(self.parallel.device))
        run = store.load(folder)
        assert run is not None
        if self.save:
            self._save(job, data, model, run.record)
        flops, seconds = (run.record.cost.of(unit, Account.TRAIN) for unit in Unit)
        here = run.record.hardware == self._hardware(self.experiment.source_train)
        return model.requires_grad_(False).eval(), Cost(flops, seconds if here else None)

    @cached_property
    def _pretrained(self) -> Source | None:
        """The experiment's pretrained source. Raises UsageError if it cannot be used."""
        if self.experiment.pretrained is None:
            return None
        machine = self._hardware(self.experiment.train)
        return saved_models.load(self.experiment, self.parallel.device), saved_models.cost(self.experiment.pretrained, machine)

    def _done(self, job: Job, data: Data) -> bool:
        """Whether this run is stored, finished, with the same configuration."""
        stored = store.load(self.folder / job.name)
        if stored is None or not stored.finished:
            return False
        if stored.record.config != self._config(job, data) or stored.record.origin != job.found.origin:
            say(f"{job.name:<18} was made with another configuration: training it again")
            return False
        if self.experiment.pretrained and needs_source(job) and self.parallel.is_main_process:
            store.state_source(stored, saved_models.cost(self.experiment.pretrained, stored.record.hardware))
        unsaved = self.save and job.which == "target" and not (stored.folder / "model").is_dir() and not _keeps_source(job)
        hint = ", but its model was not saved: remove its folder to train it again"
        say(f"{job.name:<18} is done: loss {stored.final_loss:.4f}{hint * unsaved}")
        return True

    def _train(
        self,
        job: Job,
        data: Data,
        target: float | None = None,
        source: Source | None = None,
        trunk: Trunk | None = None,
        branches: Collection[int] = (),
    ) -> bool:
        """Train and store one run, from where it was left or branches off its trunk. True if it finished."""
        config = self._config(job, data)
        folder = self._run_folder(job, config) if self.parallel.is_main_process else None
        checkpoints = Checkpoints(self.folder / job.name / "checkpoints", self.parallel.is_main_process)
        if trunk:
            checkpoints.branch_off(*trunk)
            if folder:
                folder.curve.begin_as(trunk[0].folder.parent / "curve.jsonl", trunk[1].state["rows"])
        self.parallel.barrier()  # what is there to go on from is complete
        interruption = Interruption()
        trainer = self._trainer(job, data, target, source, folder, checkpoints, branches, interruption)
        record = partial(self._record, job, config, data, trainer, source, trunk)
        status, error = RunStatus.INTERRUPTED, None
        try:
            with interruption:
                outcome = trainer.run(job.found.method)
            if job.which == "source" and folder:
                assert outcome.model is not None
                save_model(outcome.model, str(folder.path / "model.safetensors"))
            elif self.save:
                self._save(job, data, outcome.model, record(RunStatus.FINISHED, None))
            status = RunStatus.FINISHED
        except Exception as failure:
            status = RunStatus.FAILED
            step = failure.step if isinstance(failure, TrainingFailed) else trainer.outcome.steps
            error = RunError(step, f"{type(failure).__name__}: {failure}", traceback.format_exc())
            say(f"{job.name:<18} failed: {failure}")
        finally:
            trainer.output.progress.close()
            if folder and not folder.close(record(status, error)):
                status = RunStatus.UNWRITTEN
        if status == RunStatus.FINISHED:
            spent = f"{quantity(trainer.costs.total('flops'), 'FLOP')}, {trainer.costs.total('seconds'):.1f} s of training"
            say(f"{job.name:<18} finished: loss {trainer.outcome.final_val_loss:.4f}, {spent}")
        if status == RunStatus.FAILED and not self.parallel.all_failed(job.name):
            say(f"{job.name:<18} failed in this process alone, which ends, so that torchrun ends the others; start them again")
            os._exit(1)  # an orderly end would wait for the others
        if status in (RunStatus.FINISHED, RunStatus.FAILED) and not branches:
            checkpoints.remove()
        self.parallel.barrier()  # what the next run reads is complete
        return status == RunStatus.FINISHED

    def _run_folder(self, job: Job, config: RunConfig) -> store.RunFolder:
        training = self.experiment.source_train if job.which == "source" else self.experiment.train
        identity = {"run": dataclasses.asdict(config), "origin": job.found.origin}
        return store.RunFolder(self.folder / job.name, identity, self._hardware(training))

    def _trainer(
        self,
        job: Job,
        data: Data,
        target: float | None,
        source: Source | None,
        folder: store.RunFolder | None,
        checkpoints: Checkpoints,
        branches: Collection[int],
        interrupted: Callable[[], bool],
    ) -> Trainer:
        """The loop for one run, with a clean ledger and all chance from the seed."""
        torch.manual_seed(job.seed)
        costs = Costs(self.parallel.device)
        experiment = self.experiment.at(job.budget, job.found.training)
        task = Task.of(experiment, job.which, data.vocabulary, costs, job.seed, source[0] if source else None)
        progress = Progress(job.name, task.budget, target, shown=self.parallel.is_main_process)
        stop_at = self.target_loss if self.stop_at_target and job.which == "target" else None
        memory.reset_peak(self.parallel.device)
        work = Work(task, data, job.seed, costs, self.experiment.machine)
        output = Output(folder.curve if folder else [], progress, checkpoints, branches)
        stop = Stop(-math.inf if stop_at is None else stop_at, interrupted)
        return Trainer(work, output, stop, self.parallel)

    def _save(self, job: Job, data: Data, model: nn.Module | None, record: RunRecord) -> None:
        """Keep a trained model for use elsewhere, unless it is kept already."""
        folder = self.folder / job.name / "model"
        if not self.parallel.is_main_process:
            return
        if _keeps_source(job):
            say(f"{job.name:<18} has a model that needs its source, which no library knows: it is not saved")
        elif not folder.is_dir():
            assert model is not None
            sizes, tokenizer = self.experiment.sizes(job.which, data.vocabulary), tokenizer_to_save(data)
            saved_models.save(folder, architectures.of(self.experiment), model, sizes, tokenizer, record)

    def _config(self, job: Job, data: Data) -> RunConfig:
        experiment = self.experiment.identity() | {"fingerprint": data.fingerprint}
        own = {f"train.{key}": value for key, value in job.found.training.items()}
        method = dataclasses.asdict(job.found.method) | own  # type: ignore[call-overload]
        stop_at_loss = self.target_loss if self.stop_at_target and job.which == "target" else None
        return RunConfig(_plain(experiment), _plain(method), job.budget, stop_at_loss)

    def _record(
        self,
        job: Job,
        config: RunConfig,
        data: Data,
        trainer: Trainer,
        source: Source | None,
        trunk: Trunk | None,
        status: RunStatus,
        error: RunError | None,
    ) -> RunRecord:
        outcome = trainer.outcome
        own, given = outcome.costs, source[1] if source else None
        inherited = trunk[1].state if trunk else None
        return RunRecord(
            status=status,
            experiment=self.experiment.name,
            title=self.experiment.title,
            method=job.found.name,
            origin=job.found.origin,
            seed=job.seed,
            config=config,
            published=self.experiment.published.get(job.found.name),
            cost=_costs(own, given),
            inherited=Cost(*(charged(inherited[unit]) for unit in Unit)) if inherited else None,
            final_val_loss=outcome.final_val_loss,
            final_val_accuracy=outcome.final_val_accuracy,
            keeps_source=job.found.method.keeps_source,
            steps=outcome.steps,
            tokens=outcome.tokens,
            parameters=sum(p.numel() for p in outcome.model.parameters()) if outcome.model else None,
            peak_memory_bytes=outcome.costs.peak_memory(),
            phases=[PhaseRecord(**phase) for phase in outcome.phases],
            waited_seconds=outcome.waited,
            versions=versions(),
            hardware=self._hardware(trainer.training),
            data=data.describe(),
            error=error,
        )

    def _hardware(self, training: Training) -> Hardware:
        """What the seconds depend on."""
        device = self.parallel.device
        return Hardware(
            device=device.type,
            name=device_name(device),
            threads=torch.get_num_threads(),
            precision=training.precision_on(device.type),
            processes=self.parallel.describe(),
            stepping=cpu_stepping() if device.type == "cpu" else "",
            **dataclasses.asdict(self.experiment.machine),
        )

    def _check_parallelism(self) -> None:
        """Refuse batches and models that the processes cannot divide among them."""
        experiment, dp_degree, tp_degree = self.experiment, self.parallel.dp_degree, self.parallel.tp_degree
        for training in (experiment.train, experiment.source_train):
            rows, left = divmod(training.batch, dp_degree)
            if left:
                raise UsageError(f"batch = {training.batch}: must be divisible by the data-parallel degree, {dp_degree}")
            if rows % experiment.machine.rows(rows):
                raise UsageError(
                    f"batch = {training.batch}: {rows} rows for each of {dp_degree} data-parallel processes: "
                    f"must be divisible by micro_batch = {experiment.machine.micro_batch}"
                )
        if dp_degree > 1 and tp_degree > 1 and experiment.machine.compile == "on":
            raise UsageError(
                'machine.compile = "on": torch cannot compile models under data and tensor parallelism together; '
                "allowed here: auto, off"
            )
        if tp_degree > 1:
            for which in ("source", "target"):
                tensor_parallel.check(architectures.of(experiment), experiment.sizes(which, 1), tp_degree)


def _costs(own: Costs, source: Cost | None) -> RunCosts:
    """A run's costs, with that of its source if it has one."""
    flops, seconds = ({Account(key): spent for key, spent in costs.items()} for costs in (own.flops, own.seconds))
    if not source:
        return RunCosts(flops, seconds)
    return RunCosts({**flops, Account.SOURCE: source.flops}, {**seconds, Account.SOURCE: source.seconds})


def _plain(value: Any) -> Any:
    """`value` as it reads back from JSON."""
    return json.loads(json.dumps(value))


def needs_source(job: Job) -> bool:
    return job.found.method.uses_source


def _keeps_source(job: Job) -> bool:
    return job.found.method.keeps_source


def _check_folder(folder: Path) -> None:
    """Refuse a results folder that cannot be written, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have done so
    except OSError as error:
        raise UsageError(f"cannot write results to {folder}: {error.strerror}; choose another folder with --results") from error
