"""State that is carried along grows as gradients do, or stays with the old units; and it is known what cannot carry it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from growbench.growth.carried import Carrier, Lost
from growbench.growth.maps import copying, tiling
from growbench.growth.weights import Axis, Extend, Maps, Pad, Select, Weight, Weights, apart, deepen, widen
from growbench.method import Task, task_loss
from growbench.tools import miniatures
from growbench.tools.miniatures import CPU, VOCABULARY, Cell, RandomData

UNGROUPED = [cell for cell in miniatures.cells() if not cell.grouped]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def task_at(cell: Cell, factor: int) -> tuple[Task, nn.Module, RandomData]:
    """Growth of all widths by a factor, from a small model with random weights; data for both."""
    small = {"target.layers": 2, "source.width": 16, "target.width": 16 * factor}
    experiment = cell.at(small).experiment
    torch.manual_seed(0)
    task = Task.of(experiment, "target", VOCABULARY, CPU)
    model = task.build(task.source_config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return task, model, RandomData(experiment.data, task.architecture.objective, 2)


def gradients(model: nn.Module, data: RandomData) -> dict[str, Tensor]:
    task_loss(model, data.train_batch(0, 0)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def with_gradients(rule: Any, model: nn.Module, found: dict[str, Tensor]) -> Carrier:
    """A carrier that knows the gradients of a model, and their squares, as its state."""
    carrier = Carrier(rule)
    for name, parameter in model.named_parameters():
        carrier.set(parameter, {"exp_avg": found[name], "exp_avg_sq": found[name].square()})
    return carrier


@pytest.mark.parametrize("cell", UNGROUPED, ids=str)
@pytest.mark.parametrize("at_random", [False, True])
def test_a_grown_gradient_is_the_gradient_of_the_grown_model(cell: Cell, at_random: bool) -> None:
    """The rule is proved on all parameters at once: at factor 3, for whatever the architecture is made of."""
    task, small, data = task_at(cell, 3)
    sizes = task.source_config, task.target_config
    maps = copying(*sizes, task.rng) if at_random else tiling(*sizes)
    carrier = with_gradients("grown", small, gradients(small, data))
    with carrier.carrying():
        large = task.model_from(widen(task.read(small), maps))
    rounding = 1e-7 if cell.architecture == "modernbert" else 1e-10  # it rotates positions in float32
    for name, true in gradients(large, data).items():
        state: Any = carrier.of(large.get_parameter(name))
        scale = true.norm() + 1e-6  # a bias of keys has no gradient
        assert (state["exp_avg"] - true).norm() / scale < rounding, name
        assert (state["exp_avg_sq"] - true.square()).norm() / scale.square() < rounding, name


def test_zeros_have_gradients_where_their_input_is_not_zero() -> None:
    """FFN neurons that are padded by zeros have none; the zero blocks of a block diagonal have those of the others."""
    task, small, data = task_at(Cell("gpt2"), 2)
    sizes, found = (task.source_config, task.target_config), gradients(small, data)

    def padded(weights: Weights) -> Weights:
        return widen(weights, {**tiling(*sizes), Axis.FFN: Pad(128)})

    def block_diagonal(weights: Weights) -> Weights:
        return apart(widen(weights, tiling(*sizes)), tiling(*sizes))

    for grow in (padded, block_diagonal):
        carrier = with_gradients("grown", small, found)
        with carrier.carrying():
            large = task.model_from(grow(task.read(small)))
        for name, true in gradients(large, data).items():
            state: Any = carrier.of(large.get_parameter(name))
            assert (state["exp_avg"] - true).norm() / (true.norm() + 1e-6) < 1e-10, name


def weights_of(value: Tensor) -> Weights:
    """One weight (LAYER, FFN, WIDTH)."""
    return {"it": Weight(value, (Axis.LAYER, Axis.FFN, Axis.WIDTH), "ffn_up", True)}


def carried(rule: Any, old: Tensor, grow: Callable[[Weights], Weights]) -> Any:
    """The state of a grown weight, whose old state is `old`."""
    carrier, value = Carrier(rule), torch.randn_like(old)
    carrier.set(value, {"exp_avg": old, "exp_avg_sq": old.square()})
    with carrier.carrying():
        grown = grow(weights_of(value))["it"].value
    found = carrier.of(grown)
    if isinstance(found, dict):
        assert torch.allclose(found["exp_avg_sq"], found["exp_avg"].square())
        return found["exp_avg"]
    return found


def test_old_units_keep_their_state_and_new_ones_start_at_zero() -> None:
    old = torch.arange(1.0, 9).reshape(2, 2, 2)
    maps: Maps = {Axis.FFN: Select(torch.tensor([1, 0, 1])), Axis.WIDTH: Pad(3)}
    wide = carried("kept", old, lambda weights: widen(weights, maps))
    expected = torch.tensor([[[3.0, 4, 0], [1, 2, 0], [0, 0, 0]], [[7, 8, 0], [5, 6, 0], [0, 0, 0]]])
    assert torch.allclose(wide, expected)
    deep = carried("kept", old, lambda weights: deepen(weights, [0, 0, 1]))
    assert torch.allclose(deep, torch.stack([old[0], torch.zeros(2, 2), old[1]]))
    assert torch.allclose(carried("grown", old, lambda weights: deepen(weights, [0, 0, 1])), old[[0, 0, 1]])


def changed(change: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    return lambda weights: {name: replace(weight, value=change(weight.value)) for name, weight in weights.items()}


def written(value: Tensor) -> Tensor:
    """The old layers below new ones that are drawn at random."""
    fresh = torch.randn(3, 2, 2)
    fresh[:2] = value
    return fresh


def partly_doubled(value: Tensor) -> Tensor:
    whole = value.clone()
    whole[0].mul_(2)
    return whole


MOVED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "a copy": (lambda value: value.detach().clone(), lambda old: old),
    "what is cut and joined": (
        lambda value: torch.cat([value[:1], torch.zeros_like(value[1:])]),
        lambda old: torch.stack([old[0], torch.zeros(2, 2)]),
    ),
    "what is written into fresh weights": (written, lambda old: torch.cat([old, torch.zeros(1, 2, 2)])),
    "other units": (
        lambda value: value.index_copy(1, torch.tensor([0]), value.flip(0)[:, 1:]),
        lambda old: torch.stack([old[:, 1].flip(0), old[:, 1]], 1),
    ),
    "fused and split": (
        lambda value: torch.cat(value.chunk(2, 1)[::-1], 1).mT,
        lambda old: torch.stack([old[:, 1], old[:, 0]], 1).mT,
    ),
    "noise": (lambda value: value + torch.randn(2, 2, 2) * (0.1 * value.std()), lambda old: old),
    "noise by layer": (
        lambda value: value + torch.randn(2, 2, 2) * value.square().mean((-2, -1), keepdim=True).sqrt(),
        lambda old: old,
    ),
}


@pytest.mark.parametrize("what", MOVED)
def test_state_follows_where_entries_go(what: str) -> None:
    change, expected = MOVED[what]
    old = torch.arange(1.0, 9).reshape(2, 2, 2)
    assert torch.allclose(carried("grown", old, changed(change)), expected(old))


LOST: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a factor": (changed(lambda value: value * 0.5), "torch's mul"),
    "a sum of layers": (changed(lambda value: value[:1] + value[1:]), "torch's add"),
    "a statistic alone": (changed(lambda value: value.mean(0, keepdim=True)), "torch's mean"),
    "in place": (changed(lambda value: value.clone().mul_(2)), "torch's mul_"),
    "written": (changed(lambda value: written(value * 2)), "torch's mul"),
    "a part in place": (changed(partly_doubled), "torch's mul_ of a part"),
    "mixed layers": (lambda weights: deepen(weights, torch.ones(3, 2) / 2), "torch's tensordot"),
    "a learned map": (lambda weights: widen(weights, {Axis.FFN: Extend(torch.ones(1, 2))}), "a map without a rule"),
    "then moved": (changed(lambda value: (value * 2).flip(0).contiguous()), "torch's mul"),
}


@pytest.mark.parametrize("what", LOST)
def test_what_has_no_rule_is_remembered(what: str) -> None:
    grow, function = LOST[what]
    found = carried("grown", torch.ones(2, 2, 2), grow)
    assert isinstance(found, Lost) and found.function == function


def test_nothing_is_followed_outside() -> None:
    carrier, value = Carrier("grown"), torch.ones(2, 2, 2)
    carrier.set(value, {"exp_avg": value})
    (weight,) = deepen(weights_of(value), [0, 0, 1]).values()
    assert carrier.of(weight.value) is None
