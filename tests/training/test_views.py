"""Views: a model computes with what is shown in place of its own, in steps and evaluations alike; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from growbench import architectures
from growbench.config.schema import Machine, ModelConfig, Training
from growbench.console import Progress
from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.data.shapes import shape_batch
from growbench.method import Method, Phase, Phases, Task, task_loss
from growbench.method.interface import MethodError
from growbench.tools.miniatures import CPU, VOCABULARY
from growbench.training.replicas import Replica
from growbench.training.step import Step
from growbench.training.trainer import Output, Trainer, Work
from growbench.training.views import with_view
from tests.methods.test_methods import data_of, experiment_of
from tests.training.optimizers import BRANCH, TIED, Faded, fading


def test_steps_and_evaluations_use_what_the_view_shows() -> None:
    """Against a plain loop over a model whose own weights are scaled, with gradients by the chain rule."""
    sizes = ModelConfig(layers=2, width=16, heads=2)
    experiment = experiment_of("gpt2", sizes, sizes, steps=6)
    data, training, curve = data_of(experiment), experiment.train, []
    torch.manual_seed(0)
    task = Task.of(experiment, "target", VOCABULARY, CPU)
    trainer = Trainer(Work(task, data, 0, Costs(CPU)), Output(curve, Progress("test", 1, None, shown=False)))
    outcome = trainer.run(Faded())

    torch.manual_seed(0)
    model = task.build()
    scaled = [model.get_parameter(name) for name in (f"{BRANCH}.weight", f"{BRANCH}.bias")]
    optimizer, expected = task.optimizer(model), []
    for step in range(training.steps + 1):
        c = min(step / 3, 1.0)
        factors = [(model.get_parameter(TIED), (1 + c) / 2), *((each, c) for each in scaled)]
        own = [parameter.detach().clone() for parameter, _ in factors]
        for parameter, factor in factors:
            parameter.data.mul_(factor)
        with torch.no_grad():
            expected.append(task_loss(model.eval(), data.validation_batches()[0]).item())
        task_loss(model.train(), data.train_batch(step, 0)).backward()
        for (parameter, factor), before in zip(factors, own, strict=True):
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
            parameter.data.copy_(before)
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        for group in optimizer.param_groups:
            group["lr"] = training.lr * task.schedule(min(step, 5), training.steps)
        optimizer.step()
        optimizer.zero_grad()
    rows = {row["step"]: row["val_loss"] for row in curve}
    assert [rows[step] for step in range(7)] == pytest.approx(expected, rel=1e-5)
    assert {row["step"] for row in curve if not row["scored"]} == {0, 1, 2}, "only what the model computes by itself counts"
    assert outcome.target is outcome.model
    assert not any(module._forward_hooks for module in outcome.model.modules())  # type: ignore[union-attr]


def test_a_model_that_is_seen_through_a_view_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: call)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    model = nn.Linear(1, 1)
    live, training = Replica(model, torch.optim.SGD(model.parameters())), Training(batch=1, steps=1, lr=1.0, precision="float32")
    for view, compiled in ((None, True), (fading, False)):
        step = Step.of(Phase(model=model, view=view), live, training, Machine(compile="on"), CPU, steps=5)
        assert step.compiled is compiled


WRONG: dict[str, tuple[Any, str]] = {
    "no function": ({}, "view is a dict: must be a function"),
    "no dictionary": (lambda model, step, steps: model.weight, "view returned a Parameter: must be a dictionary"),
    "another parameter": (lambda model, step, steps: {"v": model.weight}, "v: the model has no parameter of this name"),
    "another module": (lambda model, step, steps: {"v": max}, "v: the model has no module of this name"),
    "another shape": (lambda model, step, steps: {"weight": model.weight.mT}, r"weight: shape \(2, 3\): must be the parameter's"),
    "a number": (lambda model, step, steps: {"weight": 1.0}, "weight: a float: must be a tensor, or a function"),
    "another end": (
        lambda model, step, steps: {"weight": model.weight * step / (steps + 1)},
        "after 4 of 4 steps: view: weight: must equal the model's own parameter at the end",
    ),
    "a function at the end": (
        lambda model, step, steps: {"": max},
        "after 4 of 4 steps: view: the model: must not be shown at the end",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_views_that_show_what_is_not_there_or_do_not_end_as_the_model_are_refused(case: str) -> None:
    view, message = WRONG[case]
    model = nn.Linear(2, 3)
    with pytest.raises(MethodError, match=message):
        with_view(Phase(model=model, view=view), model, 4)


MID_PHASE: dict[str, tuple[Any, str]] = {
    "another parameter": ({"v": torch.zeros(2)}, "view: v: the model has no parameter of this name"),
    "another shape": ({"weight": torch.zeros(2)}, "view: weight: shape"),
    "nothing": (None, "view returned a NoneType: must be a dictionary"),
}


@pytest.mark.parametrize("case", MID_PHASE)
def test_what_a_view_shows_in_mid_phase_is_checked_too(case: str) -> None:
    """torch's functional_call would ignore an unknown name."""
    shown, message = MID_PHASE[case]
    model = nn.Linear(2, 3)
    phase = with_view(Phase(model=model, view=lambda model, step, steps: shown if step == 2 else {}), model, 4)
    batch = shape_batch(experiment_of("gpt2").data, architectures.get("gpt2").objective, 1, VOCABULARY, CPU)
    with pytest.raises(MethodError, match=message):
        phase.loss(model, batch, 2)


class Prepared(Method):
    """Its view multiplies matrices when it is asked first."""

    uses_source: ClassVar[bool] = False

    def phases(self, task: Task) -> Phases:
        def view(model: nn.Module, step: int, steps: int) -> Mapping[str, Any]:
            if step == steps:
                torch.ones(8, 8) @ torch.ones(8, 8)
            return {}

        yield Phase(model=task.build(), view=view)


def test_what_a_view_computes_before_the_first_step_is_charged_as_growth() -> None:
    experiment = experiment_of("gpt2", steps=2)
    costs = Costs(CPU)
    task = Task.of(experiment, "target", VOCABULARY, CPU)
    trainer = Trainer(Work(task, data_of(experiment), 0, costs), Output([], Progress("test", 1, None, shown=False)))
    outcome = trainer.run(Prepared())
    assert costs.flops[Account.GROWTH] == outcome.phases[0].growth_flops == 2 * 8**3


def test_a_view_ends_where_its_factor_is_one() -> None:
    def view(model: Any, step: int, steps: int) -> dict[str, Tensor]:
        return {"weight": model.weight * (step / steps)}

    model = nn.Linear(2, 3)
    phase = with_view(Phase(model=model, view=view, loss=lambda model, batch, step: model.weight.sum()), model, 4)
    batch = shape_batch(experiment_of("gpt2").data, architectures.get("gpt2").objective, 1, VOCABULARY, CPU)
    assert phase.loss(model, batch, 3).item() == pytest.approx(0.75 * model.weight.sum().item())
