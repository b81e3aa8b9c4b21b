"""The task's optimizers: what Muon steps on, several optimizers as one, and the FLOPs of Muon's products."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer
from transformers.pytorch_utils import Conv1D

from growbench import architectures
from growbench.costs.accounts import Account
from growbench.costs.flops import count
from growbench.errors import UsageError
from growbench.method import Task, Trained, deepen
from growbench.method.optimizer import CombinedOptimizer, members_of, newton_schulz_flops, step_flops
from growbench.planning.plan import META, plan
from growbench.registry import get
from growbench.tools.check import broken_promises, verdict
from growbench.tools.miniatures import VOCABULARY, Cell

WITH_MUON = Cell("gpt2").at({"train.optimizer": "muon"})


def task_of(architecture: str, optimizer: str = "muon") -> Task:
    return Task.of(Cell(architecture).at({"train.optimizer": optimizer}).experiment, "target", VOCABULARY, META)


def held_by(optimizer: Optimizer, model: nn.Module, kind: type[Optimizer]) -> set[str]:
    """The names of the parameters that a member of this kind steps on."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [group for member in members_of(optimizer) if type(member) is kind for group in member.param_groups]
    return {names[parameter] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("architecture", architectures.names())
def test_muon_steps_on_the_matrices_of_linear_maps_within_layers(architecture: str) -> None:
    """As the modules of the model tell, not the table: linear layers below a numbered one. AdamW has all the rest."""
    task = task_of(architecture)
    model = task.build()
    linear = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    expected = {f"{name}.weight" for name in linear if any(part.isdigit() for part in name.split("."))}
    optimizer = task.optimizer(model)
    assert held_by(optimizer, model, Muon) == expected
    assert held_by(optimizer, model, AdamW) == dict(model.named_parameters()).keys() - expected


def test_rate_and_weight_decay_are_adamws() -> None:
    task = task_of("gpt2")
    for optimizer, lr, decay in (
        (task.optimizer(task.build()), task.training.lr, task.training.weight_decay),
        (task.optimizer(task.build(), lr=0.5, weight_decay=0.25), 0.5, 0.25),
    ):
        assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(lr, decay), (lr, 0.0), (lr, decay)]
        assert optimizer.param_groups[-1]["adjust_lr_fn"] == "match_rms_adamw"


def test_a_method_chooses_its_optimizer_whatever_the_task_says() -> None:
    task = task_of("gpt2")
    model = task.build()
    assert type(task.optimizer(model, kind="adamw")) is AdamW
    assert type(task_of("gpt2", "adamw").optimizer(model, kind="muon")) is CombinedOptimizer
    with pytest.raises(UsageError, match="optimizer = 'sgd': must be 'adamw' or 'muon'"):
        task.optimizer(model, kind="sgd")  # type: ignore[arg-type]


def test_where_no_matrix_within_layers_is_trained_adamw_is_alone() -> None:
    task = task_of("gpt2")
    assert type(task.optimizer(task.train_only(task.build(), lambda name, layer: layer is None))) is AdamW
    assert type(task.optimizer(nn.Linear(2, 2, device=META))) is AdamW


def trained(make: Callable[[nn.Module], Sequence[Optimizer]], steps: int, model: nn.Module | None = None) -> list[torch.Tensor]:
    """The parameters after so many steps of these optimizers, on gradients that depend on the parameters."""
    model = model or seeded()
    optimizers = make(model)
    for _ in range(steps):
        (model[1](model[0](torch.ones(3, 4)).tanh()) ** 2).sum().backward()  # type: ignore[index]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return list(model.parameters())


def seeded() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))


def both(model: nn.Module) -> list[Optimizer]:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    rest = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return [AdamW(rest, lr=0.01), Muon(matrices, lr=0.01)]


def test_combined_optimizers_do_what_they_do_alone() -> None:
    alone, combined = trained(both, 4), trained(lambda model: [CombinedOptimizer(*both(model))], 4)
    assert all(map(torch.equal, alone, combined))


@pytest.mark.parametrize("how", ["state dict", "deep copy", "members' state"])
def test_a_combined_optimizer_goes_on_from_its_state(how: str) -> None:
    """Two steps and two more are four, whichever way the state goes to another model's optimizer."""

    def carried(model: nn.Module) -> Sequence[Optimizer]:
        if how == "members' state":
            members = both(model)
            trained(lambda model: members, 2, model)
            return [CombinedOptimizer(*members)]
        (optimizer,) = made = [CombinedOptimizer(*both(model))]
        trained(lambda model: made, 2, model)
        if how == "state dict":
            fresh = CombinedOptimizer(*both(model))
            fresh.load_state_dict(optimizer.state_dict())
            return [fresh]
        other_model, other = copy.deepcopy((model, optimizer))
        optimizer.state.clear()
        for parameter, copied in zip(model.parameters(), other_model.parameters(), strict=True):
            optimizer.state[parameter] = other.state[copied]
        assert [member.state for member in other.members] == [other.state] * 2
        assert other.members[1].param_groups[0] is other.param_groups[1]
        return made

    model = seeded()
    assert all(map(torch.equal, trained(carried, 2, model), trained(both, 4)))


def test_a_parameter_has_one_optimizer() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(ValueError, match="more than one parameter group"):
        CombinedOptimizer(SGD(parameters, lr=0.1), AdamW(parameters, lr=0.1))


@pytest.mark.parametrize(("rows", "columns", "flops"), [(3, 5, 1170), (5, 3, 1170), (4, 4, 1920)])
def test_muons_products_are_counted_exactly(rows: int, columns: int, flops: int) -> None:
    """Five times 2 m m n + 2 m m m + 2 m m n, for m <= n: what torch's counter finds in a step. What has no gradient is left."""
    matrix, idle = nn.Parameter(torch.ones(rows, columns)), nn.Parameter(torch.ones(7, 7))
    matrix.grad = torch.rand(rows, columns)
    optimizer = CombinedOptimizer(Muon([matrix, idle], lr=0.1), AdamW([nn.Parameter(torch.ones(6, 6))], lr=0.1))
    known = step_flops(optimizer, lambda parameter: parameter.grad is not None)
    assert known == count(optimizer.step)[0] == newton_schulz_flops((rows, columns), 5) == flops


@pytest.mark.parametrize("name", ["scratch", "progressive_net"])
def test_a_plan_knows_muons_products_and_its_single_moment(name: str) -> None:
    """Of 3 layers, with width 24 and FFN 96: four squares as one of 24 x 72 and one of 24 x 24, and two of 24 x 96."""
    ((plain,), (planned,)) = (plan(cell.experiment, get(name), VOCABULARY) for cell in (Cell("gpt2"), WITH_MUON))
    products = 3 * sum(newton_schulz_flops((24, columns), 5) for columns in (72, 24, 96, 96))
    assert planned.flops_per_step == dict(plain.flops_per_step) | {Account.OPTIMIZER: products}
    assert planned.flops == plain.flops, "not charged"
    assert plain.memory - planned.memory == 3 * 4 * 12 * 24 * 24


def test_a_run_records_muons_products_as_planned_and_counted() -> None:
    """In steps of several workloads, in which some matrices have no gradient: every step is counted, with the optimizer's."""
    method = get("bert2bert", {"sub_model_share": 0.5, "sub_model_layers": 1}).method
    found = verdict(method, WITH_MUON)
    assert (found.broken, found.warnings, found.phases) == ([], [], ["sub-models", "train"])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_muons_momentum_grows_beside_adamws_moments(kind: Literal["muon", "adamw"]) -> None:
    """Layer l of a stack has all that layer l mod L has. What AdamW kept of a matrix is refused for Muon."""
    experiment = WITH_MUON.at({"target.width": 16, "target.layers": 4}).experiment
    task = Task.of(experiment, "target", VOCABULARY, torch.device("cpu"))
    small = task.build(task.source_config)
    optimizer = task.optimizer(small, kind=kind)
    for parameter in small.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    trained = Trained(small, optimizer, 1, 1.0)
    if kind == "adamw":
        with pytest.raises(UsageError, match="Muon cannot start with the state of another optimizer"):
            task.grow_trained(trained, lambda weights, key: deepen(weights, [0, 1, 0, 1]))
        return
    grown = task.grow_trained(trained, lambda weights, key: deepen(weights, [0, 1, 0, 1]))
    for name, parameter in grown.model.named_parameters():
        state = grown.optimizer.state[parameter]
        old = optimizer.state[small.get_parameter(name.replace(".h.2.", ".h.0.").replace(".h.3.", ".h.1."))]
        assert state.keys() == old.keys() and all(torch.equal(state[key], old[key]) for key in old)
        assert ("momentum_buffer" in state) == (".h." in name and parameter.dim() == 2)


def test_a_method_that_carries_state_along_does_so_with_muon() -> None:
    assert broken_promises(get("stackbert", {"state": "grown"}).method, WITH_MUON) == []
