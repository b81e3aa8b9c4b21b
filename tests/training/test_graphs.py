"""Captured steps, on the CPU: what can be captured, and that a run by graphs is the run. A graph here repeats what it was given.

tests/gpu/test_cuda_graphs.py has torch's own graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from growbench import architectures, registry
from growbench.config import loading
from growbench.config.schema import Machine, ModelConfig, Training
from growbench.console import Progress
from growbench.costs.ledger import Costs
from growbench.data import load
from growbench.errors import Interrupted, UsageError
from growbench.method import CombinedOptimizer, EntrySchedule, Phase, Task, constant, task_loss
from growbench.training import graphs, trainer
from growbench.training.checkpoint import Checkpoints
from growbench.training.entries import ScaledEntries
from growbench.training.graphs import CapturedStep, obstacle
from growbench.training.replicas import DataParallelReplica, Replica
from growbench.training.state import Outcome
from growbench.training.step import Step
from growbench.training.trainer import Output, Trainer, Work

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = ModelConfig(layers=1, width=8, heads=2, vocabulary=20, positions=8)


@dataclass
class Repeated:
    """Stands for a CUDA graph: does the work again, and writes what it makes into the same memory. Capturing changes nothing."""

    work: Callable[[], Tensor | None]
    parameters: Sequence[nn.Parameter]
    made: Tensor | None = None
    gradients: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def of(cls, step: Step, work: Callable[[], Any]) -> Repeated:
        graph = cls(work, list(step.live.model.parameters()))
        if work != step.update:
            graph.made = work()
            graph.gradients = [each.grad for each in graph.parameters]
        return graph

    def replay(self) -> None:
        if self.made is None:
            for parameter, gradient in zip(self.parameters, Repeated.latest, strict=True):
                parameter.grad = gradient
            self.work()
            return
        before = [each.grad for each in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        made = self.work()
        assert made is not None
        self.made.copy_(made)
        for parameter, own, old in zip(self.parameters, self.gradients, before, strict=True):
            if own is not None:
                own.copy_(parameter.grad)
            parameter.grad = old
        Repeated.latest = self.gradients

    latest = ()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[CapturedStep]:
    """Has steps captured on the CPU, by graphs that repeat. Holds the captured steps."""
    found = []

    def capture(step: Step, batch: Any) -> CapturedStep | str:
        own = batch._replace(inputs=batch.inputs.clone(), labels=batch.labels.clone())
        with monkeypatch.context() as patch:
            patch.setattr(graphs, "_recorded", lambda work, *_: ((graph := Repeated.of(step, work)), graph.made))
            graph, loss = graphs._recorded(lambda: step.backward(own, 0), CPU)
            gradients = [(each, each.grad) for each in step.live.model.parameters()]
            update = graphs._captured_update(step, graph) if graphs._steps_alone(step.live) else None
        step.live.zero_grad()
        found.append(CapturedStep(step, own, loss, gradients, graph, update))
        return found[-1]

    monkeypatch.setattr(graphs, "obstacle", lambda step: obstacle(Step(step.phase, step.live, step.training, step.machine, CUDA)))
    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(graphs.CapturedValue, "of", lambda work, device: work)
    return found


@pytest.fixture
def evaluations(captures: list[CapturedStep], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Holds what each evaluation by a graph computed."""
    found = []

    def of(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        def noted() -> Tensor:
            found.append(work)
            return work()

        return noted

    monkeypatch.setattr(graphs.CapturedValue, "of", of)
    return found


Train = Callable[..., tuple[Outcome, list[dict[str, Any]]]]


@pytest.fixture
def train(miniature: Path) -> Train:
    """Trains a method on the miniature experiment with other values of its keys."""

    def run(method: str, *changes: str, checkpoints: Checkpoints | None = None) -> tuple[Outcome, list[dict[str, Any]]]:
        experiment = loading.load(str(miniature), [*changes, "target.dropout=0.1"])
        texts = load(experiment.data, "causal", "bytes", experiment.train.batch)
        torch.manual_seed(0)
        source = architectures.of(experiment).build(experiment.sizes("source", texts.vocabulary)).requires_grad_(False).eval()
        task = Task.of(experiment, "target", texts.vocabulary, CPU, source=source)
        work, curve = Work(task, texts, 0, Costs(CPU), experiment.machine), list[dict[str, Any]]()
        output = Output(curve, Progress("test", 1, None, shown=False), checkpoints)
        outcome = Trainer(work, output).run(registry.get(method, experiment.methods.get(method)).method)
        for row in curve:
            del row["seconds"]
        return outcome, curve

    return run


def test_a_run_by_graphs_is_the_run(train: Train, captures: list[CapturedStep]) -> None:
    """Three phases with a schedule, dropout and micro-batches: the same bits, the same FLOPs."""
    expected, curve = train("stackbert", "machine.micro_batch=2")
    assert not captures
    outcome, by_graphs = train("stackbert", "machine.micro_batch=2", "machine.graphs=true")
    assert len(captures) == len(expected.phases) == 3
    assert all(each.clip_and_optimizer for each in captures)
    assert by_graphs == curve
    assert outcome.costs.flops == expected.costs.flops
    assert outcome.costs.seconds["compilation"] > 0 == expected.costs.seconds["compilation"]


def test_evaluations_of_what_is_captured_are_done_by_graphs(train: Train, evaluations: list[Any]) -> None:
    """Of KI those of its second phase, but neither the first one, which is counted, nor that behind its first step."""
    expected, curve = train("ki")
    outcome, by_graphs = train("ki", "machine.graphs=true")
    assert by_graphs == curve
    assert outcome.costs.flops == expected.costs.flops
    assert len(evaluations) == outcome.phases[1].steps - 1 == 7


def test_a_graph_of_evaluations_that_reads_old_memory_is_found(
    train: Train, captures: list[CapturedStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that gives forever what it gave when it was captured."""

    def of(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        value = work()
        return lambda: value

    monkeypatch.setattr(graphs.CapturedValue, "of", of)
    with pytest.raises(UsageError, match="an evaluation by a CUDA graph gives"):
        train("scratch", "machine.graphs=true")


def test_a_graph_of_evaluations_ends_with_its_phase(train: Train, evaluations: list[Any]) -> None:
    """Three phases of 2, 2 and 8 steps: the graph of one is not used in the next, whose model may be the same object."""
    train("stackbert", "machine.graphs=true")
    assert [evaluations.count(work) for work in dict.fromkeys(evaluations)] == [1, 1, 7]


def test_an_optimizer_that_is_not_known_steps_without_a_graph(train: Train, captures: list[CapturedStep]) -> None:
    _, curve = train("scratch", "train.optimizer=muon")
    outcome, by_graphs = train("scratch", "train.optimizer=muon", "machine.graphs=true")
    assert isinstance(outcome.optimizer, CombinedOptimizer)
    assert [each.clip_and_optimizer for each in captures] == [None]
    assert by_graphs == curve


def test_a_phase_that_cannot_be_captured_runs_without(
    train: Train, captures: list[CapturedStep], capsys: pytest.CaptureFixture[str]
) -> None:
    """KI's loss depends on the step; the phase after it has the task's own."""
    _, curve = train("ki")
    outcome, by_graphs = train("ki", "machine.graphs=true")
    assert by_graphs == curve
    assert [each.step.phase.name for each in captures] == ["train"]
    assert [each.name for each in outcome.phases] == ["inherit", "train"]
    assert "phase 'inherit' runs without CUDA graphs: its loss is not the task's own" in capsys.readouterr().err


def test_an_interrupted_run_is_captured_again(
    train: Train, captures: list[CapturedStep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first step behind the checkpoint, whose optimizer settings are those of a run without graphs."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    _, curve = train("scratch")
    batch, batches = Trainer._batch, 0

    def counted(self: Trainer, *arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 7:
            raise Interrupted
        return batch(self, *arguments)

    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "_batch", counted)
        train("scratch", "machine.graphs=true", checkpoints=checkpoints)
    outcome, resumed = train("scratch", "machine.graphs=true", checkpoints=checkpoints)
    assert len(captures) == 2
    assert 0 < len(resumed) < len(curve)
    assert resumed == curve[-len(resumed) :]
    assert outcome.optimizer is not None
    assert all(type(group["lr"]) is float and not group["capturable"] for group in outcome.optimizer.param_groups)


@pytest.fixture
def step() -> Step:
    model = architectures.get("gpt2").build(SIZES)
    training = Training(batch=1, steps=1, lr=1.0, precision="float32")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return Step(Phase(model=model), Replica(model, optimizer), training, Machine(graphs=True), CUDA)


class Own(nn.Linear):
    """A module of a method's own."""


def test_what_is_captured(step: Step) -> None:
    model, phase = step.phase.model, step.phase
    assert obstacle(step) == ""
    assert obstacle(Step(phase, step.live, step.training, step.machine, CPU)) == "the device is cpu"
    replicated = DataParallelReplica(model, step.live.optimizer, nn.Identity())
    assert obstacle(Step(phase, replicated, step.training, step.machine, CUDA)) == "several processes train it"
    for changed, why in (
        (Phase(model=model, loss=lambda *arguments: task_loss(*arguments)), "its loss is not the task's own"),
        (Phase(model=model, workload=lambda step: step % 2), "its steps have several workloads"),
        (Phase(model=nn.Sequential(Own(1, 1))), "0 is a module of the method's own"),
    ):
        assert why in obstacle(Step(changed, step.live, step.training, step.machine, CUDA))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_of_modules_are_not_captured(step: Step, register: str) -> None:
    handle = getattr(step.phase.model.get_submodule("transformer.ln_f"), register)(lambda *_: None)
    assert obstacle(step) == "transformer.ln_f has hooks"
    handle.remove()
    assert obstacle(step) == ""


def test_hooks_and_functions_of_a_methods_own_are_not_captured(step: Step) -> None:
    norm = step.phase.model.get_submodule("transformer.ln_f")
    handle = norm.weight.register_hook(lambda gradient: 2 * gradient)
    assert obstacle(step) == "transformer.ln_f has hooks"
    handle.remove()
    norm.forward = lambda hidden: hidden
    assert "transformer.ln_f is a module of the method's own" in obstacle(step)


def test_entries_with_a_rate_of_their_own_are_stepped_without_a_graph(step: Step) -> None:
    assert graphs._steps_alone(step.live)
    where = {"transformer.ln_f.weight": torch.ones(8, dtype=torch.bool)}
    phase = Phase(model=step.phase.model, entry_schedules=[EntrySchedule(where, constant)])
    step.live.entries = ScaledEntries.of(phase, step.live.shard_of)
    assert not graphs._steps_alone(step.live)


@pytest.mark.parametrize("change", [{"fused": False}, {"fused": None}])
def test_an_optimizer_that_asks_the_host_steps_without_a_graph(step: Step, change: dict[str, Any]) -> None:
    step.live.optimizer.param_groups[0].update(change)
    assert not graphs._steps_alone(step.live)


def test_an_optimizer_with_hooks_steps_without_a_graph(step: Step) -> None:
    step.live.optimizer.register_step_post_hook(lambda *_: None)
    assert not graphs._steps_alone(step.live)


def test_graphs_and_compiling_exclude_each_other(step: Step) -> None:
    with pytest.raises(UsageError, match=r"^graphs = true: must be false with compile = \"on\"$"):
        Machine(graphs=True, compile="on")
    assert not Step.of(step.phase, step.live, step.training, Machine(graphs=True), CUDA, steps=100_000).compiled
