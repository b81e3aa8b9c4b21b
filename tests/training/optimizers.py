"""Optimizers and views of a method's own: torch's optimizers, some that hold more than tensors or need whole matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn, optim

from growbench.method import EntrySchedule, Method, Phase, Phases, Task, copying, deepen, stack, task_loss, widen
from growbench.method.interface import LossFn
from growbench.method.optimizer import CombinedOptimizer


def with_gradient(group: Mapping[str, Any]) -> list[nn.Parameter]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


class Eventful(optim.Optimizer):
    """Its steps depend on Python numbers in its state, on settings that it changes, and on attributes of its own."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "decay": 1.0})
        self.calls = 0
        self.norms: dict[str, list[float]] = {"all": []}
        self.average = torch.zeros(3)
        self.also_average = [self.average]
        self.first = self.param_groups[0]["params"][0]
        self.rule = torch.atan

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.calls += 1
        self.norms["all"] = [*self.norms["all"][-2:], self.first.grad.norm().item()]
        self.average.mul_(0.9).add_(sum(self.norms["all"]))
        for group in self.param_groups:
            group["decay"] *= 0.97
            for parameter in with_gradient(group):
                state = self.state[parameter]
                state["seen"] = state.get("seen", 0) + 1
                state["window"] = (*state.get("window", ())[-1:], parameter.grad.mean().item())
                state["last"] = {"gradient": parameter.grad.clone(), "before": state.get("last") and state["last"]["gradient"]}
                size = group["lr"] * group["decay"] * (1 + state["seen"] / self.calls + self.also_average[0].sum().item())
                before = 0.0 if state["last"]["before"] is None else state["last"]["before"]
                parameter -= size * (self.rule(parameter.grad + before) + sum(state["window"]))


class Lookahead(optim.Optimizer):
    """Wraps another optimizer, whose groups and state it shares, and goes half the way of every third step."""

    def __init__(self, inner: optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups, self.state, self.calls = inner, inner.param_groups, inner.state, 0
        self.slow = [parameter.detach().clone() for group in inner.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.calls += 1
        if self.calls % 3 == 0:
            fast = [parameter for group in self.param_groups for parameter in group["params"]]
            for slow, parameter in zip(self.slow, fast, strict=True):
                parameter.copy_(slow.lerp_(parameter, 0.5))


class Orthogonal(optim.Optimizer):
    """Momentum of matrices is made orthogonal as in Muon, in full precision; other parameters follow the gradient's norm."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in with_gradient(group):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.view(-1).mul_(0.9).add_(parameter.grad.flatten())
                update = momentum / (momentum.norm() + 1e-7)
                if update.dim() == 2:
                    for _ in range(3):
                        update = 1.5 * update - 0.5 * update @ update.T @ update
                parameter.view(-1).sub_(update.flatten(), alpha=group["lr"])


def _combined(*parameters: nn.Parameter) -> CombinedOptimizer:
    matrices, rest = ([p for p in parameters if (p.dim() == 2) is square] for square in (True, False))
    return CombinedOptimizer(optim.AdamW(rest, lr=0.001), optim.Muon(matrices, lr=0.01))


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda model: optim.SGD(model.parameters(), lr=0.1),
    "SGD with momentum": lambda model: optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "Adagrad": lambda model: optim.Adagrad(model.parameters(), lr=0.01),
    "RMSprop": lambda model: optim.RMSprop(model.parameters(), lr=0.001, momentum=0.9, centered=True),
    "Adafactor": lambda model: optim.Adafactor(model.parameters(), lr=0.01),
    "Adamax": lambda model: optim.Adamax(model.parameters(), lr=0.001),
    "ASGD": lambda model: optim.ASGD(model.parameters(), lr=0.1, t0=3),
    "AdamW": lambda model: optim.AdamW(model.parameters(), lr=0.001, amsgrad=True),
    "Muon": lambda model: optim.Muon([p for p in model.parameters() if p.requires_grad_(p.dim() == 2).requires_grad], lr=0.01),
    "CombinedOptimizer": lambda model: _combined(*model.parameters()),
    "Eventful": lambda model: Eventful(model.parameters(), lr=0.001),
    "Orthogonal": lambda model: Orthogonal(model.parameters(), lr=0.02),
    "Lookahead": lambda model: Lookahead(optim.AdamW(model.parameters(), lr=0.001)),
}


class Rewarmed(Method):
    """The entries of new rows, columns and layers have a rate of their own."""

    optimizer: Literal["adamw", "muon"] = "adamw"

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        wide = widen(task.read(task.source), copying(small, large, task.rng))
        model = task.model_from(deepen(wide, stack(small.layers, large.layers)))
        new = EntrySchedule(task.new_entries(model), lambda step, steps: 3 * (step + 1) / steps)
        yield Phase(model=model, optimizer=task.optimizer(model, kind=self.optimizer), entry_schedules=[new])


class Optimized(Method):
    """Two phases with one optimizer of its own."""

    name: str = ""
    uses_source: ClassVar[bool] = False
    loss: ClassVar[LossFn] = staticmethod(task_loss)

    def phases(self, task: Task) -> Phases:
        model = task.build()
        trained = yield Phase(model=model, loss=self.loss, optimizer=OPTIMIZERS[self.name](model), share=0.5)
        yield Phase(model=model, loss=self.loss, optimizer=trained.optimizer)


TIED, BRANCH = "transformer.wte.weight", "transformer.h.0.mlp.c_proj"


def fading(model: nn.Module, step: int, steps: int) -> Mapping[str, Any]:
    """The tied embeddings count half at first, the first layer's FFN not at all; both count more with every step."""
    c = step / steps
    if c == 1:
        return {}
    return {TIED: model.get_parameter(TIED) * (1 + c) / 2, BRANCH: lambda module, inputs, output: c * output}


class Faded(Method):
    """Half of the training through a view, then the rest without."""

    uses_source: ClassVar[bool] = False

    def phases(self, task: Task) -> Phases:
        trained = yield Phase(model=task.build(), share=0.5, view=fading)
        yield Phase(model=trained.model, optimizer=trained.optimizer)
