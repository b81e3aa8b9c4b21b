"""Throughput on one experiment's target: the bare loop, growbench's loop, transformers.Trainer, in turn in one process.

And what a step of each phase of a method costs in FLOPs, memory and time, against a plain step.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from growbench import architectures, memory
from growbench.benchmark import hardware
from growbench.config import Experiment, UsageError
from growbench.cost import Costs, count
from growbench.data import Batch, Data, load
from growbench.method import Method, Phase, Phases, Task, task_loss
from growbench.plan import META, Walked, plan, shape_batch, vocabulary_size, walk
from growbench.progress import Progress, human
from growbench.registry import Found, get_all
from growbench.trainer import Trainer

SECONDS = 3.0  # of training per measurement, about


def bench(experiment: Experiment, device: torch.device, rounds: int) -> str:
    """The comparison as a text: matrix-product peak, tokens/s and share of the peak, medians over `rounds` alternations, ratios.

    Every loop trains the experiment's target from scratch on the same batches, at the same precision, with gradient clipping.
    transformers.Trainer runs with its defaults, on the same architecture as transformers ships it. Raises UsageError without
    the packages that transformers.Trainer needs.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UsageError('transformers.Trainer needs accelerate: pip install "growbench[bench]"') from error
    architecture = architectures.of(experiment)
    training = experiment.train
    data = load(experiment.data, architecture.objective, architecture.tokenizer, training.batch)
    precision = training.precision_on(device.type)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        with device:
            return architecture.build(experiment.sizes("target", data.vocabulary))

    def shipped() -> nn.Module:
        return as_shipped(fresh()).to(device)

    batch = data.train_batch(0, 0).to(device)
    flops_per_step, _ = count(lambda: task_loss(fresh(), batch).backward())
    bare = BareLoop(experiment, data, device, fresh())
    bare.train(3)
    steps = max(5, round(3 * SECONDS / _seconds(bare.train, 3, device)))
    loops: dict[str, Callable[[int], float]] = {
        "bare loop": lambda n: _seconds(BareLoop(experiment, data, device, fresh()).train, n, device),
        "growbench": lambda n: growbench_seconds(experiment, data, device, n),
        "transformers.Trainer": lambda n: trainer_seconds(experiment, data, device, shipped(), n),
    }
    per_step: dict[str, list[float]] = {name: [] for name in loops}
    peaks = []
    for loop in loops.values():
        loop(3)  # warm-up
    for _ in range(rounds):
        peaks.append(matrix_peak(device, precision == "bf16"))
        for name, loop in loops.items():
            per_step[name].append(loop(steps) / steps)
    peak = max(peaks)
    lines = [
        f"{experiment.name}: target, batch {training.batch} x {experiment.data.positions}, {hardware(device)['name']}, "
        f"{torch.get_num_threads()} threads, {precision}; medians of {rounds} alternations of {steps} steps",
        f"matrix-product peak: {human(peak, 'FLOP/s')} (largest of {rounds})",
        f"{'':<22} {'tokens/s':>12} {'share of peak':>14} {'ms per step':>12} {'against Trainer':>16}",
    ]
    for name in loops:
        middle = statistics.median(per_step[name])
        ratios = [other / own for own, other in zip(per_step[name], per_step["transformers.Trainer"], strict=True)]
        lines.append(
            f"{name:<22} {data.tokens_per_batch / middle:>12.0f} {flops_per_step / middle / peak:>13.1%} {1000 * middle:>12.1f}"
            f" {statistics.median(ratios):>14.2f} x"
        )
    overhead = [own / base - 1 for own, base in zip(per_step["growbench"], per_step["bare loop"], strict=True)]
    lines.append(f"transformers.Trainer: its defaults, on {type(shipped()).__name__} as its library ships it")
    lines.append(f"growbench's loop over the bare loop: {statistics.median(overhead):+.1%} time per step")
    return "\n".join(lines)


class Labelled(nn.Module):
    """An image model as transformers.Trainer wants it: it returns its own loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def as_shipped(model: nn.Module) -> nn.Module:
    """The model's own library's class for it."""
    if not hasattr(model, "config"):  # timm's models are ours but for the signature
        return Labelled(model)
    config = copy.deepcopy(model.config)
    if config.pad_token_id is None:  # type: ignore[union-attr]
        config.pad_token_id = 0  # type: ignore[union-attr]  # RoBERTa as shipped asks for one
    return type(model).__base__(config)  # type: ignore[misc, no-any-return]


class BareLoop:
    """Forward, backward, clipping and optimizer on batches that lie ready: what a loop cannot do without."""

    def __init__(self, experiment: Experiment, data: Data, device: torch.device, model: nn.Module) -> None:
        self.model = model.train()
        self.clip = experiment.train.clip
        self.optimizer = Task.of(experiment, "target", data.vocabulary, Costs(device)).optimizer(model)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=experiment.train.precision_on(device.type) == "bf16")
        self.batches = itertools.cycle([data.train_batch(step, 0).to(device) for step in range(100)])

    def train(self, steps: int) -> None:
        for _ in range(steps):
            with self.autocast:
                loss = task_loss(self.model, next(self.batches))
            loss.backward()
            clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()


@dataclass(frozen=True)
class Stretch(Method):
    """The first steps of training from scratch, at the cadence of the whole budget."""

    paper: ClassVar[str] = ""
    uses_source: ClassVar[bool] = False
    steps: int = 1

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build(), steps=self.steps)


def growbench_seconds(experiment: Experiment, data: Data, device: torch.device, steps: int) -> float:
    """Charged seconds of `steps` steps of the runner's own loop, training from scratch."""
    torch.manual_seed(0)
    costs = Costs(device)
    task = Task.of(experiment, "target", data.vocabulary, costs)
    trainer = Trainer(task, data, 0, costs, [], Progress("bench", steps, None, shown=False))
    trainer.run(Stretch(steps))
    return costs.seconds["train"]


def trainer_seconds(experiment: Experiment, data: Data, device: torch.device, model: nn.Module, steps: int) -> float:
    """Seconds of `steps` steps of transformers.Trainer with its defaults, from train()'s first step to its last."""
    from transformers import Trainer as TransformersTrainer
    from transformers import TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Timer(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds = time.perf_counter() - self.start

    timer = Timer()
    rows = [row for step in range(steps) for row in _rows(data.train_batch(step, 0))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=experiment.train.batch,
            learning_rate=experiment.train.lr,
            max_grad_norm=experiment.train.clip,
            use_cpu=device.type == "cpu",
            bf16=experiment.train.precision_on(device.type) == "bf16",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = TransformersTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[timer])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return timer.seconds


def _rows(batch: Batch) -> list[dict[str, Tensor]]:
    """A batch as transformers' collator wants it: one mapping an image or a sequence, -100 where nothing is scored."""
    if batch.inputs.dim() == 4:
        return [{"pixel_values": image, "labels": label} for image, label in zip(batch.inputs, batch.labels, strict=True)]
    labels = batch.inputs
    if batch.positions is not None:
        labels = torch.full_like(batch.inputs, -100)
        labels.view(-1)[batch.positions] = batch.labels
    return [{"input_ids": row, "labels": answer} for row, answer in zip(batch.inputs, labels, strict=True)]


# --- what a step of each phase of a method costs, against a plain step


def bench_phases(experiment: Experiment, specs: list[str], device: torch.device, rounds: int) -> str:
    """A table as text: FLOPs, peak memory and time of a training step of every phase, and the ratios to scratch's.

    On random data with a random source. Memory is measured in a process of its own for each phase: what the second and third
    step reach, less what the process held before. Times are medians over `rounds` alternations with the plain step.
    """
    vocabulary = vocabulary_size(experiment.data)
    plain = PhaseStep.of(experiment, "scratch", 0, vocabulary, device)
    ((_, plain_flops),) = _flops_of_phases(experiment, "scratch", vocabulary)
    plain(1)
    plain_memory = _alone(experiment, "scratch", 0, vocabulary, device)
    plain_seconds = _seconds(plain, 1, device)
    lines = [
        f"{experiment.name}: a training step of batch {experiment.train.batch} x {experiment.data.positions}, "
        f"{hardware(device)['name']}, {torch.get_num_threads()} threads, {experiment.train.precision_on(device.type)}; "
        f"medians of {rounds} alternations; in brackets against the plain step",
        f"{'':<34} {'FLOPs':>22} {'peak memory':>20} {'ms per step':>20}",
        f"{'plain':<34} {human(plain_flops, 'FLOP'):>22} {human(plain_memory, 'B'):>20} {1000 * plain_seconds:>20.0f}",
    ]
    for spec in specs:
        for number, (phase, flops) in enumerate(_flops_of_phases(experiment, spec, vocabulary)):
            step = PhaseStep.of(experiment, spec, number, vocabulary, device)
            peak = _alone(experiment, spec, number, vocabulary, device)
            seconds = [(_seconds(step, 1, device), _seconds(plain, 1, device)) for _ in range(rounds + 1)][1:]
            times = statistics.median(own for own, _ in seconds), statistics.median(own / other for own, other in seconds)
            lines.append(
                f"{spec + ': ' + phase:<34} {human(flops, 'FLOP'):>12} ({flops / plain_flops:.3f} x)"
                f" {human(peak, 'B'):>11} ({peak / plain_memory:.2f} x) {1000 * times[0]:>10.0f} ({times[1]:.2f} x)"
            )
    return "\n".join(lines)


@dataclass(frozen=True)
class PhaseStep:
    """One training step of a method's phase, on random data."""

    walked: Walked
    batch: Batch
    clip: float
    bf16: bool

    @classmethod
    def of(cls, experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> PhaseStep:
        """The step of phase `number`; the phases before it are walked through untrained."""
        found, costs = _found(experiment, spec), Costs(device)
        walked = next(itertools.islice(walk(experiment, found.method, vocabulary, costs), number, None))
        objective = architectures.of(experiment).objective
        batch = shape_batch(experiment.data, objective, experiment.train.batch, vocabulary, device)
        return cls(walked, batch, experiment.train.clip, experiment.train.precision_on(device.type) == "bf16")

    def __call__(self, steps: int) -> None:
        model = self.walked.model
        for _ in range(steps):
            with torch.autocast(self.batch.inputs.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.walked.phase.loss(model, self.batch, 0)
            loss.backward()
            clip_grad_norm_([p for p in model.parameters() if p.requires_grad], self.clip)
            self.walked.optimizer.step()
            self.walked.optimizer.zero_grad()


def _flops_of_phases(experiment: Experiment, spec: str, vocabulary: int) -> list[tuple[str, float]]:
    """Each phase's name and the FLOPs of its step."""
    planned = plan(experiment, _found(experiment, spec), vocabulary)
    return [(phase.name, sum(phase.flops_per_step.values())) for phase in planned]


def _found(experiment: Experiment, spec: str) -> Found:
    """A method by its name or file, with the experiment's hyperparameters: a process of its own finds it again."""
    return get_all([spec], experiment.methods)[0]


def _alone(*arguments: Any) -> int:
    """Peak memory of a phase's steps in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_step_memory, torch.get_num_threads(), *arguments).result()


def _step_memory(threads: int, experiment: Experiment, spec: str, number: int, vocabulary: int, device: torch.device) -> int:
    torch.set_num_threads(threads)
    memory.keep_freed()
    PhaseStep.of(experiment, "scratch", 0, vocabulary, META)  # imports everything
    memory.reset_peak(device)
    before = memory.peak(device)
    step = PhaseStep.of(experiment, spec, number, vocabulary, device)
    step(1)
    memory.reset_peak(device)
    step(2)
    return memory.peak(device) - before


def matrix_peak(device: torch.device, bf16: bool) -> float:
    """FLOPs per second of a large square matrix product on this device, at this precision: the best of a few."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    return max(2 * size**3 / _seconds(lambda _: a @ a, 1, device) for _ in range(5))


def _seconds(train: Callable[[int], Any], steps: int, device: torch.device) -> float:
    """Wall seconds of `train(steps)`, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    train(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
