"""What a method must leave as it is, in growth and in a phase. It fails by a line that says what it changed."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from growbench.costs import accounts, ledger
from growbench.costs.ledger import Costs
from growbench.guards import Guard
from growbench.guards.settings import SETTINGS
from growbench.method import Method, Phase, Phases, Task, cross_entropy
from growbench.method.interface import MethodError
from growbench.planning.plan import META, walk
from growbench.tools.miniatures import VOCABULARY, Cell
from growbench.training.evaluation import Evaluation

EXPERIMENT = Cell("gpt2").experiment


class Does(Method):
    """Do something before the first phase."""

    paper: ClassVar[str] = ""
    uses_source: ClassVar[bool] = False
    what: ClassVar[Callable[[], object]] = staticmethod(lambda: None)

    def phases(self, task: Task) -> Phases:
        type(self).what()
        yield Phase(model=task.build(), share=0.5)
        yield Phase(model=task.build())


def no_loss(*_: Any) -> float:
    return 0.0


ATTACKS: dict[str, tuple[Callable[[], object], str]] = {
    "dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        "changed torch's default dtype from torch.float32 to torch.float64",
    ),
    "device": (lambda: torch.set_default_device("meta"), "changed torch's default device from None to meta"),
    "no gradients": (lambda: torch.set_grad_enabled(False), "changed torch's gradient mode from True to False"),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), "changed torch's anomaly detection"),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "changed torch's number of threads from "),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), "changed torch's deterministic algorithms"),
    "precision": (lambda: torch.set_float32_matmul_precision("medium"), "changed torch's float32 precision (cuda, matmul)"),
    "tf32": (lambda: setattr(torch.backends.cudnn, "allow_tf32", False), "changed torch's float32 precision (cuda, conv)"),
    "cudnn": (lambda: setattr(torch.backends.cudnn, "benchmark", True), "changed torch's cudnn_benchmark from False to True"),
    "mkldnn": (lambda: torch.backends.mkldnn.set_flags(False), "changed torch's mkldnn_enabled"),
    "attention": (lambda: torch.backends.cuda.enable_flash_sdp(False), "changed torch's flash_sdp_enabled"),
    "autocast": (lambda: torch.set_autocast_enabled("cpu", True), "changed autocast on cpu from False to True"),
    "hook": (
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
        "changed torch.nn.modules.module._global_forward_hooks",
    ),
    "signal": (lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN), "changed the signal handlers"),
    "environment": (lambda: os.environ.update(OMP_NUM_THREADS="7"), "changed the environment"),
    "new variable": (lambda: os.environ.update(CUBLAS_WORKSPACE_CONFIG="x"), "changed the environment from {} to {"),
    "folder": (lambda: os.chdir("/"), "changed the working folder"),
    "garbage": (gc.disable, "changed the garbage collector from True to False"),
    "evaluation": (
        lambda: setattr(Evaluation, "scores", no_loss),
        "changed growbench.training.evaluation.Evaluation.scores, which all methods use",
    ),
    "code": (
        lambda: setattr(cross_entropy, "__code__", no_loss.__code__),
        "changed growbench.method.loss.cross_entropy, which all methods use",
    ),
    "constant": (lambda: setattr(ledger, "CHARGED", ()), "changed growbench.costs.ledger.CHARGED"),
    "deleted": (lambda: delattr(accounts, "CHARGED"), "changed growbench.costs.accounts.CHARGED"),
    "functional": (lambda: setattr(nn.functional, "linear", no_loss), "changed torch.nn.functional.linear"),
    "forward": (lambda: setattr(nn.LayerNorm, "forward", no_loss), "changed torch.nn.modules.normalization.LayerNorm.forward"),
    "backward": (lambda: setattr(torch.Tensor, "backward", no_loss), "changed torch.Tensor.backward"),
    "hidden": (lambda: setattr(torch.Tensor, "add", no_loss), "changed torch.Tensor.add"),
    "step": (lambda: setattr(torch.optim.AdamW, "step", no_loss), "changed torch.optim.adamw.AdamW.step"),
    "clock": (lambda: setattr(time, "perf_counter", no_loss), "changed time.perf_counter"),
    "counting": (
        lambda: torch.utils.flop_counter.flop_registry.update({torch.ops.aten.mm: no_loss}),
        "changed torch.utils.flop_counter.flop_registry",
    ),
    "model": (
        lambda: setattr(sys.modules["transformers.models.gpt2.modeling_gpt2"].GPT2MLP, "forward", no_loss),
        "changed transformers.models.gpt2.modeling_gpt2.GPT2MLP.forward",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_change_is_named_and_put_back(name: str) -> None:
    attack, words = ATTACKS[name]
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # torch wraps its step at its first use
    guard = Guard()
    attack()
    assert guard.changes().startswith(words)
    assert not guard.changes()


@pytest.mark.parametrize("name", ["dtype", "evaluation", "forward"])
def test_a_change_in_growth_is_the_methods_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, words = ATTACKS[name]
    monkeypatch.setattr(Does, "what", staticmethod(attack))
    with pytest.raises(MethodError) as raised:
        list(walk(EXPERIMENT, Does(), VOCABULARY, Costs(META)))
    assert f"the growth {words}" in str(raised.value) and "at each yield" in str(raised.value)
    assert torch.get_default_dtype() == torch.float32 and no_loss not in (Evaluation.scores, nn.LayerNorm.forward)


def test_a_change_in_a_phase_is_the_methods_failure() -> None:
    attack, words = ATTACKS["evaluation"]
    phases = walk(EXPERIMENT, Does(), VOCABULARY, Costs(META))
    next(phases)
    attack()
    with pytest.raises(MethodError) as raised:
        next(phases)
    assert words in str(raised.value) and "loss, schedule, optimizer" in str(raised.value)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.manual_seed(torch.initial_seed() ^ 1)])
def test_growth_leaves_global_generators(draw: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Does, "what", staticmethod(draw))
    with pytest.raises(MethodError, match=r"the growth seeds torch, or draws from .*: draw with generator=task.rng"):
        list(walk(EXPERIMENT, Does(), VOCABULARY, Costs(META)))


def test_a_yield_inside_no_grad_is_named() -> None:
    """An honest mistake: the phase would train without gradients."""

    class Asleep(Does):
        def phases(self, task: Task) -> Phases:
            with torch.no_grad():
                yield Phase(model=task.build())

    with pytest.raises(MethodError, match="the growth changed torch's gradient mode from True to False"):
        list(walk(EXPERIMENT, Asleep(), VOCABULARY, Costs(META)))
    assert torch.is_grad_enabled()


def test_a_task_is_not_to_be_changed() -> None:
    class Longer(Does):
        def phases(self, task: Task) -> Phases:
            task.budget *= 2
            yield Phase(model=task.build())

    with pytest.raises(MethodError, match="the growth changed the task that it was given"):
        list(walk(EXPERIMENT, Longer(), VOCABULARY, Costs(META)))


def test_what_is_put_back_or_imported_late_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """No false alarm: a setting that lasts within growth, a library's first use, an optimizer's first step."""

    def honest() -> None:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
            torch.rand(1)
        import transformers.models.opt.modeling_opt  # noqa: F401

        torch.optim.RAdam([nn.Parameter(torch.ones(1))]).step()
        handled.append(signal.signal(signal.SIGCHLD, lambda *_: None))  # as torch does when it starts workers for images

    handled = list[Any]()
    monkeypatch.setattr(Does, "what", staticmethod(honest))
    try:
        assert len(list(walk(EXPERIMENT, Does(), VOCABULARY, Costs(META)))) == 2
    finally:
        signal.signal(signal.SIGCHLD, handled[0])


def test_every_setting_that_can_be_put_back_reads_as_what_was_put() -> None:
    for setting in SETTINGS:
        if setting.write:
            value = setting.read()
            setting.write(value)
            assert setting.read() == value, setting.name
