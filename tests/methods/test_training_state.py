"""Training state grows as weights do: the source's, that of a phase, and by an option that of every method."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from growbench.config.loading import load
from growbench.console import Progress
from growbench.costs.ledger import Costs
from growbench.errors import UsageError
from growbench.method import Method, Phase, Phases, Task, Trained, Weights, deepen, stack
from growbench.method.options import settings as hyperparameters
from growbench.planning.plan import plan
from growbench.registry import Found, get
from growbench.runs import store
from growbench.runs.benchmark import Benchmark
from growbench.runs.execution import Execution
from growbench.runs.jobs import Job, Setting
from growbench.tools.cards import card
from growbench.tools.check import broken_promises
from growbench.tools.miniatures import Cell
from growbench.training.audit import Timetable
from growbench.training.parallel import Parallel
from growbench.training.phases import PhaseDriver, PhaseStart
from growbench.training.trainer import Output, Stop

CPU = torch.device("cpu")
GPT2 = Cell("gpt2")


class Deepens(Method):
    """Stack the source's layers, and what its optimizer keeps of them."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.06211"
    miniature: ClassVar[dict[str, int]] = {"target.width": 16, "target.layers": 4}

    def phases(self, task: Task) -> Phases:
        def grow(weights: Weights, key: str) -> Weights:
            return deepen(weights, stack(task.source_config.layers, task.target_config.layers))

        grown = task.grow_trained(task.source_trained, grow)
        yield Phase(model=grown.model, optimizer=grown.optimizer)


def test_the_state_of_the_source_is_stored_and_can_be_grown(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what training ended with. Without its file, only who asks for it is refused; a damaged one is trained again."""
    setting = Setting(load(str(miniature), ["target.width=16", "target.heads=2"]), tmp_path, Parallel(CPU))
    benchmark, found = Benchmark(setting), Found("deepens", Deepens(), "here")
    assert benchmark.run([found], [0])
    job, data = Job(get("scratch"), 0, which="source"), setting.load_data("source")
    trainer = Execution(setting, job, data).trainer(Output([], Progress("", 1, None, shown=False)), Stop())
    outcome = trainer.run(job.found.method)
    assert outcome.model is not None and outcome.optimizer is not None
    source = benchmark.sources.of(0)
    assert source is not None and source.resume is not None
    task = Task.of(setting.experiment, "target", data.vocabulary, CPU).with_source(source.model, source.resume)
    trained = task.source_trained
    assert (trained.steps, trained.loss) == (12, outcome.train_loss)
    ended = dict(outcome.model.named_parameters())
    for name, parameter in trained.model.named_parameters():
        assert parameter.requires_grad and torch.equal(parameter, ended[name])
        for key, value in outcome.optimizer.state[ended[name]].items():
            assert torch.equal(trained.optimizer.state[parameter][key], value) and value.any()
    file = tmp_path / "source-seed0" / store.OPTIMIZER
    content = file.read_bytes()
    file.unlink()
    capsys.readouterr()
    assert not Benchmark(setting).run([Found("other", Deepens(), "here"), get("bert2bert")], [0])
    said = capsys.readouterr().err
    assert f"other-seed0        failed: {file} is missing, as of a source that earlier code trained: remove" in said
    assert "bert2bert-seed0    finished" in said and "source-seed0       is done" in said
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert Benchmark(setting).run([Found("other", Deepens(), "here")], [0])
    assert f"{file} is damaged (sha256 differs): training it again" in capsys.readouterr().err and file.read_bytes() == content


@pytest.mark.parametrize("architecture", ["gpt2", "cait"])
def test_what_grows_the_state_of_the_source_keeps_every_promise(architecture: str) -> None:
    """It can be planned, runs twice in the same way, and leaves the source as it is."""
    assert broken_promises(Deepens(), Cell(architecture)) == []


def test_each_entry_of_the_state_goes_through_the_map_of_its_weight() -> None:
    """Layer l of a stack has the moments of layer l mod L, fused and transposed parameters too; the count of steps goes on."""
    experiment = Cell("gpt2").at(Deepens.miniature).experiment
    task, own = (Task.of(experiment, which, 32, CPU) for which in ("target", "source"))
    small = own.build()
    optimizer = own.optimizer(small, lr=0.5)
    for number, parameter in enumerate(small.parameters(), 1):
        moments = {key: torch.rand_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(float(number)), **moments}
    task = task.with_source(small.requires_grad_(False).eval(), lambda model: pytest.fail("not asked for"))
    grown = task.grow_trained(Trained(small, optimizer, 7, 2.0), lambda weights, key: deepen(weights, [0, 1, 0, 1]))
    assert (grown.steps, grown.loss) == (7, 2.0) and {group["lr"] for group in grown.optimizer.param_groups} == {1e-3}
    for name, parameter in grown.model.named_parameters():
        old = small.get_parameter(name.replace(".h.2.", ".h.0.").replace(".h.3.", ".h.1."))
        assert torch.equal(parameter, old)
        state = grown.optimizer.state[parameter]
        assert state["step"] == len(list(small.parameters()))
        assert all(torch.equal(state[key], optimizer.state[old][key]) for key in ("exp_avg", "exp_avg_sq"))
    with pytest.raises(UsageError, match="exp_avg_sq has negative entries after growth"):
        task.grow_trained(Trained(small, optimizer, 7, 2.0), negated)
    with pytest.raises(UsageError, match="the source has no optimizer state"):
        _ = task.with_source(small).source_trained


def negated(weights: Weights, key: str) -> Weights:
    return {name: replace(weight, value=-weight.value) for name, weight in deepen(weights, [0, 1, 0, 1]).items()}


# --- the options of all methods


def walked(name: str, cell: Cell = GPT2, **options: Any) -> Iterator[PhaseStart]:
    """The phases of a method on a miniature whose source has an optimizer; training sets all moments to 1."""
    experiment = cell.at(get(name).method.miniature).experiment
    task, own = (Task.of(experiment, which, 32, CPU) for which in ("target", "source"))
    torch.manual_seed(0)

    def with_ones(model: nn.Module, optimizer: Optimizer, count: int) -> Trained:
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            moments = {key: torch.ones_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(count)), **moments}
        return Trained(model, optimizer, count, 1.0)

    task = task.with_source(own.build().requires_grad_(False).eval(), lambda model: with_ones(model, own.optimizer(model), 7))
    driver = PhaseDriver(get(name, options).method, task, Costs(CPU))
    for start in driver:
        yield start
        with_ones(start.model, start.optimizer, 9)
        driver.trained(1.0)


def moments(start: PhaseStart, name: str, key: str = "exp_avg") -> Tensor:
    """The state of a parameter at the start of a phase."""
    value: Tensor = start.optimizer.state[start.model.get_parameter(name)][key]
    return value


def test_a_method_grows_the_state_that_its_code_knows_nothing_of() -> None:
    """bert2BERT, from width 16 to 24: a neuron of the next layer that takes the place of a copy brings its own moments."""
    start = next(walked("bert2bert", state="grown"))
    name = "transformer.h.0.mlp.c_fc"
    ffn = moments(start, f"{name}.bias")
    copies = 1 / ffn
    assert torch.equal(copies, copies.round()) and copies.max() > 1  # divided by the number of copies
    assert torch.allclose(moments(start, f"{name}.bias", "exp_avg_sq"), ffn.square())
    assert torch.allclose(moments(start, f"{name}.weight"), ffn.expand(24, -1))  # its input side is copied
    assert moments(start, f"{name}.weight", "step") == 7 and start.keeps_optimizer_state
    start = next(walked("bert2bert", state="kept"))
    kept = moments(start, "transformer.h.0.mlp.c_fc.bias")
    assert kept.tolist() == [1.0] * 64 + [0.0] * 32
    start = next(walked("bert2bert"))
    assert not start.optimizer.state


def test_layers_on_top_are_new_where_old_ones_keep_their_state() -> None:
    """A parameter without any old unit starts as with a new optimizer, its count of steps too."""
    phases = walked("stackbert", state="kept")
    assert not next(phases).optimizer.state
    second = next(phases)
    assert moments(second, "transformer.h.0.ln_1.weight", "step") == 9
    assert second.model.get_parameter("transformer.h.1.ln_1.weight") not in second.optimizer.state
    assert moments(next(phases), "transformer.h.1.ln_1.weight").eq(1).all()


REFUSED = {
    ("scratch", "state", "grown"): "state = 'grown': nothing is grown from a trained model here",
    ("ki", "state", "kept"): "state = 'kept': nothing is grown from a trained model here",
    ("ki", "rewarm_steps", 3): "rewarm_steps = 3: nothing is grown from a trained model here",
    ("scratch_restart", "rewarm_steps", 3): "rewarm_steps = 3: nothing is grown from a trained model here",
    ("random_source", "state", "grown"): "state = 'grown': nothing is grown from a trained model here",
    ("ligo", "state", "grown"): "is made by a map without a rule, which does not say how an optimizer's state grows",
}


@pytest.mark.parametrize(("name", "option", "value"), REFUSED)
def test_an_option_that_a_method_cannot_honour_is_refused_before_training(name: str, option: str, value: Any) -> None:
    found = get(name, {option: value})
    with pytest.raises(UsageError, match=re.escape(REFUSED[name, option, value])) as refusal:
        plan(GPT2.experiment, found, 32)
    assert "\n" not in str(refusal.value)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rewarm_steps": -1}, "ligo: rewarm_steps = -1: must be a whole number, at least 0"),
    ({"rewarm_peak": 1.3}, "ligo: rewarm_peak = 1.3: needs rewarm_steps"),
    ({"rewarm_steps": 2, "rewarm_peak": 0.0}, "ligo: rewarm_peak = 0.0: must be above 0"),
    ({"state": "half"}, "ligo.state = 'half': must be 'new', 'kept' or 'grown'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan(GPT2.experiment, get("ligo", options), 32)


class Halfway(Deepens):
    """Its field means something else than the option of this name."""

    state: int = 0  # type: ignore[assignment]


class Shared(Deepens):
    rewarm_steps: float = 0.5  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Halfway(), "state = 0: must be one of 'new', 'kept', 'grown'"),
        (Shared(), "rewarm_steps = 0.5: must be a whole number, at least 0"),
    ],
)
def test_a_field_of_another_meaning_is_not_taken_for_an_option(method: Method, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan(GPT2.experiment, Found("own", method, ""), 32)


class Half(Method):
    """Grow the weights, and forget that the state must grow too."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.06211"

    def phases(self, task: Task) -> Phases:
        def grow(weights: Weights, key: str) -> Weights:
            return deepen(weights, stack(2, 3)) if key == "weight" else weights

        grown = task.grow_trained(task.source_trained, grow, replace(task.source_config, layers=3))
        yield Phase(model=grown.model, optimizer=grown.optimizer)


def test_state_that_is_not_grown_is_named() -> None:
    wrong = r"exp_avg of layers\.\S+: its layer axis has length 2, the model's 3: grow it by deepen\(weights, layers\)"
    with pytest.raises(UsageError, match=wrong):
        plan(GPT2.experiment, Found("half", Half(), ""), 32)


def test_growth_that_returns_nothing_is_refused() -> None:
    task = Task.of(GPT2.experiment, "target", 32, CPU)
    trained = Trained(task.build(), torch.optim.SGD([nn.Parameter(torch.zeros(1))]), 0, 0.0)
    with pytest.raises(UsageError, match="grow returned a NoneType for weight: must be a dictionary of weights"):
        task.grow_trained(trained, lambda weights, key: None)  # type: ignore[arg-type, return-value]


def test_a_method_cannot_hide_an_option() -> None:
    """By a function of the same name; a field of its own gives the option another default."""
    with pytest.raises(UsageError, match=r"Hides\.state hides a hyperparameter that every method has: rename it"):

        class Hides(Deepens):
            def state(self) -> None: ...

    assert hyperparameters(get("sparkling", {"state": "kept"}).method)["state"] == "kept"


def rates(start: PhaseStart) -> list[float]:
    return list(Timetable.of(start, lambda step, steps: 1.0, 6).lr_multipliers)


def test_the_rate_rises_after_each_growth() -> None:
    """From 1 to a peak above 1, from 0 to another one, over steps that may reach into the next phase; then it stays."""
    start = next(walked("bert2bert", rewarm_steps=2, rewarm_peak=1.5))
    assert rates(start) == [1.25, 1.5, 1.5, 1.5, 1.5, 1.5]
    assert [rates(each) for each in walked("stackbert", rewarm_steps=2)] == [[1.0], [0.5], [0.5, 1, 1, 1]]
    *_, top, last = walked("mslt", rewarm_steps=4)
    assert rates(top) == [0.25, 0.5] and rates(last) == [0.75, 1.0]
    operator, start = walked("ligo", rewarm_steps=2)
    assert set(rates(operator)) == {1.0} and rates(start)[:3] == [0.5, 1.0, 1.0]


def test_at_their_defaults_options_leave_no_trace() -> None:
    """Neither in a run's identity, so that older runs count, nor in a method's table of hyperparameters."""
    assert hyperparameters(get("bert2bert").method) == {"init": "aki", "sub_model_share": 0.0, "sub_model_layers": 3}
    assert hyperparameters(get("interpolation", {"state": "kept"}).method) == {"state": "kept"}
    assert hyperparameters(get("interpolation", {"rewarm_steps": 0}).method) == {}
    assert "rewarm" not in card(get("interpolation"))


@pytest.mark.parametrize("name", ["bert2bert", "net2net", "direct_copy", "interpolation", "stackbert", "mslt"])
@pytest.mark.parametrize(("state", "architecture"), [("kept", "cait"), ("grown", "gpt2")])
def test_every_growth_of_layers_and_units_can_carry_state(name: str, state: str, architecture: str) -> None:
    """By plans, which train nothing: on the architecture with fused and transposed matrices, and that with class layers."""
    plan(Cell(architecture).experiment, get(name, {"state": state}), 32)


# --- a method that wraps others


CANDIDATES = {"candidates": ["own=depth_map", "plain=depth_map"], "lag": 0.4}


def test_lags_candidates_have_the_state_the_rate_and_the_rewarm_that_they_ask_for() -> None:
    """Each trial begins as its candidate alone does; what one asks for, the other does not have."""
    own = {"state": "grown", "rewarm_steps": 3, "rewarm_peak": 2.0}
    tried = iter(walked("lag", **CANDIDATES, options={"own": {**own, "train": {"lr": 0.5}}}))
    first = next(tried)
    alone = next(walked("depth_map", **own))
    assert {group["lr"] for group in first.optimizer.param_groups} == {0.5} and first.phase.name == "try own"
    for (name, parameter), expected in zip(first.model.named_parameters(), alone.model.parameters(), strict=True):
        state, wanted = first.optimizer.state[parameter], alone.optimizer.state[expected]
        assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted), name
    second = next(tried)
    assert not second.optimizer.state and {group["lr"] for group in second.optimizer.param_groups} == {1e-3}
    assert first.phase.schedule and second.phase.schedule and alone.lr_factor
    for step in range(first.steps):
        usual = second.phase.schedule(step, second.steps)
        assert first.phase.schedule(step, first.steps) == usual * alone.lr_factor(step) != usual


def test_lag_refuses_states_of_its_own_and_of_a_candidate_together() -> None:
    with pytest.raises(UsageError, match="lag: own has a state or a re-warm of its own, so lag must have none"):
        next(walked("lag", **CANDIDATES, options={"own": {"rewarm_steps": 2}}, state="kept"))
