"""Work that a method hides from its ledger: each way is refused, in a run or in a check, in words that say where."""

from __future__ import annotations

import gc
import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from growbench.console import Progress
from growbench.costs.ledger import Costs, CpuClock, Stopwatch
from growbench.data import Batch
from growbench.method import Method, Phase, Phases, Task, task_loss
from growbench.tools.check import broken_promises
from growbench.tools.miniatures import CPU, SEED, VOCABULARY, Cell, RandomData
from growbench.training.audit import STEPS_PER_PROBE, hidden_steps
from growbench.training.state import Outcome
from growbench.training.trainer import Output, Trainer, Work

CELL = Cell("gpt2")
Make = Callable[[Task], Phases]
Loss = Callable[[nn.Module, Batch, int], Tensor]


class Cheat(Method):
    """Phases from outside."""

    paper = "https://example.org"
    uses_source = False
    make: Any = None

    def phases(self, task: Task) -> Phases:
        yield from self.make(task)


def train(make: Make, steps: int = 8, seed: int = SEED) -> tuple[Outcome, list[dict[str, Any]]]:
    """A run of so many steps on a miniature."""
    experiment = replace(CELL.experiment, train=replace(CELL.experiment.train, steps=steps))
    costs, curve = Costs(CPU), list[dict[str, Any]]()
    torch.manual_seed(seed)
    task = Task.of(experiment, "target", VOCABULARY, CPU, seed)
    data = RandomData(experiment.data, "causal", experiment.train.batch)
    output = Output(curve, Progress("test", 1, None, shown=False))
    return Trainer(Work(task, data, seed, costs), output).run(Cheat(make)), curve


def more(model: nn.Module, batch: Batch) -> None:
    """The forward and backward pass of one more step, of which nothing is left."""
    with torch.enable_grad():
        task_loss(model, batch).backward()
    model.zero_grad()


class Seen:
    """The batches that a loss has been given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        self.batches = [batch]
        return task_loss(model, batch)

    def train(self, model: nn.Module) -> None:
        """One more step on the last batch, unless there is none yet."""
        batches, self.batches = self.batches, []  # a step within this one takes no other
        for batch in batches:
            more(model, batch)


def in_the_loss(task: Task) -> Phases:
    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        if 0 < step < task.budget - 1:
            more(model, batch)
        return task_loss(model, batch)

    yield Phase(model=task.build(), loss=loss)


def in_the_optimizer(task: Task) -> Phases:
    model, seen = task.build(), Seen()

    class Training(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            seen.train(model)
            return super().step()

    yield Phase(model=model, loss=seen.loss, optimizer=Training(model.parameters()))


def in_a_hook_of_the_optimizer(task: Task) -> Phases:
    model, seen = task.build(), Seen()
    optimizer = task.optimizer(model)
    optimizer.register_step_post_hook(lambda *_: seen.train(model))
    yield Phase(model=model, loss=seen.loss, optimizer=optimizer)


def when_gradients_are_dropped(task: Task) -> Phases:
    model, seen = task.build(), Seen()

    class Training(torch.optim.AdamW):
        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none)
            seen.train(model)

    yield Phase(model=model, loss=seen.loss, optimizer=Training(model.parameters()))


def backward_in_the_optimizer(task: Task) -> Phases:
    model, losses = task.build(), list[Tensor]()

    class Training(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            while losses:
                losses.pop().backward()
            return super().step()

    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        losses.append(task_loss(model, batch))
        return task_loss(model, batch)

    yield Phase(model=model, loss=loss, optimizer=Training(model.parameters()))


def in_an_evaluation(task: Task) -> Phases:
    model, seen = task.build(), Seen()
    model.register_forward_pre_hook(lambda model, _: None if model.training else seen.train(model))
    yield Phase(model=model, loss=seen.loss)


def when_the_mode_changes(task: Task) -> Phases:
    model, seen = task.build(), Seen()

    class Training(type(model)):  # type: ignore[misc]
        def train(self, mode: bool = True) -> Any:
            seen.train(self)
            return super().train(mode)

    model.__class__ = Training
    yield Phase(model=model, loss=seen.loss)


WHERE = r"test_uncharged_work.py, line \d+: gradients are computed outside of the phase's loss, where nothing is charged"

REFUSED = {
    in_the_loss: "the work per step changed from 2,174,976 to 4,349,952 FLOPs",
    in_the_optimizer: WHERE,
    in_a_hook_of_the_optimizer: WHERE,
    when_gradients_are_dropped: WHERE,
    backward_in_the_optimizer: WHERE,
    in_an_evaluation: WHERE,
    when_the_mode_changes: WHERE,
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_run_refuses_work_that_is_not_charged(make: Make) -> None:
    with pytest.raises(Exception, match=f"phase 'train': {REFUSED[make]}"):
        train(make)


@pytest.mark.parametrize("make", [in_the_optimizer, in_an_evaluation], ids=lambda make: make.__name__)
def test_so_does_a_check(make: Make) -> None:
    assert broken_promises(Cheat(make), CELL)


def test_a_check_counts_every_step() -> None:
    """One step in the middle that a run's hidden probe may miss."""

    def make(task: Task) -> Phases:
        other = min(set(range(1, task.budget - 1)) - hidden_steps(SEED, 0, task.budget))

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            if step == other:
                more(model, batch)
            return task_loss(model, batch)

        yield Phase(model=task.build(), loss=loss)

    (line,) = broken_promises(Cheat(make), CELL)
    assert "takes 4,349,952 FLOPs, while 2,174,976 are charged: all steps must do the same work" in line


@pytest.mark.parametrize("begins", ["in growth", "when the method is imported"])
def test_a_thread_that_works_during_training_is_refused(begins: str) -> None:
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.001):
            torch.ones(8, 8) @ torch.ones(8, 8)

    worker = threading.Thread(target=work, name="worker", daemon=True)

    def make(task: Task) -> Phases:
        model = task.build()
        if begins == "in growth":
            worker.start()
        yield Phase(model=model)

    try:
        if begins != "in growth":
            worker.start()
        with pytest.raises(Exception, match="phase 'train': worker runs code of the method, and nothing is charged for it"):
            train(make)
    finally:
        ended.set()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system has no list of a process's children")
def test_a_check_finds_a_process_that_works_during_training() -> None:
    started = list[subprocess.Popen[bytes]]()

    def make(task: Task) -> Phases:
        started.append(subprocess.Popen(["sleep", "60"]))
        yield Phase(model=task.build())

    try:
        (line,) = broken_promises(Cheat(make), CELL)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert line == "phase 'train': a process that the method has started runs during training, and is not charged"


def test_schedules_and_workloads_are_asked_before_the_first_step_and_charged_with_nothing() -> None:
    asked, trained = list[str](), list[int]()

    def make(task: Task) -> Phases:
        def schedule(step: int, steps: int) -> float:
            asked.append("schedule")
            return 1.0

        def workload(step: int) -> int:
            asked.append("workload")
            return 0

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            trained.append(len(asked))
            return task_loss(model, batch)

        yield Phase(model=task.build(), loss=loss, schedule=schedule, workload=workload)

    train(make)
    assert set(trained) == {len(asked)} == {16}


def test_a_schedule_that_computes_products_is_refused() -> None:
    def make(task: Task) -> Phases:
        matrix = torch.ones(4, 4)
        yield Phase(model=task.build(), schedule=lambda step, steps: (matrix @ matrix)[0, 0].item() / 4)

    with pytest.raises(Exception, match="phase 'train': its schedules or its workload compute 1,024 FLOPs"):
        train(make)


def test_a_phase_is_read_once_and_cannot_be_changed_later() -> None:
    model = nn.Linear(1, 1)
    read = list[str]()

    class Changing(Phase):
        def __getattribute__(self, name: str) -> Any:
            if name == "loss":
                read.append(name)
            return super().__getattribute__(name)

    def make(task: Task) -> Phases:
        nonlocal model
        model = task.build()
        phase = Changing(model=model)

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            phase.account = "operator"  # outside of the budget
            return task_loss(model, batch)

        phase.loss = loss
        yield phase

    outcome, _ = train(make)
    assert len(read) == 1
    assert outcome.scored_steps == 8 and outcome.costs.flops["operator"] == 0


TEACHERS = {
    "computes gradients": lambda task, model, batch: more(model, batch),
    "reads parameters that are trained": lambda task, model, batch: task_loss(model, batch),
    r"within task\.teacher\(\)": lambda task, model, batch: task.teacher().__enter__(),
}


@pytest.mark.parametrize("wrong", TEACHERS)
def test_what_counts_as_stored_before_the_run_must_be_so(wrong: str) -> None:
    def make(task: Task) -> Phases:
        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            with task.teacher(precomputed=True):
                TEACHERS[wrong](task, model, batch)
            return task_loss(model, batch)

        yield Phase(model=task.build(), loss=loss)

    with pytest.raises(Exception, match=wrong):
        train(make)


def test_a_teacher_that_stays_open_is_refused() -> None:
    def make(task: Task) -> Phases:
        opened = list[Any]()

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            if step == 1:
                opened.append(task.teacher(precomputed=True))
                opened[0].__enter__()
            torch.set_grad_enabled(True)
            return task_loss(model, batch)

        yield Phase(model=task.build(), loss=loss)

    try:
        with pytest.raises(
            Exception, match=r"phase 'train': task.teacher\(\) is open at the end of a step: close it in the loss"
        ):
            train(make)
    finally:
        torch.set_grad_enabled(True)  # as the method has left it


def test_a_changed_ledger_is_found() -> None:
    """Python hides nothing: a ledger can be found among all objects."""

    def make(task: Task) -> Phases:
        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            if step == 5:
                for each in gc.get_objects():
                    if type(each) is Costs:  # `isinstance` asks what is lazy, and what no longer exists
                        each.flops["train"] = 0
            return task_loss(model, batch)

        yield Phase(model=task.build(), loss=loss)

    with pytest.raises(Exception, match=r"the ledger was changed: .* FLOPs of train, while the phases took 17,399,808"):
        train(make)


def reachable(root: Any) -> Iterator[Any]:
    """What attributes, slots, items, closures and bound methods lead to."""
    seen, left = dict[int, Any](), [root]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, str | int | float | type | Tensor):
            continue
        seen[id(each)] = each
        yield each
        left += getattr(each, "__dict__", {}).values()
        left += [getattr(each, slot) for slot in getattr(type(each), "__slots__", ()) if hasattr(each, slot)]
        if isinstance(each, MethodType):
            left += [each.__self__, each.__func__]
        if isinstance(each, FunctionType):
            left += [cell.cell_contents for cell in each.__closure__ or ()]
        if isinstance(each, dict):
            left += itertools.chain(each.keys(), each.values())
        if isinstance(each, list | tuple | set | frozenset):
            left += each


def test_nothing_that_a_method_gets_leads_to_the_ledger() -> None:
    found = list[Any]()

    def make(task: Task) -> Phases:
        phase = Phase(model=task.build(), steps=2)
        trained = yield phase
        given = (vars(task), task.teacher, task.teacher(), task.schedule, phase, trained)
        found.extend(each for root in given for each in reachable(root))
        yield Phase(model=trained.model, optimizer=trained.optimizer)

    train(make)
    assert len(found) > 100
    assert not [each for each in found if isinstance(each, Costs | Stopwatch | CpuClock | FlopCounterMode | Outcome | Trainer)]


def test_hidden_steps_are_spread_over_a_phase_and_depend_on_seed_and_phase() -> None:
    assert not hidden_steps(0, 0, 1) | hidden_steps(0, 0, 2)
    assert hidden_steps(0, 0, 3) == {1}
    assert {step for seed in range(40) for step in hidden_steps(seed, 0, 6)} == {1, 2, 3, 4}
    assert {step for phase in range(40) for step in hidden_steps(0, phase, 6)} == {1, 2, 3, 4}
    many = sorted(hidden_steps(3, 1, 4 * STEPS_PER_PROBE + 2))
    assert [(step - 1) // STEPS_PER_PROBE for step in many] == [0, 1, 2, 3]


def test_a_hidden_step_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a loss draws from the task's generator, and changes a buffer."""

    def make(task: Task) -> Phases:
        model = task.build()
        model.register_buffer("calls", torch.zeros(()))

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            model.calls += 1  # type: ignore[operator]
            return task_loss(model, batch) * (1 + torch.rand((), generator=task.rng)) * (1 + model.calls)

        yield Phase(model=model, loss=loss)

    curves = [[row["train_loss"] for row in train(make)[1]]]
    monkeypatch.setattr("growbench.training.trainer.hidden_steps", lambda *_: frozenset())
    curves.append([row["train_loss"] for row in train(make)[1]])
    assert curves[0] == curves[1]


def test_an_optimizers_own_products_are_no_breach_and_are_said() -> None:
    """As those of Muon, which orthogonalises its updates."""
    from growbench.tools.check import verdict

    def make(task: Task) -> Phases:
        model = task.build()

        class Orthogonal(torch.optim.SGD):
            @torch.no_grad()
            def step(self, closure: Any = None) -> Any:
                for parameter in self.param_groups[0]["params"]:
                    if parameter.dim() == 2 and parameter.grad is not None:
                        parameter.grad @ parameter.grad.mT
                return super().step()

        yield Phase(model=model, optimizer=Orthogonal(model.parameters(), lr=1e-3))

    found = verdict(Cheat(make), CELL)
    assert found.broken == []
    assert any("a step of Orthogonal takes" in line for line in found.warnings)


def test_a_phase_records_its_seconds_and_its_cpu_time() -> None:
    def make(task: Task) -> Phases:
        yield Phase(model=task.build())

    (phase,) = train(make)[0].phases
    assert phase.seconds is not None and phase.cpu_seconds is not None
    assert phase.seconds > 0 and phase.cpu_seconds > 0
