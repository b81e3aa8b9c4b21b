"""One experiment: methods x seeds. Skips what is done, goes on after a failure, and keeps everything."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import statistics
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from growbench import architectures, memory, results
from growbench.config import Experiment, UsageError
from growbench.cost import Costs
from growbench.data import Data, load
from growbench.method import Task
from growbench.plan import Unplannable, plan
from growbench.progress import Progress, human, say
from growbench.registry import Found, get
from growbench.trainer import Trainer, TrainingFailed, precision

VERSIONED = ("growbench", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Benchmark:
    """Trains methods on one experiment, and stores each run below `folder`."""

    experiment: Experiment
    folder: Path  # results/<experiment>
    device: torch.device
    target_loss: float | None = None  # None: scratch's mean final validation loss
    stop_at_target: bool = False

    def run(self, methods: Iterable[Found], seeds: Iterable[int]) -> bool:
        """Train what is not done yet: scratch first, whose final loss is the target. False if a method failed."""
        methods, seeds = list(methods), list(seeds)
        experiment, training = self.experiment, self.experiment.train
        architecture = architectures.of(experiment)
        data = load(experiment.data, architecture.objective, architecture.tokenizer, training.batch)
        if data.evaluation_batches < experiment.data.evaluation_batches:
            say(f"validation data fill {data.evaluation_batches} batches, not {experiment.data.evaluation_batches}")
        for found in methods:  # refuses impossible sizes before anything trains
            with contextlib.suppress(Unplannable):
                plan(experiment, found, data.vocabulary)
        _check_folder(self.folder)
        succeeded = True
        target = self.target_loss
        for stage in ([f for f in methods if f.name == "scratch"], [f for f in methods if f.name != "scratch"]):
            for seed in seeds:
                todo = [found for found in stage if not self._done(found, data, seed, target)]
                growing = [found for found in todo if found.method.uses_source]
                source = self._source(data, seed) if growing else None
                for found in todo:
                    if found in growing and source is None:
                        say(f"{results.name(found.name, seed):<18} needs the small model, whose training failed")
                        succeeded = False
                    else:
                        succeeded &= self._train(found, "target", data, seed, target, source if found in growing else None)
            target = self.target_loss if self.target_loss is not None else self._scratch_loss(seeds)
        return succeeded

    def _scratch_loss(self, seeds: Iterable[int]) -> float | None:
        """The mean final validation loss of the scratch runs that finished; None if none did."""
        runs = [results.load(self.folder / results.name("scratch", seed)) for seed in seeds]
        losses = [run.record["final_val_loss"] for run in runs if run and run.record["status"] == "finished"]
        return statistics.fmean(losses) if losses else None

    def _source(self, data: Data, seed: int) -> tuple[nn.Module, dict[str, Any]] | None:
        """The small model, trained once per configuration and seed, and its run's record; None if its training failed."""
        architecture = architectures.of(self.experiment)
        scratch = dataclasses.replace(get("scratch"), name=results.SOURCE)
        folder = self.folder / results.name(results.SOURCE, seed)
        weights = folder / "model.safetensors"
        if not (weights.is_file() and self._done(scratch, data, seed)) and not self._train(scratch, "source", data, seed):
            return None
        with self.device:
            model = architecture.build(self.experiment.sizes("source", data.vocabulary))
        load_model(model, weights, device=str(self.device))
        run = results.load(folder)
        assert run is not None
        return model.requires_grad_(False).eval(), run.record

    def _done(self, found: Found, data: Data, seed: int, target: float | None = None) -> bool:
        """Whether this run is stored, finished, with the same configuration."""
        name = results.name(found.name, seed)
        stored = results.load(self.folder / name)
        if stored is None or stored.record["status"] != "finished":
            return False
        if stored.record["config"] != self._config(found, data, target) or stored.record["origin"] != found.origin:
            say(f"{name:<18} was made with another configuration: training it again")
            return False
        say(f"{name:<18} is done: loss {stored.record['final_val_loss']:.4f}")
        return True

    def _train(
        self,
        found: Found,
        which: Literal["source", "target"],
        data: Data,
        seed: int,
        target: float | None = None,
        source: tuple[nn.Module, dict[str, Any]] | None = None,
    ) -> bool:
        """Train and store one run. True if it finished."""
        name = results.name(found.name, seed)
        folder = results.RunFolder(self.folder / name)
        torch.manual_seed(seed)
        costs = Costs(self.device)
        if source is not None:
            for account, charge in (("flops", costs.flops), ("seconds", costs.seconds)):
                charge["source"] = source[1]["cost"][account]["train"]
        task = Task.of(self.experiment, which, data.vocabulary, costs, seed, source[0] if source else None)
        progress = Progress(name, task.budget, target)
        memory.reset_peak(self.device)
        status, error = "interrupted", None
        trainer = Trainer(task, data, seed, costs, folder.add, progress, target, self.stop_at_target)
        try:
            outcome = trainer.run(found.method)
            if found.name == results.SOURCE:
                assert outcome.model is not None
                save_model(outcome.model, str(folder.path / "model.safetensors"))
            status = "finished"
        except Exception as failure:
            status = "failed"
            step = failure.step if isinstance(failure, TrainingFailed) else trainer.outcome.steps
            error = {"step": step, "message": f"{type(failure).__name__}: {failure}", "traceback": traceback.format_exc()}
            say(f"{name:<18} failed: {failure}")
        finally:
            progress.close()
            folder.close(self._record(found, data, seed, target, trainer, status, error))
        if status == "finished":
            spent = f"{human(costs.total('flops'), 'FLOP')}, {costs.total('seconds'):.1f} s of training"
            say(f"{name:<18} finished: loss {trainer.outcome.final_val_loss:.4f}, {spent}")
        return status == "finished"

    def _config(self, found: Found, data: Data, target: float | None) -> dict[str, Any]:
        """What decides a run's outcome, as it reads back from JSON."""
        experiment = self.experiment.identity() | {"fingerprint": data.fingerprint}
        config: dict[str, Any] = {"experiment": experiment, "method": dataclasses.asdict(found.method)}  # type: ignore[call-overload]
        if self.stop_at_target:
            config["stop_at"] = target
        return results.plain(config)

    def _record(
        self,
        found: Found,
        data: Data,
        seed: int,
        target: float | None,
        trainer: Trainer,
        status: str,
        error: dict[str, Any] | None,
    ) -> dict[str, Any]:
        outcome, published = trainer.outcome, self.experiment.published.get(found.name)
        return {
            "status": status,
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "method": found.name,
            "origin": found.origin,
            "seed": seed,
            "config": self._config(found, data, target),
            "published": dataclasses.asdict(published) if published else None,
            "cost": {"flops": dict(outcome.costs.flops), "seconds": dict(outcome.costs.seconds)},
            "final_val_loss": outcome.final_val_loss,
            "final_val_accuracy": outcome.final_val_accuracy,
            "keeps_source": found.method.keeps_source,
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "parameters": sum(p.numel() for p in outcome.model.parameters()) if outcome.model else None,
            "peak_memory_bytes": memory.peak(self.device),
            "phases": outcome.phases,
            "versions": {"python": platform.python_version()} | {package: version(package) for package in VERSIONED},
            "hardware": hardware(self.device) | {"precision": precision(trainer.training, self.device)},
            "data": data.describe(),
            "error": error,
        }


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda as a device. Raises UsageError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is there; allowed here: auto, cpu")
    return torch.device(name)


def hardware(device: torch.device) -> dict[str, Any]:
    """The device by name, and the threads that work on it."""
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device), "threads": torch.get_num_threads()}
    return {"device": "cpu", "name": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    """The processor's model name; Linux tells it in /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _check_folder(folder: Path) -> None:
    """Refuse a results folder that cannot be written, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write results to {folder}: {error.strerror}; choose another folder with --results") from error
