"""The loop: determinism, schedules, budgets, accounts, and the promises that it enforces."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from growbench import architectures
from growbench.config.schema import Experiment, Machine, ModelConfig, TextConfig, Training
from growbench.console import Progress
from growbench.costs.ledger import Costs
from growbench.data import Batch, TextData, load
from growbench.data.feed import Feed
from growbench.method import Method, Phase, Phases, Task, constant, schedule, task_loss
from growbench.method.interface import MethodError
from growbench.registry import get
from growbench.training.checkpoint import Checkpoints
from growbench.training.replicas import Replica
from growbench.training.state import Outcome, TrainingFailed
from growbench.training.step import Step
from growbench.training.trainer import Output, Stop, Trainer, Work

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def experiment(corpus: Any) -> Experiment:
    data = TextConfig(corpus=f"files:{corpus}", sequence_length=16, vocabulary=300, evaluation_batches=1)
    training = Training(batch=4, steps=12, lr=1e-3, warmup=2, precision="float32")
    source = ModelConfig(layers=1, width=16, heads=2, dropout=0.1)
    return Experiment(
        "mini", "mini", "gpt2", source, ModelConfig(layers=2, width=32, heads=4, dropout=0.1), data, training, training
    )


@pytest.fixture(scope="module")
def data(experiment: Experiment) -> TextData:
    return load(experiment.data, "causal", "bytes", experiment.train.batch)


Train = Callable[..., tuple[Outcome, list[dict[str, Any]]]]


@pytest.fixture
def train(experiment: Experiment, data: TextData) -> Train:
    def run(method: Method, seed: int = 0, **options: Any) -> tuple[Outcome, list[dict[str, Any]]]:
        costs, curve, dropout = Costs(CPU), [], options.pop("dropout", 0.1)
        torch.manual_seed(99)
        source = architectures.get("gpt2").build(experiment.sizes("source", data.vocabulary)).requires_grad_(False).eval()
        torch.manual_seed(seed)
        training = replace(experiment.train, **options.pop("training", {}))
        changed = replace(
            experiment, train=training, target=replace(experiment.target, dropout=dropout, **options.pop("target", {}))
        )
        task = Task.of(changed, "target", data.vocabulary, CPU, seed, source)
        work = Work(task, data, seed, costs, options.pop("machine", Machine()))
        output = Output(curve, Progress("test", 1, None, shown=False), options.pop("checkpoints", None))
        return Trainer(work, output, Stop(**options)).run(method), curve

    return run


def losses(curve: list[dict[str, Any]]) -> list[float]:
    return [row["val_loss"] for row in curve]


@pytest.mark.parametrize("name", ["scratch", "ligo"])
def test_same_seed_gives_a_bit_identical_curve_and_another_seed_another(train: Train, name: str) -> None:
    method = get(name, {"operator_steps": 3} if name == "ligo" else {}).method
    free = ("seconds",)
    first, again, other = (
        [{k: v for k, v in row.items() if k not in free} for row in train(method, seed)[1]] for seed in (0, 0, 1)
    )
    assert first == again
    assert losses(first) != losses(other)


def test_the_loop_computes_what_a_plain_loop_computes(train: Train, experiment: Experiment, data: TextData) -> None:
    """Scratch for 12 steps, against torch's own AdamW, clipping and cross-entropy in ten lines."""
    outcome, curve = train(get("scratch").method)
    torch.manual_seed(0)
    sizes = experiment.sizes("target", data.vocabulary)
    model = architectures.get("gpt2").build(sizes).train()
    matrices, vectors = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * ((step + 1) / 2 if step < 2 else (12 - step) / 10)
        batch = data.train_batch(step, 0)
        nn.functional.cross_entropy(model(batch.inputs), batch.labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    batch = data.validation_batches()[0]
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.eval()(batch.inputs), batch.labels).item()
    assert outcome.val_loss == curve[-1]["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert curve[-1]["step"] == 12 and curve[-1]["tokens"] == 12 * 4 * 16


def test_flops_are_steps_times_the_closed_form(train: Train, data: TextData) -> None:
    outcome, curve = train(get("scratch").method)
    block = (4 * 32 * 32 + 2 * 32 * 128) * 64 + 2 * 4 * 16 * 16 * 32
    step = 3 * 2 * (2 * block + 64 * 32 * data.vocabulary)
    assert outcome.costs.flops["train"] == 12 * step == curve[-1]["flops"]
    assert [row["flops"] for row in curve] == [row["step"] * step for row in curve]
    assert outcome.costs.flops["operator"] == outcome.costs.flops["source"] == 0
    seconds = [row["seconds"] for row in curve]
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]


def test_evaluations_are_at_most_one_percent_of_the_budget_apart(train: Train) -> None:
    _, curve = train(get("scratch").method, training={"steps": 201}, target={"layers": 1})
    steps = [row["step"] for row in curve]
    assert steps[0] == 0 and steps[-1] == 201
    assert max(b - a for a, b in itertools.pairwise(steps)) == 2


class Planned(Method):
    """Phases from outside, for what follows."""

    paper = "none"
    uses_source = False
    make: Any = None

    def phases(self, task: Task) -> Phases:
        yield from self.make(task)


def test_a_budget_is_shared_by_the_scored_phases_and_ends_the_run(train: Train) -> None:
    seen = []

    def phases(task: Task) -> Phases:
        model = task.build()
        for length in ({"share": 0.25}, {"steps": 5}, {}, {"steps": 100}):
            trained = yield Phase(model=model, **length)
            seen.append(trained.steps)

    outcome, _ = train(Planned(make=phases))
    assert seen == [3, 5, 4]
    assert outcome.steps == 12


def test_the_runs_schedule_goes_on_across_phases_but_not_through_unscored_ones(train: Train) -> None:
    def phases(task: Task) -> Phases:
        model = task.build()
        yield Phase(model=model, steps=4, account="operator", name="aside")
        yield Phase(model=model, steps=4)
        yield Phase(model=model, schedule=lambda step, steps: 0.5)

    outcome, curve = train(Planned(make=phases))
    lr = [row["lr"] for row in curve]  # 5 evaluations aside, 5, and 9: each phase's start, then every step
    assert lr[:5] == [1e-3] * 5
    assert lr[5:10] == pytest.approx([0.5e-3, 0.5e-3, 1e-3, 1e-3, 0.9e-3])
    assert lr[10:] == [0.5e-3] * 9
    assert outcome.costs.flops["operator"] == 4 * outcome.phases[0].flops_per_step["operator"] > 0
    assert [row["scored"] for row in curve if row["phase"] == "aside"] == [False] * 5


def test_two_phases_with_one_optimizer_are_one_phase_bit_by_bit(train: Train) -> None:
    def phases(task: Task) -> Phases:
        trained = yield Phase(model=task.build(), steps=5)
        yield Phase(model=trained.model, optimizer=trained.optimizer)

    parted, whole = train(Planned(make=phases))[1], train(get("scratch").method)[1]
    assert losses(parted[:6] + parted[7:]) == losses(whole)
    assert [row["lr"] for row in parted[:6] + parted[7:]] == [row["lr"] for row in whole]


def test_a_handed_over_optimizer_keeps_its_state_and_its_groups_peaks(train: Train) -> None:
    """An optimizer state to start with, and a learning rate of its own for some parameters."""
    moments = []

    def phases(task: Task) -> Phases:
        model = task.build()
        trained = yield Phase(model=model, steps=6)
        optimizer = task.optimizer(model)
        optimizer.load_state_dict(trained.optimizer.state_dict())
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 1e-3, 0.0
        before = {name: p.clone() for name, p in model.named_parameters()}
        steps_before = optimizer.state[next(model.parameters())]["step"].item()
        yield Phase(model=model, optimizer=optimizer)
        moments.append((steps_before, optimizer.state[next(model.parameters())]["step"].item()))
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name, p in model.named_parameters() if p.dim() > 1}

    train(Planned(make=phases))
    assert moments == [(6, 12)]


def test_an_optimizer_state_that_is_all_zero_is_new(train: Train) -> None:
    """What the record of each phase says of its optimizer: made anew, made with zero moments, and trained before."""

    def phases(task: Task) -> Phases:
        model = task.build()
        trained = yield Phase(model=model, steps=4)
        zero = task.optimizer(model)
        for group in zero.param_groups:
            for p in group["params"]:
                zero.state[p] = {"step": torch.tensor(4.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        yield Phase(model=model, steps=4, optimizer=zero)
        yield Phase(model=model, optimizer=trained.optimizer)

    outcome, _ = train(Planned(make=phases))
    assert [phase.optimizer for phase in outcome.phases] == ["new", "new", "kept"]


def test_new_weights_can_be_warmed_up_alone(train: Train) -> None:
    """A param group with a schedule of its own: still while the others train on the run's schedule."""

    def phases(task: Task) -> Phases:
        model = task.build()
        optimizer = task.optimizer(model)
        new = list(model.transformer.h[1].parameters())
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if all(p is not q for q in new)]
        optimizer.add_param_group({"params": new})
        before = [p.clone() for p in new]
        schedules = (None, None, lambda step, steps: 0.0 if step < 6 else 1.0)
        yield Phase(model=model, steps=6, optimizer=optimizer, group_schedules=schedules)
        assert all(torch.equal(a, b) for a, b in zip(before, new, strict=True))

    train(Planned(make=phases))


def test_bf16_trains_close_to_float32(train: Train) -> None:
    exact, rounded = (losses(train(get("scratch").method, training={"precision": p})[1]) for p in ("float32", "bf16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=5e-3)


def test_frozen_parameters_do_not_move_by_a_bit(train: Train) -> None:
    def phases(task: Task) -> Phases:
        model = task.build()
        model.transformer.h[0].requires_grad_(False)
        before = [p.clone() for p in model.transformer.h[0].parameters()]
        yield Phase(model=model)
        assert all(torch.equal(a, b) for a, b in zip(before, model.transformer.h[0].parameters(), strict=True))

    train(Planned(make=phases))


def test_an_optimizer_that_misses_a_parameter_is_refused(train: Train) -> None:
    def phases(task: Task) -> Phases:
        model = task.build()
        yield Phase(model=model, optimizer=torch.optim.AdamW(model.transformer.h.parameters()))

    with pytest.raises(MethodError, match=r"transformer\.wte\.weight"):
        train(Planned(make=phases))


def test_work_that_changes_within_a_phase_is_refused(train: Train) -> None:
    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        return task_loss(model, batch) if step < 5 else task_loss(model, batch) + task_loss(model, batch)

    with pytest.raises(TrainingFailed, match="work per step changed"):
        train(Planned(make=lambda task: one_phase(Phase(model=task.build(), loss=loss))))


def one_phase(phase: Phase) -> Phases:
    yield phase


def test_a_run_that_does_not_end_with_the_targets_sizes_is_refused(train: Train) -> None:
    with pytest.raises(MethodError, match="does not have the target's sizes: it has layers = 1, the target 2"):
        train(Planned(make=lambda task: one_phase(Phase(model=task.build(replace(task.target_config, layers=1))))))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(train: Train, value: float) -> None:
    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        return task_loss(model, batch) * (value if step == 7 else 1)

    with pytest.raises(TrainingFailed, match=f"step 8: the loss is {value}"):
        train(Planned(make=lambda task: one_phase(Phase(model=task.build(), loss=loss))))


def test_a_teacher_is_charged_apart(train: Train) -> None:
    def phases(task: Task) -> Phases:
        teacher, student = task.build(), task.build()

        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            with task.teacher():
                wanted = teacher(batch.inputs)
            return task_loss(model, batch) + 0.1 * (model(batch.inputs) - wanted).square().mean()

        yield Phase(model=student, loss=loss)

    costs = train(Planned(make=phases))[0].costs
    assert costs.flops["train"] == 6 * costs.flops["teacher"] > 0  # two forwards and their backwards, against one forward
    assert 0 < costs.seconds["teacher"] < costs.seconds["train"]


def test_a_run_stops_at_the_first_scored_evaluation_at_the_target(train: Train) -> None:
    full = losses(train(get("scratch").method)[1])
    outcome, curve = train(get("scratch").method, at_loss=full[6])
    assert losses(curve) == full[:7] and outcome.steps == 6


def test_a_run_that_was_interrupted_where_it_reached_the_target_has_reached_it(train: Train, tmp_path: Path) -> None:
    """The last checkpoint says so: not a step more is taken."""
    stop_at = losses(train(get("scratch").method)[1])[6]
    kept, calls = Checkpoints(tmp_path), iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train(get("scratch").method, at_loss=stop_at, checkpoints=kept, interrupted=lambda: next(calls) == 5)
    outcome, _ = train(get("scratch").method, at_loss=stop_at, checkpoints=kept)
    assert outcome.steps == 6


def test_the_seconds_of_a_run_are_all_in_an_account(train: Train) -> None:
    seconds = train(get("scratch").method)[0].costs.seconds
    assert all(value >= 0 for value in seconds.values())
    assert seconds["train"] > 0 and seconds["evaluation"] > 0 and seconds["overhead"] > 0


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("linear", {0: 0.25, 3: 1, 4: 1, 52: 0.5, 99: 1 / 96}),
        ("cosine", {0: 0.25, 4: 1, 52: 0.5, 28: 0.5 * (1 + math.cos(math.pi / 4))}),
        ("wsd", {0: 0.25, 4: 1, 79: 1, 80: 1, 90: 0.5, 99: 0.05}),
    ],
)
def test_schedules_have_their_closed_forms(name: Any, shares: dict[int, float]) -> None:
    of = schedule.of(Training(batch=1, steps=100, lr=1, warmup=4, schedule=name))
    for step, share in shares.items():
        assert of(step, 100) == pytest.approx(share), step
    assert constant(3, 10) == 1


@pytest.mark.parametrize("name", ["ki", "ligo"])
def test_micro_batches_add_up_to_the_batch(train: Train, name: str) -> None:
    """Gradients are added up: the same losses to float tolerance, and the same FLOPs but for what a method builds each time."""
    method = get(name, {"operator_steps": 3} if name == "ligo" else {}).method
    whole, expected = train(method, dropout=0.0, training={"steps": 5})
    parted, curve = train(method, dropout=0.0, training={"steps": 5}, machine=Machine(micro_batch=2))
    assert losses(curve) == pytest.approx(losses(expected), rel=1e-5)
    assert parted.costs.flops["train"] == whole.costs.flops["train"]
    assert parted.costs.flops["teacher"] == whole.costs.flops["teacher"]


def test_only_steps_on_the_clock_wait_for_data(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch takes a second. The one of the step that is counted amid the phase is there already when the step begins."""
    fetch, one_step, fetched, in_steps = Feed.batch, Trainer._step, [], []

    def slow(self: Feed, step: int) -> Batch:
        new, waited = step != self._step, self.waited
        batch = fetch(self, step)
        self.waited = waited + new
        fetched.append(new)
        return batch

    def watched(self: Trainer, *arguments: Any, **options: Any) -> None:
        before = sum(fetched)
        one_step(self, *arguments, **options)
        in_steps.append(sum(fetched) - before)

    monkeypatch.setattr(Feed, "batch", slow)
    monkeypatch.setattr(Trainer, "_step", watched)
    outcome, _ = train(get("scratch").method)
    assert len(in_steps) == 12 and sum(fetched) == 12
    assert outcome.waited == sum(in_steps) < sum(fetched)


def test_a_compiled_run_is_the_same_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled outside of the clock; the FLOPs are those of the plain model, the losses the same to float tolerance."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the default generates code for a minute
    method, few = get("ligo", {"operator_steps": 2}).method, {"steps": 3}
    plain, expected = train(method, dropout=0.0, training=few, target={"layers": 1})
    compiled, curve = train(method, dropout=0.0, training=few, target={"layers": 1}, machine=Machine(compile="on"))
    assert losses(curve) == pytest.approx(losses(expected), rel=1e-4)
    assert compiled.costs.flops["train"] == plain.costs.flops["train"]
    assert compiled.costs.seconds["compilation"] > 0 == plain.costs.seconds["compilation"]


def test_the_compiler_finds_the_recursion_limit_that_it_wants() -> None:
    """Else it would raise it in mid-phase, for which a method would be blamed. Only a GPU's runs are compiled."""
    before = sys.getrecursionlimit()
    try:
        torch.compile(lambda x: x.mT)(torch.ones(2, 3))  # nothing to generate code for
        assert sys.getrecursionlimit() == before
    finally:
        sys.setrecursionlimit(before)


def test_every_phase_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many came before it: Dynamo limits the graphs of one `forward`, and runs it uncompiled beyond."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def loss(model: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        assert type(model) is nn.Sequential and len(model) == 1, "the module itself, not a wrapper"
        value: torch.Tensor = model(batch.inputs).sum()
        return value

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    training = Training(batch=1, steps=1, lr=1.0, precision="float32")
    for width in range(1, 11):
        model = nn.Sequential(nn.Linear(width, 1))
        phase = Phase(model=model, loss=loss)
        live = Replica(model, torch.optim.AdamW(model.parameters()))
        step = Step.of(phase, live, training, Machine(compile="on"), CPU, steps=1)
        step.backward(Batch(torch.ones(1, width), None, torch.ones(1)), 0)
        assert len(graphs) == width
