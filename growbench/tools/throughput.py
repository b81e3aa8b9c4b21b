"""Throughput of three training loops on one experiment's target, measured in turn in one process.

The loops: growbench's own, a bare loop of forward, backward and optimizer, and transformers.Trainer.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from growbench import architectures
from growbench.config.schema import Experiment
from growbench.console import Progress, say
from growbench.costs import memory
from growbench.costs.accounts import Account
from growbench.costs.flops import count
from growbench.costs.hardware import device_name
from growbench.costs.ledger import Costs
from growbench.data import Batch, Data, load
from growbench.errors import Interrupted, UsageError
from growbench.formatting import data_size, percent, quantity
from growbench.method import Method, Phase, Phases, Task, task_loss
from growbench.tools.loop_table import BARE, OURS, TRAINER, Comparison, Ratio, markdown
from growbench.training.precision import precision_of
from growbench.training.replicas import Replica
from growbench.training.step import Step
from growbench.training.trainer import Output, Stop, Trainer, Work

SECONDS = 3.0  # approximate length of one measurement
WARM_UP = 3  # steps before each measurement
READY = 8  # batches of the loops that do not prepare their own: images take far longer to prepare than to train on
PRECISE = "growbench in float32"


def compare_loops(experiment: Experiment, device: torch.device, rounds: int) -> Comparison:
    """Seconds a step of each loop, in `rounds` alternations.

    Every loop trains the experiment's target from scratch on the same batches and micro-batches, at the same precision, with
    gradient clipping, all compiled or none. transformers.Trainer trains the model class that its library ships. Raises
    UsageError for another optimizer than AdamW, or if accelerate, which transformers.Trainer needs, is not installed.
    """
    _refuse_incomparable(experiment)
    architecture = architectures.of(experiment)
    training = experiment.train
    data = load(experiment.data, architecture.objective, architecture.tokenizer, training.batch)
    batches = [data.train_batch(step, 0) for step in range(READY)]
    precision = precision_of(training, experiment.machine, device)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        with device:
            return architecture.build(experiment.sizes("target", data.vocabulary))

    def shipped() -> nn.Module:
        with device:
            return as_shipped(fresh())

    part = batches[0].part(0, training.batch // experiment.machine.micro_batch_size(training.batch)).to(device)
    flops_of_part, _ = count(lambda: task_loss(fresh(), part).backward())
    flops_per_step = flops_of_part * training.batch // len(part.inputs)
    bare = BareLoop(experiment, data.vocabulary, batches, fresh())
    steps = max(5, round(SECONDS / bare.seconds(1)))
    compiled = bare.step.compiled
    del bare  # frees its memory, which is not to be counted as growbench's
    waited: list[float] = []
    largest: list[int] = []

    def ours(steps: int) -> float:
        memory.reset_peak(device)
        seconds, waiting, peak = growbench_seconds(experiment, data, device, steps, compiled)
        waited.append(waiting / seconds)
        largest.append(peak)
        return seconds

    loops: dict[str, Callable[[int], float]] = {
        BARE: lambda n: BareLoop(experiment, data.vocabulary, batches, fresh()).seconds(n),
        OURS: ours,
        TRAINER: lambda n: trainer_seconds(experiment, batches, shipped(), n, compiled),
    }
    precise = replace(experiment, train=replace(training, precision="float32"))
    if precision == "bf16" and device.type == "cpu":
        loops[PRECISE] = lambda n: growbench_seconds(precise, data, device, n, compiled)[0]
    per_step: dict[str, list[float]] = {name: [] for name in loops}
    peaks = []
    for loop in loops.values():
        loop(WARM_UP)
    for _ in range(rounds):
        peaks.append(matrix_peak(device, precision == "bf16"))
        for name, loop in loops.items():
            per_step[name].append(loop(steps) / steps)
    gain = _gain_of_bf16(per_step[OURS], per_step.pop(PRECISE, []), data)
    flags = ", ".join(f"{key} {value}" for key, value in trainer_flags(experiment, device, compiled).items())
    head = [
        f"{experiment.name}: target, batch {training.batch} x {experiment.data.positions}, {device_name(device)}, "
        f"{torch.get_num_threads()} threads, {precision}{', compiled' * compiled}"
        f"{', growbench by CUDA graphs' * experiment.machine.graphs}; "
        f"{rounds} rounds of {steps} steps of each loop",
        f"matrix-product peak: {quantity(max(peaks), 'FLOP/s')} (largest of {rounds})",
    ]
    foot = [
        *gain,
        f"transformers.Trainer: {type(shipped()).__name__} as its library ships it, {flags}",
        f"growbench prepares its batches and waits for them {percent(statistics.median(waited))} of the time; those of the other "
        f"loops are ready; peak memory of growbench {data_size(max(largest))}",
    ]
    return Comparison(experiment.name, per_step, data.tokens_per_batch, flops_per_step, max(peaks), head, foot)


def compare_all(experiments: Sequence[Experiment], device: torch.device, rounds: int) -> bool:
    """Print the comparison of each, and a table of all in Markdown. False if one cannot be measured, which is said."""
    found = []
    for experiment in experiments:
        try:
            found.append(compare_loops(experiment, device, rounds))
        except UsageError as error:
            say(f"{experiment.name}: not measured: {error}")
            continue
        print(f"{found[-1].text}\n", flush=True)
    print(markdown(found))
    return len(found) == len(experiments)


def _refuse_incomparable(experiment: Experiment) -> None:
    if experiment.train.optimizer != "adamw":
        raise UsageError(f"train.optimizer = {experiment.train.optimizer!r}: the loops are compared with 'adamw' alone")
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UsageError('transformers.Trainer needs accelerate: pip install "growbench[bench]"') from error


def _gain_of_bf16(bf16: list[float], float32: list[float], data: Data) -> list[str]:
    """A line of the table, from the seconds of growbench's steps in both precisions; none if there are none in float32."""
    if not float32:
        return []
    speed = f"{data.tokens_per_batch / statistics.median(float32):.0f} tokens/s"
    return [f"{PRECISE}: {speed}; bf16 is faster by the ratio {Ratio.of(float32, bf16)}"]


class Labelled(nn.Module):
    """An image model that returns its loss, as transformers.Trainer requires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def as_shipped(model: nn.Module) -> nn.Module:
    """A new model of the class that the library itself ships; of timm, the model itself."""
    if not hasattr(model, "config"):  # timm's
        return Labelled(model)
    config = copy.deepcopy(model.config)
    if config.pad_token_id is None:  # type: ignore[union-attr]
        config.pad_token_id = 0  # type: ignore[union-attr]  # RoBERTa as shipped requires one
    return type(model).__base__(config)  # type: ignore[misc, no-any-return]


class BareLoop:
    """Forward, backward, clipping and optimizer on batches that are ready on the device: the least that a loop must do."""

    def __init__(self, experiment: Experiment, vocabulary: int, batches: Sequence[Batch], model: nn.Module) -> None:
        self.device = next(model.parameters()).device
        optimizer = Task.of(experiment, "target", vocabulary, self.device).optimizer(model.train())
        live, training = Replica(model, optimizer), experiment.train
        self.step = Step.of(Phase(model=model), live, training, experiment.machine, self.device, training.steps)
        self.batches = itertools.cycle([batch.to(self.device) for batch in batches])

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step.backward(next(self.batches), 0)
            self.step.update()

    def seconds(self, steps: int) -> float:
        """Of so many steps, after the warm-up."""
        self.train(WARM_UP)
        return wall_seconds(self.train, steps, self.device)


class FirstSteps(Method):
    """The first steps of training from scratch, with the evaluation interval of the whole budget."""

    paper: ClassVar[str] = ""
    uses_source: ClassVar[bool] = False
    steps: int = 1

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build(), steps=self.steps)


def growbench_seconds(
    experiment: Experiment, data: Data, device: torch.device, steps: int, compiled: bool
) -> tuple[float, float, int]:
    """Charged seconds, seconds of waiting for data and peak memory (bytes) of `steps` steps of growbench's own loop."""
    torch.manual_seed(0)
    costs = Costs(device)
    task = Task.of(experiment, "target", data.vocabulary, device)
    machine = replace(experiment.machine, compile="on" if compiled else "off")  # as in a run at the whole budget
    output = Output([], Progress("bench", steps, None, shown=False))
    stop = Stop(interrupted=lambda: trainer.outcome.steps == steps)  # so that no final losses are measured, which take longer
    trainer = Trainer(Work(task, data, 0, costs, machine), output, stop)
    try:
        trainer.run(FirstSteps(steps + 1))
    except Interrupted:
        if trainer.outcome.steps < steps:  # by a signal
            raise
    return costs.seconds[Account.TRAIN], trainer.outcome.waited, costs.peak_memory()


def trainer_flags(experiment: Experiment, device: torch.device, compiled: bool) -> dict[str, Any]:
    """The options of transformers.Trainer that make it fastest."""
    rows = experiment.machine.micro_batch_size(experiment.train.batch)
    return {
        "bf16": precision_of(experiment.train, experiment.machine, device) == "bf16",
        "torch_compile": compiled,
        "optim": "adamw_torch_fused",
        "dataloader_num_workers": 4 if device.type == "cuda" else 0,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": experiment.train.batch // rows,
    }


def trainer_seconds(experiment: Experiment, batches: Sequence[Batch], model: nn.Module, steps: int, compiled: bool) -> float:
    """Seconds of `steps` steps of transformers.Trainer, after its warm-up."""
    from transformers import Trainer as TransformersTrainer
    from transformers import TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Timer(TrainerCallback):
        start = seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARM_UP, WARM_UP + steps):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                self.start, self.seconds = time.perf_counter(), time.perf_counter() - self.start

    timer, device = Timer(), next(model.parameters()).device
    rows = [row for batch in batches for row in _rows(batch)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=WARM_UP + steps,
            learning_rate=experiment.train.lr,
            max_grad_norm=experiment.train.clip,
            use_cpu=device.type == "cpu",
            **trainer_flags(experiment, device, compiled),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several would run nn.DataParallel, on a larger batch
        trainer = TransformersTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[timer])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return timer.seconds


def _rows(batch: Batch) -> list[dict[str, Tensor]]:
    """A batch as transformers' collator takes it: a mapping for each image or sequence; -100 marks positions without a label."""
    if batch.inputs.dim() == 4:
        return [{"pixel_values": image, "labels": label} for image, label in zip(batch.inputs, batch.labels, strict=True)]
    labels = batch.inputs
    if batch.positions is not None:
        labels = torch.full_like(batch.inputs, -100)
        labels.view(-1)[batch.positions] = batch.labels
    return [{"input_ids": row, "labels": answer} for row, answer in zip(batch.inputs, labels, strict=True)]


def matrix_peak(device: torch.device, bf16: bool) -> float:
    """FLOP/s of a large square matrix product on this device at this precision: the best of five."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    return max(2 * size**3 / wall_seconds(lambda _: a @ a, 1, device) for _ in range(5))


def wall_seconds(train: Callable[[int], Any], steps: int, device: torch.device) -> float:
    """Wall seconds of `train(steps)`, until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    train(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
