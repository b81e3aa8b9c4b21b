"""The small model that methods grow: pretrained, or trained here once per configuration and seed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from safetensors.torch import load_model
from torch import nn

from growbench import architectures, registry
from growbench.console import say
from growbench.costs.accounts import Account, Unit
from growbench.data import Data
from growbench.errors import UsageError
from growbench.files import sha256
from growbench.method import Task, Trained
from growbench.runs import saved_models, store
from growbench.runs.claims import Claims
from growbench.runs.execution import Execution, SourceModel, save
from growbench.runs.jobs import Job, Setting
from growbench.runs.records import Cost, RunStatus
from growbench.training import trained_state


class Sources:
    """Gives all methods on a seed the same small model. That of the latest seed stays in memory.

    `trains`: whether one that is missing is trained here. A process that runs a method that is not growbench's own trains none.
    """

    def __init__(self, setting: Setting, claims: Claims, trains: bool = True) -> None:
        self.setting, self.claims, self.trains = setting, claims, trains
        self._latest: dict[int | None, SourceModel | None] = {}  # by seed; a pretrained one has none

    def of(self, seed: int) -> SourceModel | None:
        """The unchanged small model; None if its training failed. Raises UsageError if a pretrained one cannot be used."""
        pretrained = self.setting.experiment.pretrained is not None
        key = None if pretrained else seed
        latest = self._latest.get(key)
        if key not in self._latest or (latest and latest.changes()):
            self._latest.clear()
            self._latest[key] = self._pretrained() if pretrained else self._trained(seed)
        return self._latest[key]

    def pretrained_cost(self) -> Cost | None:
        """What the training of the pretrained source cost; None if it is trained here. Reads it, and raises as `of` does."""
        if self.setting.experiment.pretrained is None:
            return None
        source = self.of(0)
        assert source is not None
        return source.cost

    def _pretrained(self) -> SourceModel:
        experiment = self.setting.experiment
        assert experiment.pretrained is not None
        model = saved_models.load(experiment, self.setting.parallel.device)
        return SourceModel(model, saved_models.cost(experiment.pretrained, self.setting.hardware("target")))

    def _trained(self, seed: int) -> SourceModel | None:
        """Load the small model, trained here or by another process."""
        job = Job(replace(registry.get(registry.SCRATCH), name=registry.SOURCE), seed, which="source")
        announced = [job.name]
        while True:
            with self.claims.claimed(job.name) as mine:
                if mine:
                    return self._load(job)
            self.claims.wait(announced)
            announced = []

    def _missing(self, job: Job) -> None:
        """Raise UsageError for a source that is gone, unless its training has failed."""
        run = store.load(self.setting.folder_of(job))
        if run is None or run.record.status != RunStatus.FAILED:
            raise UsageError(
                f"{job.name} must be trained before a method that is not growbench's own runs: give the same command again"
            )

    def _load(self, job: Job) -> SourceModel | None:
        """Load the small model, trained now if that is not done or its file is damaged."""
        setting, data = self.setting, self.setting.load_data("source")
        model = self._stored(job, data)
        if model is None:
            if not self.trains:
                self._missing(job)
                return None
            if Execution(setting, job, data).run() != RunStatus.FINISHED:
                return None
            model = self._read(job, data)
        run = store.load(setting.folder_of(job))
        assert run is not None
        if setting.save and setting.parallel.is_main_process:
            save(setting, job, data, model, run.record)
        flops, seconds = (run.record.cost.of(unit, Account.TRAIN) for unit in Unit)
        here = run.record.hardware == setting.hardware("source")
        return SourceModel(model, Cost(flops, seconds if here else None), partial(self._resumed, job, data))

    def _stored(self, job: Job, data: Data) -> nn.Module | None:
        """The small model that was trained before; None if there is none, or its file is damaged, which is said."""
        folder = self.setting.folder_of(job)
        file, run = folder / store.MODEL, store.load(folder)
        if run is None or not file.is_file():
            return None
        try:
            for file in (folder / name for name in (store.OPTIMIZER, store.MODEL) if (folder / name).is_file()):
                if run.record.sha256.get(file.name, found := sha256(file)) != found:
                    raise ValueError("sha256 differs")
            model = self._read(job, data) if self.setting.holds(job, data, run) else None
        except Exception as error:  # safetensors and torch have many for a damaged file
            say(f"{file} is damaged ({' '.join(str(error).split())}): training it again")
            return None
        if model is None or not self.setting.done(job, data):
            return None
        self.setting.checkpoints_of(job).remove()  # a killed process may have left some
        return model

    def _resumed(self, job: Job, data: Data, model: nn.Module) -> Trained:
        """A copy of the small model with the optimizer that it was trained by. Raises UsageError if that is not stored."""
        folder, device = self.setting.folder_of(job), self.setting.parallel.device
        file = folder / store.OPTIMIZER
        if not file.is_file():
            raise UsageError(f"{file} is missing, as of a source that earlier code trained: remove {folder} to train it again")
        optimizer = Task.of(self.setting.experiment, "source", data.vocabulary, device).optimizer(model)
        steps, loss = trained_state.restore(file, optimizer, device)
        return Trained(model, optimizer, steps, loss)

    def _read(self, job: Job, data: Data) -> nn.Module:
        with self.setting.parallel.device:
            experiment = self.setting.experiment
            model = architectures.of(experiment, "source").build(experiment.sizes("source", data.vocabulary))
        load_model(model, self.setting.folder_of(job) / store.MODEL, device=str(self.setting.parallel.device))
        return model
