"""One run: trained or resumed, its record stored, and its model saved."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from growbench import architectures
from growbench.config.schema import Training
from growbench.console import say
from growbench.costs import memory
from growbench.costs.accounts import Account, Unit
from growbench.costs.energy import counters
from growbench.costs.ledger import Costs, charged
from growbench.data import Data, tokenizer_to_save
from growbench.elapsed import Part, elapsed
from growbench.errors import Interrupted, UsageError
from growbench.files import replacing, sha256
from growbench.formatting import quantity
from growbench.method import Task, Trained
from growbench.runs import curve, store
from growbench.runs.jobs import Job, Setting
from growbench.runs.records import (
    Cost,
    RunCosts,
    RunError,
    RunRecord,
    RunStatus,
    versions,
)
from growbench.runs.saved_models import TrainedModel
from growbench.runs.signals import Interruption
from growbench.runs.trackers import Live, Tracked
from growbench.training import trained_state
from growbench.training.checkpoint import Checkpoint, Checkpoints
from growbench.training.phases import contained, one_line, text_of
from growbench.training.state import TrainingFailed
from growbench.training.trainer import Output, Stop, Trainer, Work


class SourceModel:
    """The small model that all methods grow, and the cost of its training. No method may change it.

    `resume` gives a copy of it its optimizer; None: that is not known.
    """

    def __init__(self, model: nn.Module, cost: Cost, resume: Callable[[nn.Module], Trained] | None = None) -> None:
        self.model, self.cost, self.resume = model.requires_grad_(False).eval(), cost, resume
        self._unchanged = dict(_digests(self.model))

    def changes(self) -> list[str]:
        """What has changed since: parameters, buffers, and modules whose class, mode, settings or hooks are not the same."""
        try:
            now = dict(_digests(self.model))
        except Exception:  # of code that a method has left in it
            return ["module itself"]
        return [name for name in {**self._unchanged, **now} if self._unchanged.get(name) != now.get(name)]


def _digests(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The name of each parameter, buffer and module, with a digest of its content or settings."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield name, f"{_sha256(tensor)}, requires_grad {tensor.requires_grad}"
    for name, module in model.named_modules():
        yield f"module {name or 'itself'}", f"{type(module)}, training {module.training}, {_attributes(module)}"


def _attributes(module: nn.Module) -> str:
    """A module's hooks, functions of its own, plain settings and configuration. Not what libraries keep in it for their use."""
    found = []
    for key, value in sorted(vars(module).items()):
        if key.endswith("hooks") or callable(value):
            found.append(f"{key} {[id(each) for each in value.values()] if isinstance(value, dict) else id(value)}")
        elif hasattr(value, "to_dict"):
            found.append(f"{key} {value.to_dict()}")
        elif not key.startswith("_") and isinstance(value, (bool, int, float, str, tuple)):
            found.append(f"{key} {value}")
    return f"{', '.join(found)}; {module.extra_repr()}"


def _sha256(tensor: Tensor) -> str:
    if tensor.untyped_storage().nbytes() < tensor.element_size() * tensor.numel():
        return "without memory"
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content.data).hexdigest()


@dataclass(frozen=True)
class Branch:
    """Where a run branches off a longer one of the same method and seed. They share all steps before it."""

    trunk: Checkpoints  # of the longer run
    checkpoint: Checkpoint


class Execution:
    """Trains and stores one run.

    `source`: for a method that uses one. `branches`: numbers of scored steps; a checkpoint is kept at each, for runs that branch
    off this one.
    """

    def __init__(
        self,
        setting: Setting,
        job: Job,
        data: Data,
        source: SourceModel | None = None,
        branch: Branch | None = None,
        branches: Collection[int] = (),
    ) -> None:
        self.setting, self.job, self.data, self.source, self.branch, self.branches = setting, job, data, source, branch, branches
        self.config, self.hardware = setting.config(job, data), setting.hardware(job.which)
        self.checkpoints = setting.checkpoints_of(job)

    def run(self, target_loss: float | None = None) -> RunStatus:
        """Train and store the run, from its last checkpoint, its branch or its start. `target_loss`: for progress only.

        INTERRUPTED if its record could not be written: as after an interruption, the same command resumes it.
        Raises KeyboardInterrupt if it was interrupted, and FailedAlone if it failed in this process but not in all. What was done
        is stored first.
        """
        parallel, name = self.setting.parallel, self.job.name
        folder = self._open()
        interruption = Interruption()
        progress = self.setting.progress(name, self.training.steps, target_loss, shown=parallel.is_main_process)
        live = self._live(folder) if folder and self.setting.track else None
        output = Output(live or (folder.curve if folder else []), progress, self.checkpoints, self.branches)
        trainer = self.trainer(output, Stop(interrupted=interruption))
        record, status, error = None, RunStatus.INTERRUPTED, None
        try:
            with contained():
                with interruption:
                    trainer.run(self.job.found.method)
                self._refuse_changed_source()
                record = self._record(trainer)  # before the model is saved, which raises peak memory
                record = replace(record, sha256=self._keep_model(trainer, record))
            status = RunStatus.FINISHED
        except Exception as failure:
            status = RunStatus.FAILED
            step = failure.step if isinstance(failure, TrainingFailed) else trainer.outcome.steps
            error = RunError(step, f"{type(failure).__name__}: {text_of(failure)}", traceback.format_exc())
            told = str(failure) if isinstance(failure, TrainingFailed) else one_line(failure, self.job.found.method)
            say(f"{name:<18} failed: {told}")
        finally:
            trainer.output.progress.close()
            if live:
                live.close()
            record = replace(record or self._record(trainer), status=status, error=error)
            with elapsed.part(Part.RECORDS):
                if folder and not folder.close(record, trainer.outcome.validation):
                    status = RunStatus.INTERRUPTED
        if status == RunStatus.FINISHED:
            spent = f"{quantity(trainer.costs.total(Unit.FLOPS), 'FLOP')}, {trainer.costs.total(Unit.SECONDS):.1f} s of training"
            say(f"{name:<18} finished: loss {record.final_val_loss:.4f}, {spent}")
        if status == RunStatus.FAILED:
            parallel.check_all_failed(name)
        if status in (RunStatus.FINISHED, RunStatus.FAILED) and not self.branches:
            self.checkpoints.remove()
        # Also waits for all processes, so that the next run reads complete files.
        (asked,) = parallel.any_process(interruption())
        if asked:  # after the last step
            raise Interrupted
        return status

    def _open(self) -> store.RunFolder | None:
        """Open the run's folder, curve and checkpoints. The folder is None in processes that do not write."""
        folder = None
        if self.setting.parallel.is_main_process:
            identity = {"run": dataclasses.asdict(self.config), "origin": self.job.found.origin}
            folder = store.RunFolder(self.setting.folder_of(self.job), identity, self.hardware)
        if self.branch:
            if folder:
                trunk = self.branch.trunk.folder.parent / curve.FILE
                folder.curve.begin_as(trunk, self.branch.checkpoint.state.rows)
            self.checkpoints.branch_off(self.branch.trunk, self.branch.checkpoint)
        self.setting.parallel.barrier()  # so that the other processes resume from complete files
        return folder

    def _live(self, folder: store.RunFolder) -> Live:
        """The run's curve, which a tracker shows too."""
        assert self.setting.track is not None
        name, where, config = self.setting.experiment.name, str(self.setting.folder), dataclasses.asdict(self.config)
        run = Tracked(name, self.job.found.name, self.job.name, where, config, resumed=folder.curve.rows > 0)
        return Live(folder.curve, self.setting.track, run)

    @property
    def training(self) -> Training:
        """The run's training settings: for its share of the budget, with the values that were tuned for its method."""
        experiment = self.setting.experiment.at(self.job.budget_share, self.job.found.training)
        return experiment.source_train if self.job.which == "source" else experiment.train

    def trainer(self, output: Output, stop: Stop) -> Trainer:
        """The training loop of this run, with an empty ledger. Seeds torch's generators. It also stops at the run's own loss."""
        job, setting, device = self.job, self.setting, self.setting.parallel.device
        torch.manual_seed(job.seed)
        alone = setting.at_once == 1  # a counter is that of the whole machine
        costs = Costs(device, counters(device, setting.parallel.processes) if alone else [])
        experiment = setting.experiment.at(job.budget_share, job.found.training)
        task = Task.of(experiment, job.which, self.data.vocabulary, device, job.seed)
        if self.source:
            task = task.with_source(self.source.model, self.source.resume)
        memory.reset_peak(device)
        work = Work(task, self.data, job.seed, costs, setting.experiment.machine)
        at_loss = -math.inf if self.config.stop_at_loss is None else self.config.stop_at_loss
        return Trainer(work, output, replace(stop, at_loss=at_loss), setting.parallel)

    def _refuse_changed_source(self) -> None:
        changes = self.source.changes() if self.source else []
        if changes:
            more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
            raise UsageError(f"changed the shared source model: {changes[0]}{more}; change a copy: task.read returns one")

    def _keep_model(self, trainer: Trainer, record: RunRecord) -> dict[str, str]:
        """Save the small model and its optimizer for the methods that grow it, or with --save a method's model for use elsewhere.

        Returns the sha256 of the small model's files, by name.
        """
        outcome = trainer.outcome
        model = outcome.model
        assert model is not None and outcome.optimizer is not None
        if not self.setting.parallel.is_main_process:
            return {}
        if self.job.which == "source":
            folder = self.setting.folder_of(self.job)
            with replacing(folder / store.MODEL) as draft:
                save_model(model, str(draft))
            trained_state.save(folder / store.OPTIMIZER, Trained(model, outcome.optimizer, outcome.steps, outcome.train_loss))
            return {name: sha256(folder / name) for name in (store.MODEL, store.OPTIMIZER)}
        if self.setting.save:
            save(self.setting, self.job, self.data, model, record)
        return {}

    def _record(self, trainer: Trainer) -> RunRecord:
        """The record of the run as finished now."""
        outcome, experiment, job = trainer.outcome, self.setting.experiment, self.job
        before = self.branch.checkpoint.state if self.branch else None
        return RunRecord(
            status=RunStatus.FINISHED,
            experiment=experiment.name,
            title=experiment.title,
            method=job.found.name,
            variant_of=job.found.variant_of,
            origin=job.found.origin,
            seed=job.seed,
            config=self.config,
            published=experiment.published.get(job.found.name),
            cost=self._costs(outcome.costs),
            inherited=Cost(*(charged(before.spent(unit)) for unit in Unit)) if before else None,
            final_val_loss=outcome.validation.loss if outcome.validation else None,
            final_val_accuracy=outcome.validation.accuracy if outcome.validation else None,
            final_test_loss=outcome.test.loss if outcome.test else None,
            final_test_accuracy=outcome.test.accuracy if outcome.test else None,
            keeps_source=job.keeps_source,
            control=job.is_control,
            steps=outcome.steps,
            tokens=outcome.tokens,
            parameters=sum(p.numel() for p in outcome.model.parameters()) if outcome.model else None,
            peak_memory_bytes=outcome.costs.peak_memory(),
            phases=list(outcome.phases),
            waited_seconds=outcome.waited,
            energy_kwh=outcome.costs.energy.kwh(),
            versions=versions(),
            hardware=self.hardware,
            data=self.data.describe(),
        )

    def _costs(self, own: Costs) -> RunCosts:
        """The run's own costs, and that of its source."""
        flops, seconds = ({Account(key): spent for key, spent in costs.items()} for costs in (own.flops, own.seconds))
        if not self.source:
            return RunCosts(flops, seconds)
        cost = self.source.cost
        return RunCosts({**flops, Account.SOURCE: cost.flops}, {**seconds, Account.SOURCE: cost.seconds})


def save(setting: Setting, job: Job, data: Data, model: nn.Module, record: RunRecord) -> None:
    """Save a trained model for use elsewhere, unless it is saved already. If it cannot be saved, print why."""
    folder = setting.folder_of(job) / "model"
    if job.keeps_source:
        say(f"{job.name:<18} has a model that is not saved: it contains the source, and so is of no library's class")
    elif not folder.is_dir():
        sizes = setting.experiment.sizes(job.which, data.vocabulary)
        trained = TrainedModel(architectures.of(setting.experiment, job.which), model, sizes, tokenizer_to_save(data))
        try:
            trained.save(folder, record)
        except UsageError as error:
            say(f"{job.name:<18} has a model that is not saved: {error}")
