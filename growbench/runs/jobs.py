"""The runs of a benchmark: what each is, what they share, and which of them are done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from growbench import architectures
from growbench.config.schema import PROTOCOL, Experiment, Training
from growbench.console import Progress, say
from growbench.costs.hardware import Hardware, cpu_stepping, device_name, fast_precision
from growbench.data import Data, Which, load
from growbench.elapsed import Part, elapsed
from growbench.method.options import settings as hyperparameters
from growbench.registry import SCRATCH, SOURCE, Found
from growbench.runs import checkpoints, curve, saved_models, store
from growbench.runs.records import RunConfig
from growbench.runs.store import Run
from growbench.training.checkpoint import Checkpoints
from growbench.training.parallel import Parallel
from growbench.training.precision import precision_of

# the parts of an experiment that decide its source
OF_SOURCE = ("protocol", "architecture", "source", "data", "source_train", "fingerprint")


@dataclass(frozen=True)
class Job:
    """One run to do: a method on a seed at a share of the budget, or the small model's own training."""

    found: Found
    seed: int
    budget_share: float = 1.0
    which: Which = "target"

    @property
    def name(self) -> str:
        return store.name(self.found.name, self.seed, self.budget_share)

    @property
    def uses_source(self) -> bool:
        return self.found.method.uses_source

    @property
    def keeps_source(self) -> bool:
        return self.found.method.keeps_source

    @property
    def is_control(self) -> bool:
        return self.found.method.control


@dataclass(frozen=True)
class Setting:
    """What all runs of a benchmark share."""

    experiment: Experiment
    folder: Path  # results/<experiment>
    parallel: Parallel
    stop_at_loss: float | None = None  # each method's run ends at its first evaluation at or below it
    save: bool = False  # keep the trained models
    track: str | None = None  # the tracker that shows each run while it goes on
    at_once: int = 1  # runs that are trained on this machine at the same time
    progress: Callable[..., Progress] = Progress  # what shows a run while it goes on

    def folder_of(self, job: Job) -> Path:
        return self.folder / job.name

    def checkpoints_of(self, job: Job) -> Checkpoints:
        folder = self.folder_of(job)
        return Checkpoints(folder / "checkpoints", self.parallel.is_main_process, folder / curve.FILE)

    def training(self, which: Which) -> Training:
        return self.experiment.source_train if which == "source" else self.experiment.train

    @elapsed.part(Part.DATA)
    def load_data(self, which: Which) -> Data:
        """Raises UsageError if the corpus cannot be read."""
        architecture = architectures.of(self.experiment)
        batch = self.training(which).batch
        return load(self.experiment.data, architecture.objective, architecture.tokenizer, batch, which)

    def hardware(self, which: Which) -> Hardware:
        device, machine = self.parallel.device, self.experiment.machine
        return Hardware(
            device=device.type,
            name=device_name(device),
            threads=torch.get_num_threads(),
            processes=self.parallel.describe(),
            stepping=cpu_stepping() if device.type == "cpu" else "",
            at_once=self.at_once,
            **dataclasses.asdict(replace(machine, precision=precision_of(self.training(which), machine, device))),
        )

    def config(self, job: Job, data: Data) -> RunConfig:
        experiment = self.experiment.identity() | {"fingerprint": data.fingerprint}
        tuned = {f"train.{key}": value for key, value in job.found.training.items()}
        method = hyperparameters(job.found.method) | tuned
        if job.which == "source":
            return RunConfig(_plain(_of_source(experiment)), _plain(method))
        return RunConfig(_plain(experiment), _plain(method), job.budget_share, self.stop_at_loss)

    def holds(self, job: Job, data: Data, run: Run) -> bool:
        """Whether a stored run has this job's configuration and code."""
        config = run.record.config
        if job.which == "source":  # older versions stored the target's configuration with it
            config = replace(config, experiment=_of_source(config.experiment))
        return config == self.config(job, data) and run.record.origin == job.found.origin

    def is_done(self, job: Job, data: Data) -> bool:
        """Whether a finished run of this configuration and code is stored."""
        run = store.load(self.folder_of(job))
        return run is not None and run.finished and self.holds(job, data, run)

    def done(self, job: Job, data: Data) -> bool:
        """Whether a finished run of this configuration and code is stored. Prints it.

        If the cost of its pretrained source has become known, it is added to the record.
        """
        run = store.load(self.folder_of(job))
        if run is None or not run.finished:
            return False
        if not self.holds(job, data, run):
            say(f"{job.name:<18} was made {_difference(job, run)}: training it again")
            return False
        if self.experiment.pretrained and job.uses_source and self.parallel.is_main_process:
            store.state_source(run, saved_models.cost(self.experiment.pretrained, run.record.hardware))
        lacks = self._lacks(run.folder / "model") if self.save and job.which == "target" and not job.keeps_source else ""
        hint = f", but {lacks}: remove its folder to train it again" if lacks else ""
        say(f"{job.name:<18} is done: loss {run.final_loss:.4f}{hint}")
        return True

    def _lacks(self, model: Path) -> str:
        """Why a saved model cannot be used; empty if it can."""
        if not model.is_dir():
            return "its model was not saved"
        try:
            wrong = checkpoints.damage(model)
        except (AttributeError, OSError, ValueError, RecursionError) as error:  # a card that is no table of digests
            wrong = f"{checkpoints.CARD} cannot be read ({error})"
        return f"of its saved model {wrong}" if wrong else ""


def _difference(job: Job, run: Run) -> str:
    """Under which other protocol, by which code or with what the stored run was made."""
    protocol = run.record.config.experiment.get("protocol", 1)
    if protocol != PROTOCOL:
        return f"under protocol {protocol}, and today's is {PROTOCOL}"
    return "by other code of its method" if run.record.origin != job.found.origin else "with another configuration"


def settled(experiment: Experiment, parallel: Parallel, *folders: Path) -> Experiment:
    """The experiment with its precision decided, in all processes alike, wherever [train] and [machine] leave it at auto.

    It is that of the experiment's runs, ended or begun, in the first of these folders that has some from this type of device,
    since runs that are compared should be alike. Without any it is the one that is fast on this device.
    """
    if experiment.machine.precision != "auto":
        return experiment
    device, fast = parallel.device.type, fast_precision(parallel.device.type)
    found = ((folder, _precision_of_runs(experiment, folder, device)) for folder in folders)
    folder, precision = next((each for each in found if each[1]), (None, fast))
    if folder and precision != fast and parallel.is_main_process:
        curve.say_once(f"precision: {precision}, as of the runs in {folder}, though {fast} is faster here")
    (exact,) = parallel.any_process(precision == "float32")
    return replace(experiment, machine=replace(experiment.machine, precision="float32" if exact else "bf16"))


def _precision_of_runs(experiment: Experiment, folder: Path, device: str) -> str:
    """That of a run of this experiment with precision auto, ended or begun, on this type of device; empty if there is none.

    One of scratch counts first, and then one of the source.
    """
    identity, first = _plain(experiment.identity()), (SCRATCH, SOURCE)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in sorted(paths, key=lambda path: [not path.name.startswith(f"{name}-seed") for name in first]):
        found = store.trained_in(path) if path.is_dir() else None
        if found is None or found.device != device or found.precision not in ("float32", "bf16"):
            continue
        if not all(found.experiment[key] == identity.get(key) for key in found.experiment if key != "fingerprint"):
            continue
        training = found.experiment.get("train", found.experiment.get("source_train", {}))
        if training.get("precision") == "auto":
            return found.precision
    return ""


def _of_source(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that decide its source, which is trained as one of an experiment of its own architecture."""
    own = {key: experiment[key] for key in OF_SOURCE if key in experiment}
    return own | ({"architecture": experiment["source_architecture"]} if "source_architecture" in experiment else {})


def _plain(value: Any) -> Any:
    """`value` as it is after writing it to JSON and reading it."""
    return json.loads(json.dumps(value))
