"""Entries of parameters with a learning rate of their own: exact, and refused where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

from growbench import architectures
from growbench.config.schema import ModelConfig
from growbench.errors import UsageError
from growbench.method import EntrySchedule, Phase
from growbench.method.entries import new_entries
from growbench.method.interface import MethodError
from growbench.method.optimizer import CombinedOptimizer
from growbench.training.entries import LINEAR, ScaledEntries, check
from growbench.training.replicas import Replica

FACTORS = (0.25, 1.0, 3.0)  # of the entries' rate, by step
WHERE = torch.tensor([[True, False, False], [True, True, False]])
SETTINGS: dict[type[optim.Optimizer], dict[str, Any]] = {
    optim.SGD: {"momentum": 0.9, "nesterov": True},
    optim.RMSprop: {"momentum": 0.9, "centered": True},
    optim.AdamW: {"amsgrad": True},
    optim.NAdam: {"decoupled_weight_decay": True},
}


def whole(parameter: nn.Parameter, value: torch.Tensor) -> tuple[nn.Parameter, torch.Tensor]:
    return parameter, value


def walked(kind: type[optim.Optimizer], factors: Callable[[int], float], where: torch.Tensor | None) -> torch.Tensor:
    """A matrix after three steps on given gradients, with the rate times `factors`, of the entries `where` or (None) of all."""
    matrix: Any = nn.ParameterDict({"w": nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3))})
    optimizer = kind(matrix.values(), lr=0.01, weight_decay=0.1, **SETTINGS.get(kind, {}))  # type: ignore[call-arg]
    phase = Phase(model=matrix, entry_schedules=[] if where is None else [EntrySchedule({"w": where}, lambda step, steps: 1.0)])
    check(phase, matrix, optimizer)
    entries = ScaledEntries.of(phase, whole)
    for step in range(3):
        matrix["w"].grad = torch.sin(torch.arange(6, dtype=torch.float64).view(2, 3) + 5 * step)
        entries.factors = [factors(step)]
        optimizer.param_groups[0]["lr"] = 0.01 * (factors(step) if where is None else 1.0)
        with entries.scaled():
            optimizer.step()
    return matrix["w"].detach()


@pytest.mark.parametrize("kind", LINEAR)
def test_entries_go_as_with_a_rate_of_that_size_and_others_as_ever(kind: type[optim.Optimizer]) -> None:
    scaled, own = walked(kind, FACTORS.__getitem__, WHERE), walked(kind, FACTORS.__getitem__, None)
    plain = walked(kind, lambda step: 1.0, None)
    torch.testing.assert_close(scaled[WHERE], own[WHERE], rtol=0, atol=1e-15)
    assert torch.equal(scaled[~WHERE], plain[~WHERE])
    assert (scaled[WHERE] - plain[WHERE]).abs().min() > 1e-6


def test_factors_of_shared_entries_multiply_and_zero_freezes() -> None:
    model: Any = nn.ParameterDict({"w": nn.Parameter(torch.zeros(3))})
    masks = [torch.tensor(values) for values in ([True, True, False], [False, True, False])]
    phase = Phase(model=model, entry_schedules=[EntrySchedule({"w": mask}, lambda step, steps: 1.0) for mask in masks])
    live = Replica(model, optim.SGD(model.values(), lr=1.0))
    live.entries = ScaledEntries.of(phase, live.shard_of)
    for factors, expected in (([2.0, 0.25], [-2.0, -0.5, -1.0]), ([1.0, 0.0], [-3.0, -0.5, -2.0])):
        model["w"].grad = torch.ones(3)
        live.entries.factors = factors
        live.update(largest_norm=100.0)
        assert model["w"].tolist() == expected


def test_new_entries_of_a_stored_transposed_and_fused_matrix() -> None:
    """GPT-2's query, key and value are one matrix (in, 3 x out): its new entries are where the old model's do not lie."""
    gpt2 = architectures.get("gpt2")
    small, large = (
        ModelConfig(layers, width, heads, vocabulary=7, positions=4) for layers, width, heads in ((1, 4, 2), (2, 6, 3))
    )
    found = new_entries(gpt2, gpt2.build(large), small)
    old = torch.zeros(6, 18, dtype=torch.bool)
    for block in range(3):
        old[:4, 6 * block : 6 * block + 4] = True
    assert torch.equal(found["transformer.h.0.attn.c_attn.weight"], ~old)
    assert found["transformer.h.1.attn.c_attn.weight"].all()
    assert torch.equal(found["transformer.wte.weight"], torch.arange(6).expand(7, 6) >= 4)
    deeper = new_entries(gpt2, gpt2.build(ModelConfig(2, 4, 2, vocabulary=7, positions=4)), small)
    assert {name.split(".")[2] for name in deeper} == {"1"}


def test_heads_that_cannot_come_first_are_refused() -> None:
    gpt2 = architectures.get("gpt2")
    small, large = (ModelConfig(1, width, 2, vocabulary=7, positions=4) for width in (4, 8))
    with pytest.raises(UsageError, match="head size grew from 2 to 4"):
        new_entries(gpt2, gpt2.build(large), small)


ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"v": torch.zeros(2, dtype=torch.bool)}, "'v' is no parameter of the model that is trained"),
    "shape": ({"w": torch.zeros(3, dtype=torch.bool)}, r"w: shape \(3,\): must be the parameter's, \(2,\)"),
    "type": ({"w": torch.zeros(2)}, "w: torch.float32: must be a tensor of bool"),
    "no tensor": ({"w": True}, "w: bool: must be a tensor of bool"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_wrong_entries_are_refused(case: str) -> None:
    where, message = ENTRIES[case]
    model: Any = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2))})
    phase = Phase(model=model, entry_schedules=[EntrySchedule(where, lambda step, steps: 1.0)])
    with pytest.raises(MethodError, match=message):
        check(phase, model, optim.SGD(model.values(), lr=1.0))


FIELDS: dict[str, tuple[Any, str]] = {
    "no list": (EntrySchedule({}, lambda step, steps: 1.0), "entry_schedules is a EntrySchedule: must be a list"),
    "no schedule": ([{"w": True}], r"entry_schedules holds a dict: must be EntrySchedule\(where, schedule\)"),
    "no names": ([EntrySchedule(torch.ones(2), lambda step, steps: 1.0)], "where is a Tensor: must be a dictionary"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", FIELDS)
def test_what_is_no_list_of_entry_schedules_is_refused_by_the_phase(case: str) -> None:
    given, message = FIELDS[case]
    with pytest.raises(MethodError, match=message):
        Phase(model=nn.Linear(1, 1), entry_schedules=given)


class Own(optim.SGD):
    """Its step may be any."""


@pytest.mark.parametrize("kind", [optim.Adafactor, optim.ASGD, optim.Rprop, Own])
def test_optimizers_whose_step_is_not_proportional_to_the_rate_are_refused(kind: type[optim.Optimizer]) -> None:
    model: Any = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2)), "v": nn.Parameter(torch.zeros(2))})
    phase = Phase(model=model, entry_schedules=[EntrySchedule({"w": torch.ones(2, dtype=torch.bool)}, lambda step, steps: 1.0)])
    optimizer = CombinedOptimizer(optim.SGD([model["w"]], lr=1.0), kind([model["v"]]))  # type: ignore[call-arg]
    with pytest.raises(MethodError, match=f"steps of {kind.__name__} are not known to be proportional"):
        check(phase, model, optimizer)
