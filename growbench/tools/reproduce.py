"""Retrains the beginning of stored runs, and compares its evaluations with those on file."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from growbench import registry
from growbench.config.loading import parse
from growbench.config.schema import PROTOCOL, Experiment, ImageConfig, Machine, ModelConfig, Pretrained, TextConfig, Training
from growbench.console import Progress, say
from growbench.costs.accounts import Account, Unit
from growbench.costs.hardware import Hardware
from growbench.errors import UsageError
from growbench.planning.branches import branching_steps
from growbench.runs import reproduced, saved_models, store
from growbench.runs.apart import Died, apart
from growbench.runs.claims import Claims
from growbench.runs.execution import Execution, SourceModel
from growbench.runs.jobs import Job, Setting
from growbench.runs.records import RunRecord, versions
from growbench.runs.reproduced import Stamp
from growbench.runs.sources import Sources
from growbench.runs.store import Run
from growbench.tools import stages
from growbench.training.checkpoint import Checkpoints
from growbench.training.parallel import Parallel
from growbench.training.trainer import Output, Stop

TOLERANCE = 0.01  # nats: rounding on another machine grows to a few thousandths within a hundred steps
EVALUATIONS = 2  # of the last phase, reproduced by default: its start and one more
LOSSES = ("val_loss", "train_loss")
ROUNDED = (*LOSSES, "val_accuracy")  # columns of a curve in which rounding shows; all others but seconds must be equal


def report(folders: Sequence[Path], steps: int | None) -> int:
    """Reproduce stored runs, and print the verdicts. `steps`: to reproduce of each; None: see `beginning`.

    Each run of a method that is not growbench's own is reproduced in a process of its own. Returns the exit code: 0 if all are
    equal, 1 if one is not, 2 if one cannot be reproduced.
    """
    codes, runs = [], []
    for folder in folders:
        try:
            runs.append(finished(folder))
        except UsageError as error:
            codes.append(_refused(folder, error))
    with TemporaryDirectory() as temporary:
        # of a ladder the shorter runs first: each continues the training of the trunk up to its own branch
        for run in sorted(runs, key=lambda run: run.record.budget_share):
            foreign = registry.is_foreign(run.record.method_itself, run.record.config.method)
            request = run.folder, Path(temporary), steps
            try:
                codes.append(apart(_reproduce_alone, *request) if foreign else _reproduce(*request))
            except UsageError as error:
                codes.append(_refused(run.folder, error))
            except Died as error:
                codes.append(_refused(run.folder, UsageError(f"its process {error}")))
    return max(codes)


def _reproduce(folder: Path, temporary: Path, steps: int | None) -> int:
    return 0 if Reproduction(folder, temporary).report(steps) else 1


def _reproduce_alone(folder: Path, temporary: Path, steps: int | None) -> int:
    stages.prepare()
    return _reproduce(folder, temporary, steps)


def finished(folder: Path) -> Run:
    """A finished run. Raises UsageError if there is none."""
    run = store.load(folder)
    if run is None:
        raise UsageError("holds no run.json that can be read")
    if not run.finished:
        raise UsageError(f"has not finished: {run.record.status}")
    return run


def _refused(folder: Path, error: UsageError) -> int:
    say(f"growbench: {folder} cannot be reproduced: {error}")
    return 2


@dataclass(frozen=True)
class Comparison:
    """How the evaluations of a reproduced run differ from those on file."""

    evaluations: int
    largest_difference: float = 0.0  # of the losses, nats
    first_different: int | None = None  # the step of the first evaluation with another loss or accuracy
    mismatch: str = ""  # the first difference that is not one of rounding


class Reproduction:
    """A stored run, and all that is needed to reproduce it. Raises UsageError if it cannot be reproduced."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        run = finished(folder)
        self.run, self.temporary = run, temporary
        if not run.record.phases:
            raise UsageError("has no phases in its run.json")
        if run.record.hardware.device not in ("cpu", "cuda"):
            raise UsageError(f"was trained on an unknown device: {run.record.hardware.device!r}")
        if run.record.hardware.precision not in ("float32", "bf16", ""):
            raise UsageError(f"was trained in an unknown precision: {run.record.hardware.precision!r}")
        device = torch.device(run.record.hardware.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UsageError("was trained on CUDA, and there is no CUDA device here")
        own, source = run.record.hardware.precision, store.load(folder.parent / store.name(registry.SOURCE, run.record.seed))
        theirs = source.record.hardware.precision if source and run.source_cost(Unit.FLOPS) else ""
        if {own, theirs} == {"float32", "bf16"}:
            raise UsageError(f"is in {own}, and its source was trained in {theirs}")
        # runs of one experiment and precision that lie beside one another share a source
        place = temporary / _key(f"{folder.resolve().parent} {own}", run.record.config.experiment)
        experiment, stop_at_loss = experiment_of(run.record), run.record.config.stop_at_loss
        self.setting = Setting(experiment, place, Parallel(device), stop_at_loss)
        self.foreign = registry.is_foreign(run.record.method_itself, run.record.config.method)
        if not self.foreign:
            self.job  # noqa: B018 - raises UsageError before anything is trained
        self.data = self.setting.load_data("source" if run.record.method == registry.SOURCE else "target")
        if self.data.fingerprint != run.record.config.experiment.get("fingerprint"):
            raise UsageError(f"was trained on other data: {experiment.data.corpus} has another fingerprint today")

    @cached_property
    def job(self) -> Job:
        """The run as today's code does it. Of a method that is not growbench's own, not asked for before its source is there."""
        return job_of(self.run.record)

    @property
    def uses_source(self) -> bool:
        return self.run.record.cost.of(Unit.FLOPS, Account.SOURCE) != 0 if self.foreign else self.job.uses_source

    def report(self, steps: int | None) -> bool:
        """Reproduce the run, print the verdict, and write or remove its stamp. Returns whether it is equal."""
        torch.set_num_threads(self.run.record.hardware.threads or torch.get_num_threads())
        steps = min(steps or beginning(self.run), self.run.record.steps)
        source, source_equal = self._source() if self.uses_source else (None, True)
        return self._judge(steps, self._retrained(steps, source)) and source_equal

    def _source(self) -> tuple[SourceModel, bool]:
        """The small model: that of the run beside this one if today's code made it, else trained again and compared."""
        name, equal = store.name(registry.SOURCE, self.run.record.seed), True
        beside, place = self.run.folder.parent / name, self.setting.folder / name
        stored = None if self.setting.experiment.pretrained or place.exists() else store.load(beside)
        again = Reproduction(beside, self.temporary) if stored else None
        if again and (beside / "model.safetensors").is_file() and again.setting.holds(again.job, again.data, again.run):
            shutil.copytree(beside, place)
            again = None
        if again:
            say(f"{name:<18} has no stored model that today's code made: training it again, in full")
        source = Sources(self.setting, Claims(self.setting.folder, self.setting.parallel)).of(self.run.record.seed)
        if source is None:
            raise UsageError("its source cannot be trained")
        if again and (made := store.load(place)):
            equal = again._judge(made.record.steps, made.curve)
        return source, equal

    def _retrained(self, steps: int, source: SourceModel | None) -> list[dict[str, Any]]:
        """The curve of the run's first steps."""
        own = self._folder(self.job)
        if self.run.record.inherited:
            self._branch_off(own, source)
        self._train(self.job, source, Stop(after_steps=steps))
        return [json.loads(line) for line in (own / "curve.jsonl").read_text(encoding="utf-8").splitlines()]

    def _branch_off(self, own: Path, source: SourceModel | None) -> None:
        """Begin the run where it branches off the longest one of its ladder, which is first trained up to there."""
        full, at = replace(self.job, budget_share=1.0), self.setting.experiment.at
        longer, shorter = (at(job.budget_share, job.found.training) for job in (full, self.job))
        (step,) = branching_steps(longer, [shorter], self.job.found.method, self.data.vocabulary)
        if step is None:
            raise UsageError("branched off a longer run, which it does not with today's code")
        trunk = Checkpoints(self._folder(full))
        if trunk.branch(step) is None:
            self._train(full, source, Stop(after_scored_steps=step), (step,))
        branch = trunk.branch(step)
        assert branch is not None
        Checkpoints(own).branch_off(trunk, branch)
        store.CurveFile(own / "curve.jsonl").begin_as(trunk.folder / "curve.jsonl", branch.state.rows)

    def _folder(self, job: Job) -> Path:
        """Where a job of this run's configuration is trained again."""
        folder = self.setting.folder / _key(job.name, self.run.record.config.method)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _train(self, job: Job, source: SourceModel | None, stop: Stop, branches: Collection[int] = ()) -> None:
        """Train a job from its newest checkpoint on."""
        folder = self._folder(job)
        execution = Execution(self.setting, job, self.data, source)
        progress = Progress(job.name, execution.training.steps, None)
        output = Output(store.CurveFile(folder / "curve.jsonl"), progress, Checkpoints(folder), branches)
        try:
            execution.trainer(output, stop).run(job.found.method)
        finally:
            progress.close()

    def _judge(self, steps: int, rows: Sequence[Mapping[str, Any]]) -> bool:
        found = compare(self.run.curve, rows, steps)
        here = self.setting.hardware(self.job.which)
        stamp = Stamp(
            date=datetime.date.today().isoformat(),
            versions=versions(),
            hardware=here,
            steps=steps,
            evaluations=found.evaluations,
            largest_difference=found.largest_difference,
            origin=self.job.found.origin,
            config=self.setting.config(self.job, self.data),
        )
        equal, verdict = judge(found, other_machine(self.run.record, here, stamp.versions["torch"]))
        if equal:
            stamp.write(self.run.folder)
            if not stamp.covers(self.run.record):
                verdict += "; the last growth comes later, so that this does not show that today's code makes the run"
        else:
            (self.run.folder / reproduced.FILE).unlink(missing_ok=True)
        print(f"{self.run.name:<18} {steps} of {self.run.record.steps} steps, {found.evaluations} evaluations: {verdict}")
        made_by = ", ".join(f"{key} {stamp.versions[key]}" for key in ("commit", "torch"))
        print(f"{'':<18} {stamp.date}, {made_by}, {here}")
        return equal


def _key(name: str, configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, configuration], sort_keys=True).encode()).hexdigest()[:16]


def experiment_of(record: RunRecord) -> Experiment:
    """The experiment that a run's configuration describes. Raises UsageError for one that today's code does not know."""
    stored: dict[str, Any] = {key: value for key, value in record.config.experiment.items() if key != "fingerprint"}
    protocol = stored.pop("protocol", 1)
    if protocol != PROTOCOL:
        raise UsageError(f"was made under protocol {protocol}; today's code follows protocol {PROTOCOL}")
    source = stored.pop("source", {})
    train = stored.pop("train", stored.get("source_train"))  # a source's own run has the one, one from a checkpoint the other
    hardware, data = record.hardware, stored.pop("data", {})
    kind: type[TextConfig | ImageConfig] = ImageConfig if isinstance(data, dict) and "image_size" in data else TextConfig
    pretrained = stored.pop("pretrained", None)
    experiment = Experiment(
        name=record.experiment,
        title=record.title,
        architecture=stored.pop("architecture", ""),
        source_architecture=stored.pop("source_architecture", ""),
        source=parse(ModelConfig, source, "source"),
        target=parse(ModelConfig, stored.pop("target", source), "target"),
        data=parse(kind, data, "data"),
        train=parse(Training, train or {}, "train"),
        source_train=parse(Training, stored.pop("source_train", train) or {}, "source"),
        machine=Machine(hardware.micro_batch, hardware.precision or "auto", hardware.compile, hardware.workers),  # type: ignore[arg-type]
        pretrained=parse(Pretrained, pretrained, "source") if pretrained else None,
    )
    if stored:
        raise UsageError(f"has a configuration that is not known today: {', '.join(stored)}")
    resolved = saved_models.resolved(experiment)
    if resolved.pretrained != experiment.pretrained:
        raise UsageError(f"was grown from a checkpoint that has changed since: {pretrained['checkpoint']}")
    return resolved


def job_of(record: RunRecord) -> Job:
    """The method of a run as it is today, with the run's hyperparameters. Raises UsageError if it is not known, or has others."""
    if record.method == registry.SOURCE:
        return Job(replace(registry.get(registry.SCRATCH), name=registry.SOURCE), record.seed, which="source")
    if record.method_itself not in registry.names():
        raise UsageError(f"no built-in or installed method is named {record.method_itself!r}")
    options = {key: value for key, value in record.config.method.items() if not key.startswith("train.")}
    tuned = {key.removeprefix("train."): value for key, value in record.config.method.items() if key.startswith("train.")}
    found = replace(registry.get(record.method_itself, options), name=record.method, variant_of=record.variant_of)
    return Job(replace(found, training=tuned), record.seed, record.budget_share)


def beginning(run: Run) -> int:
    """The number of steps to reproduce by default: all growth, and two evaluations of the last phase."""
    begins = run.record.phases[-1].first_step
    evaluated = sorted({row["step"] for row in run.curve if row["step"] > begins})
    return evaluated[min(EVALUATIONS, len(evaluated)) - 1] if evaluated else run.record.steps


def compare(stored: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]], steps: int) -> Comparison:
    """Compare the evaluations on file up to a step with those that were made, in all columns but the seconds.

    More evaluations than on file may have been made: a run that branches off another one has only those after it.
    """
    evaluations, largest, first = 0, 0.0, None
    rest = iter(made)
    for row in stored:
        again = next((each for each in rest if all(each[key] == row[key] for key in ("step", "phase"))), None)
        if again is None and row["step"] < steps:
            mismatch = f"no evaluation at step {row['step']} in phase {row['phase']!r}"
            return Comparison(evaluations, largest, first, mismatch)
        if again is None:
            break
        evaluations += 1
        for key in row.keys() - {"seconds"}:
            if row[key] != again.get(key) and (key not in ROUNDED or None in (row[key], again.get(key))):
                return Comparison(evaluations, largest, first, f"{key} at step {row['step']} is {again.get(key)}, not {row[key]}")
            if row[key] != again.get(key) and first is None:
                first = row["step"]
        largest = max([largest, *(abs(row[key] - again[key]) for key in LOSSES if row.get(key) is not None)])
    return Comparison(evaluations, largest, first, "" if evaluations else "no evaluation to compare with")


def other_machine(record: RunRecord, here: Hardware, torch_version: str) -> str:
    """Why results here may be rounded differently from a run's; empty if they must be bit-identical."""
    there = record.hardware
    if there.earlier:
        return "it was resumed on other hardware"
    if replace(there, at_once=here.at_once) != here:
        return f"it ran on {there}"
    if record.versions.get("torch") != torch_version:
        return f"it ran with torch {record.versions.get('torch', 'unknown')}"
    if there.device == "cpu" and there.stepping != here.stepping:
        return f"it ran on a CPU of {f'stepping {there.stepping}' if there.stepping else 'unknown stepping'}"
    return ""


def judge(found: Comparison, other_machine: str) -> tuple[bool, str]:
    """Whether a run counts as equal, and the verdict in words."""
    if found.mismatch:
        return False, f"DIFFERENT: {found.mismatch}"
    if found.first_different is None:
        return True, "bit-identical"
    differ = f"losses differ by up to {found.largest_difference:.2g} from step {found.first_different} on"
    if not other_machine:
        return False, f"DIFFERENT: {differ}, on the same hardware"
    if found.largest_difference > TOLERANCE:
        return False, f"DIFFERENT: {differ}, more than rounding does ({TOLERANCE:g}); {other_machine}"
    return True, f"equal but for rounding: {differ}; {other_machine}"
