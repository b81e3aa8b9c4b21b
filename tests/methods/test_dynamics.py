"""Methods that keep the dynamics: the grown model trains step by step as the small one would, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from growbench.methods.staged_training import Curve, with_identities
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench.costs.ledger import Costs
from growbench.errors import UsageError
from growbench.method import Task, Trained, task_loss
from growbench.registry import get
from growbench.tools.miniatures import CPU, VOCABULARY, Cell, RandomData
from growbench.training.phases import PhaseDriver, PhaseStart
from tests.methods.test_methods import each_cell

STEPS = 20
SIZES = {"source.layers": 1, "target.layers": 1, "source.width": 8, "target.width": 16}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Setting:
    """A small model that was trained for some steps, and the task of growing it to twice its width."""

    def __init__(self, cell: Cell, **sizes: Any) -> None:
        experiment = cell.at(SIZES | sizes).experiment
        training = replace(experiment.train, eps=1e-15, weight_decay=0.1, lr=1e-2)  # an eps that counts for nothing
        experiment = replace(experiment, train=training, source_train=training)
        self.task, self.own = (Task.of(experiment, which, VOCABULARY, CPU) for which in ("target", "source"))
        self.data = RandomData(experiment.data, self.task.architecture.objective, 2)
        torch.manual_seed(0)
        self.small = self.own.build()
        self.optimizer = self.own.optimizer(self.small)
        self.train(self.small, self.optimizer, 5)
        frozen = self.own.model_from(self.task.read(self.small), self.task.source_config)
        self.task = self.task.with_source(frozen.requires_grad_(False).eval(), self.resumed)

    def resumed(self, model: nn.Module) -> Trained:
        """A copy of the small model, with a copy of its optimizer's state."""
        optimizer = self.own.optimizer(model)
        for own, copied in zip(self.small.parameters(), model.parameters(), strict=True):
            optimizer.state[copied] = {key: value.clone() for key, value in self.optimizer.state[own].items()}
        return Trained(model, optimizer, 5, 0.0)

    def train(self, model: nn.Module, optimizer: Optimizer, steps: int = STEPS, first: int = 0) -> list[float]:
        """The loss of each step."""
        losses = []
        for step in range(first, first + steps):
            loss = task_loss(model.train(), self.data.train_batch(step, 0))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def small_losses(self, fresh: bool) -> list[float]:
        """Those of the small model, if it is trained further, with its optimizer's state or a fresh one."""
        return self.train(self.small, self.own.optimizer(self.small) if fresh else self.optimizer, first=5)

    def start(self, name: str, **options: Any) -> PhaseStart:
        """The first phase of a method."""
        return next(iter(PhaseDriver(get(name, options).method, self.task, Costs(CPU))))

    def losses(self, start: PhaseStart) -> list[float]:
        return self.train(start.model, start.optimizer, first=5)


@each_cell
def test_mu_pscaling_without_noise_trains_as_the_small_model(cell: Cell) -> None:
    """With the state of its optimizer grown; heads in groups, tied and untied decoders, all that an architecture has."""
    setting = Setting(cell, **{"source.width": 16, "target.width": 32} if cell.grouped else {})
    start = setting.start("mu_pscaling", noise=0.0, state="grown")
    assert setting.losses(start) == pytest.approx(setting.small_losses(fresh=False), rel=1e-6)


def test_mu_pscaling_with_new_state_trains_as_the_small_model_with_new_state() -> None:
    setting = Setting(Cell("gpt2"))
    start = setting.start("mu_pscaling", noise=0.0)
    losses = setting.losses(start)
    assert losses == pytest.approx(setting.small_losses(fresh=True), rel=1e-9)
    start = setting.start("mu_pscaling", noise=0.0)
    plain = setting.train(start.model, setting.task.optimizer(start.model), first=5)  # without the rates of muP
    assert plain[0] == pytest.approx(losses[0], rel=1e-9) and abs(plain[-1] / losses[-1] - 1) > 1e-3


def test_mu_pscaling_needs_adam_and_whole_ratios() -> None:
    setting = Setting(Cell("gpt2"))
    setting.task.training = replace(setting.task.training, optimizer="muon")
    with pytest.raises(UsageError, match=r"train\.optimizer must be 'adamw'"):
        setting.start("mu_pscaling")
    with pytest.raises(UsageError, match="target's width = 24 must be a multiple of the source's 16"):
        Setting(Cell("gpt2"), **{"source.width": 16, "target.width": 24}).start("mu_pscaling")


def grown_by_sparkling(**options: Any) -> tuple[PhaseStart, PhaseStart, dict[str, Tensor]]:
    """The narrow model's phase and the wide one's, from width 16 to 24, and the narrow model's first moments."""
    experiment = Cell("gpt2").at({"target.width": 24, "train.steps": 10}).experiment
    task = Task.of(experiment, "target", VOCABULARY, CPU)
    driver = PhaseDriver(get("sparkling", options).method, task, Costs(CPU))
    phases = iter(driver)
    narrow = next(phases)
    found = {}
    for name, parameter in narrow.model.named_parameters():
        parameter.data.uniform_(0.5, 1)
        found[name] = torch.rand_like(parameter) + 1
        narrow.optimizer.state[parameter] = {
            "step": torch.tensor(5.0),
            "exp_avg": found[name],
            "exp_avg_sq": found[name].square(),
        }
    driver.trained(1.0)
    return narrow, next(phases), found


def test_sparkling_scales_sums_of_repeated_units() -> None:
    """A half more: c = 1 / 2, so sums are divided by the root of 1 + 3 / 2; embeddings and biases are repeated as they are."""
    narrow, wide, _ = grown_by_sparkling()
    small, large = dict(narrow.model.named_parameters()), dict(wide.model.named_parameters())
    assert (narrow.steps, wide.steps) == (5, 5) and len(narrow.model.transformer.h) == 3
    c_fc, order = "transformer.h.1.mlp.c_fc", [*range(16), *range(8)]
    assert torch.equal(large["transformer.wte.weight"], small["transformer.wte.weight"][:, order])
    assert torch.equal(large[f"{c_fc}.bias"], small[f"{c_fc}.bias"][[*range(64), *range(32)]])
    assert torch.allclose(large[f"{c_fc}.weight"][:16, :64], small[f"{c_fc}.weight"] / 2.5**0.5)  # stored as (in, out)
    assert torch.allclose(large["transformer.ln_f.weight"], small["transformer.ln_f.weight"][order] / 2.5**0.5)  # tied


def test_sparkling_keeps_the_moments_of_old_entries_and_warms_up_the_new_ones() -> None:
    _, wide, old = grown_by_sparkling(new_share=0.2)
    (schedule,) = wide.phase.entry_schedules
    assert [schedule.schedule(step, 5) for step in range(4)] == pytest.approx([1.15, 1.3, 1.3, 1.3])
    for name, parameter in wide.model.named_parameters():
        state = wide.optimizer.state[parameter]
        corner = tuple(map(slice, old[name].shape))
        if "c_attn" not in name:  # query, key and value have corners of their own
            assert torch.allclose(state["exp_avg"][corner], old[name])
            assert torch.equal(state["exp_avg"] == 0, schedule.where.get(name, torch.tensor(False)).expand_as(parameter)), name
        assert (state["exp_avg"] != 0).sum() == old[name].numel() and state["step"] == 5
    _, fresh, _ = grown_by_sparkling(state="new", new_peak=1.0)
    assert not fresh.optimizer.state and not fresh.phase.entry_schedules


def until_wider(cell: Cell, **sizes: Any) -> tuple[Setting, PhaseStart, PhaseStart]:
    """Staged training up to its growth in width: the small model's last phase, trained, and the first one of the grown model."""
    setting = Setting(cell, **{"train.steps": 8} | sizes)
    driver = PhaseDriver(get("staged_training").method, setting.task, Costs(CPU))
    last = None
    for start in driver:
        if last and start.model.sizes.width > last.model.sizes.width:
            return setting, last, start
        losses = setting.train(start.model, start.optimizer, start.steps, start.first_step)
        driver.trained(losses[-1])
        last = start
    raise AssertionError("it does not grow")


def read_by_decoder(task: Task, model: nn.Module) -> list[nn.Parameter]:
    """What is halved when the width is doubled."""
    halved = {name for name, weight in task.read(model).items() if weight.consumes and weight.role in ("norm", "head")}
    return [parameter for name, _, parameter in task.architecture.parameters(model) if name in halved]


@each_cell
def test_the_halves_of_staged_training_train_as_the_small_model(cell: Cell) -> None:
    """As long as the zero blocks are held at zero, and what is halved is held in both models."""
    setting, small, wide = until_wider(cell, **{"source.width": 16, "target.width": 32} if cell.grouped else {})
    for start in (small, wide):
        for parameter in read_by_decoder(setting.task, start.model):
            parameter.requires_grad_(False)
    for parameter in wide.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(partial(torch.mul, parameter.detach() != 0))
    losses = setting.train(wide.model, wide.optimizer, first=wide.first_step)
    assert losses == pytest.approx(setting.train(small.model, small.optimizer, first=wide.first_step), rel=1e-6)


def test_moments_of_staged_training_follow_the_gradients() -> None:
    """m / 2 and v / 4 where units are doubled, none in the zero blocks, and both as they were where weights are halved."""
    _, small, wide = until_wider(Cell("gpt2"))
    old, new = ({name: start.optimizer.state[p] for name, p in start.model.named_parameters()} for start in (small, wide))
    c_fc, zeros = "transformer.h.0.mlp.c_fc.weight", torch.zeros(8, 32)
    for key, factor in (("exp_avg", 0.5), ("exp_avg_sq", 0.25)):
        block = factor * old[c_fc][key]
        assert torch.allclose(new[c_fc][key], torch.cat([torch.cat([block, zeros], 1), torch.cat([zeros, block], 1)]), rtol=1e-12)
        assert torch.allclose(new["transformer.wte.weight"][key], factor * old["transformer.wte.weight"][key].repeat(1, 2))
        assert torch.allclose(new["transformer.ln_f.weight"][key], old["transformer.ln_f.weight"][key].repeat(2))
    assert torch.allclose(wide.model.transformer.ln_f.weight, small.model.transformer.ln_f.weight.repeat(2) / 2)
    assert new[c_fc]["step"] == old[c_fc]["step"] == wide.first_step


def test_staged_training_refuses_layers_between_two_norms_that_are_zero() -> None:
    setting = Setting(Cell("gemma3"), **{"target.layers": 2, "target.width": 8})
    with pytest.raises(UsageError, match=r"layers\.attention\.norm\.weight and the norm behind its branch are both zero"):
        setting.task.model_from(with_identities(setting.task.read(setting.small), possible=True))


@each_cell
def test_staged_training_preserves_the_function(cell: Cell) -> None:
    """In depth, only where norms come first; the layers that were added are trained in all their parts."""
    widths = {"source.width": 16, "target.width": 16} if cell.grouped else {"target.width": 8}
    setting = Setting(cell, **{"target.layers": 2} | widths)
    task, small = setting.task, setting.small
    possible = task.architecture.norm == "pre"
    deep = task.model_from(with_identities(task.read(small), possible))
    batch = setting.data.train_batch(0, 0)
    expected, found = (model.eval()(batch.inputs, batch.positions) for model in (small, deep))
    assert ((found - expected).norm() / expected.norm() < 1e-12) == possible
    task_loss(deep, batch).backward()
    added = {name for name, layer, p in task.architecture.parameters(deep) if layer == 1 and p.grad is not None and p.grad.any()}
    norms = {f"layers.{branch}.{norm}.weight" for branch in ("attention", "ffn") for norm in ("norm", "post_norm")}
    assert norms & added or not possible
    assert any(name.startswith("layers.ffn") for name in added)


def staged(losses: Callable[[int], float]) -> list[tuple[str, int]]:
    """The stages of a run of 200 steps whose loss after each number of steps is given: sizes, and their steps."""
    experiment = Cell("gpt2").at({"target.width": 32, "target.layers": 4, "train.steps": 200, "train.warmup": 8}).experiment
    driver = PhaseDriver(get("staged_training").method, Task.of(experiment, "target", VOCABULARY, CPU), Costs(CPU))
    found: dict[str, int] = {}
    for start in driver:
        found[start.phase.name] = found.get(start.phase.name, 0) + start.steps
        driver.trained(losses(start.first_step + start.steps))
    return list(found.items())


def test_a_stage_ends_when_the_loss_is_flat() -> None:
    """A loss that falls as steps^-0.1 is steep enough up to the latest time, an unknown one in a plan too; a constant is not."""
    latest = [("2 x 16", 50), ("2 x 32", 50), ("4 x 32", 100)]
    assert staged(lambda step: 5 * step**-0.1) == latest
    assert staged(lambda step: math.nan) == latest
    early = staged(lambda step: 5.0)
    assert early == [("2 x 16", 8 + 9 * 4), ("2 x 32", 9 * 4), ("4 x 32", 200 - 44 - 36)]  # nine losses: five in the later half
    curve = Curve()
    for step in range(4, 60, 4):
        curve.add(step, 3 * step**-0.07)
    assert curve.slope() == pytest.approx(-0.07)


def test_staged_training_only_doubles() -> None:
    setting = Setting(Cell("gpt2"), **{"target.width": 24})
    with pytest.raises(UsageError, match=r"from the source's sizes come width = 32, target\.width = 24"):
        setting.start("staged_training")
