"""`growbench check`: built-in methods pass, and each kind of broken plugin is caught in words that say where."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from growbench import cli, registry
from growbench.errors import UsageError
from growbench.method import Method, Phase, Phases, Task
from growbench.registry import Found
from growbench.tools import check, miniatures
from growbench.tools.check import broken_promises, cells_of, verdict
from growbench.tools.miniatures import Cell

PLUGIN = '''
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy
import torch
from growbench.method import UsageError, Method, Phase, Phases, Task, copying, deepen, task_loss, widen

class Mine(Method):
    """Break a promise."""

    paper: ClassVar[str] = "https://example.org"
    uses_source: ClassVar[bool] = {uses_source}
    scale: float = 1.0

    def phases(self, task: Task) -> Phases:
        model = task.build()
{body}
'''
SIMPLY = "yield Phase(model=model)"


def written(folder: Path, body: str) -> Path:
    """mine.py, with this body of `phases`."""
    path = folder / "mine.py"
    lines = textwrap.indent(body.strip(), " " * 8)
    path.write_text(PLUGIN.format(body=lines, uses_source="task.source" in body), encoding="utf-8")
    return path


def broken(folder: Path, body: str, compares: bool = True) -> str:
    return "\n".join(broken_promises(registry.get(str(written(folder, body))).method, Cell("gpt2"), compares))


# What a plugin does, and the line that says so.
BREACHES = {
    "wrong depth": (
        "yield Phase(model=task.build(replace(task.target_config, layers=2)), name='shallow')",
        "after phase 'shallow': the last scored model has layers = 2, the target 3",
    ),
    "wrong heads": (
        "yield Phase(model=task.build(replace(task.target_config, heads=6)))",
        "after phase 'train': the last scored model has heads = 6, the target 3",
    ),
    "a frozen parameter moved by hand": (
        """
        task.train_only(model, lambda name, layer: layer is not None)
        trained = yield Phase(model=model, steps=2, name="top")
        with torch.no_grad():
            model.transformer.wte.weight.mul_(2)
        yield Phase(model=model, name="rest")
        """,
        "after phase 'top': frozen parameters moved by hand after it: transformer.wte.weight",
    ),
    "a frozen parameter moved by the loss": (
        """
        task.train_only(model, lambda name, layer: layer is not None)
        def loss(model, batch, step):
            model.transformer.wpe.weight.data += 1
            return task_loss(model, batch)
        yield Phase(model=model, loss=loss)
        """,
        "phase 'train': frozen parameters moved: transformer.wpe.weight",
    ),
    "an optimizer that lacks a parameter": (
        """
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p is not model.transformer.wpe.weight])
        yield Phase(model=model, optimizer=optimizer, name="most")
        """,
        "phase 'most': the optimizer must hold exactly the trainable parameters; it lacks ['transformer.wpe.weight']",
    ),
    "an optimizer that computes losses itself": (
        """
        yield Phase(model=model, optimizer=torch.optim.LBFGS(model.parameters()))
        """,
        "phase 'train': LBFGS.step() needs an argument, as a closure that computes the loss again",
    ),
    "layers added after the optimizer was made": (
        """
        optimizer = task.optimizer(model)
        model.transformer.h.append(type(model.transformer.h[0])(model.config, layer_idx=3))
        yield Phase(model=model, optimizer=optimizer)
        """,
        "phase 'train': the optimizer must hold exactly",
    ),
    "work that changes": (
        """
        def loss(model, batch, step):
            return sum(task_loss(model, batch) for _ in range(1 + step // 3))
        yield Phase(model=model, loss=loss, name="harder")
        """,
        "phase 'harder': the work per step changed from",
    ),
    "Python's own randomness": (
        """
        yield Phase(model=model, loss=lambda model, batch, step: task_loss(model, batch) * random.random())
        """,
        "phase 'train': two runs of one seed differ at step 1",
    ),
    "numpy's randomness": (
        """
        with torch.no_grad():
            model.transformer.wte.weight += torch.tensor(numpy.random.randn(32, 24))
        yield Phase(model=model, name="noisy")
        """,
        "draws from Python's or NumPy's global generator, which a resumed run does not restore: draw with generator=task.rng",
    ),
    "Python's randomness in growth": (
        """
        with torch.no_grad():
            model.transformer.wte.weight *= random.random()
        yield Phase(model=model)
        """,
        "draws from Python's or NumPy's global generator",
    ),
    "torch seeded": (
        "torch.manual_seed(0)\nyield Phase(model=task.build())",
        "before the first phase: the growth seeds torch",
    ),
    "torch seeded between phases": (
        """
        yield Phase(model=model, share=0.5)
        torch.manual_seed(42)
        yield Phase(model=model, name="rest")
        """,
        "after phase 'train': the growth seeds torch",
    ),
    "the source changed": (
        """
        with torch.no_grad():
            task.source.transformer.wte.weight.zero_()
        yield Phase(model=model)
        """,
        "before the first phase: the source was changed: transformer.wte.weight",
    ),
    "the source trained": (
        """
        task.source.requires_grad_(True).train()
        yield Phase(model=model)
        """,
        "before the first phase: the source, frozen and in evaluation mode, was unfrozen or put in training mode",
    ),
    "hooks left on the source": (
        """
        task.source.register_forward_hook(lambda *_: None)
        yield Phase(model=model)
        """,
        "before the first phase: hooks are left on the source",
    ),
    "untied": (
        """
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        yield Phase(model=model)
        """,
        "after phase 'train': the last scored model's embeddings are no longer tied",
    ),
    "what was never written": (
        """
        model.transformer.h[1].mlp.c_fc.weight.data = torch.full_like(model.transformer.h[1].mlp.c_fc.weight, torch.nan)
        yield Phase(model=model, name="torn")
        """,
        "phase 'torn': parameters are not finite when it begins, perhaps never written: transformer.h.1.mlp.c_fc.weight",
    ),
    "never scored": (
        "yield Phase(model=model, steps=3, account='operator', name='aside')",
        "no phase is scored",
    ),
    "no phase at all": (
        "return\nyield",
        "no phase is scored: nothing is trained within the budget: write `yield Phase(model=...)`",
    ),
    "a forgotten yield": (
        "Phase(model=model)",
        "before the first phase: phases() returned nothing: write `yield Phase(model=...)`",
    ),
    "return for yield": (
        "return Phase(model=model)",
        "before the first phase: phases() returned a Phase: write `yield Phase(model=...)` in place of `return`",
    ),
    "return for the last yield": (
        "yield Phase(model=model, share=0.5)\nreturn Phase(model=model)",
        "after phase 'train': phases() returned a Phase, which is ignored: write `yield Phase(model=...)` in place of `return`",
    ),
    "a loss that returns nothing": (
        "yield Phase(model=model, loss=lambda model, batch, step: None)",
        "phase 'train': loss returned a NoneType: must be a scalar tensor",
    ),
    "logits for a loss": (
        "yield Phase(model=model, loss=lambda model, batch, step: model(batch.inputs, batch.positions))",
        "phase 'train': loss returned a tensor of shape (",
    ),
    "a yielded model": (
        "yield model",
        "before the first phase: phases() yielded a GPT2: write `yield Phase(model=...)`",
    ),
    "weights for a model": (
        "yield Phase(model=task.read(model))",
        "before the first phase: mine.py, line 19: phase 'train': model is a dict: must be a torch.nn.Module; "
        "task.model_from(weights) makes one",
    ),
    "a forgotten deepen": (
        """
        maps = copying(task.source_config, task.target_config, task.rng)
        yield Phase(model=task.model_from(widen(task.read(task.source), maps)))
        """,
        "its layer axis has length 2, the model's 3: grow it by deepen(weights, layers)",
    ),
    "a forgotten widen": (
        "yield Phase(model=task.model_from(deepen(task.read(task.source), [0, 1, 1])))",
        "its width axis has length 16, the model's 24: grow it by widen(weights, maps)",
    ),
    "steps as a share": (
        "yield Phase(model=model, steps=0.5)",
        "mine.py, line 19: phase 'train': steps = 0.5: must be a whole number; share= takes a share of the budget",
    ),
    "steps that are not whole, beyond what a check trains": (
        "yield Phase(model=model, steps=4.5)",
        "phase 'train': steps = 4.5: must be a whole number",
    ),
    "a share as steps": (
        "yield Phase(model=model, share=3)",
        "mine.py, line 19: phase 'train': share = 3: must be above 0 and at most 1; steps= takes a number of steps",
    ),
    "steps and a share": (
        "yield Phase(model=model, steps=3, share=0.5)",
        "phase 'train': steps = 3 and share = 0.5: give one of them",
    ),
    "an operator's phase of no length": (
        "yield Phase(model=model, account='operator', name='aside')",
        "phase 'aside': is outside of the budget, so it must say steps= or share=",
    ),
    "an account that there is not": (
        "yield Phase(model=model, account='growth')",
        "phase 'train': account = 'growth': must be 'train' or 'operator'",
    ),
    "without end": (
        "while True:\n    yield Phase(model=model, steps=1, account='operator', name='again')",
        "after phase 'again': phases() still goes on after 20 phases",
    ),
    "trained between phases": (
        """
        trained = yield Phase(model=model, steps=2, name="short")
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        trained.optimizer.step()
        trained.optimizer.zero_grad()
        yield Phase(model=model)
        """,
        "after phase 'short': an optimizer stepped outside a phase",
    ),
    "an exception in its own code": (
        "yield Phase(model=model, steps=3, name='calm')\nraise KeyError('lost')",
        "after phase 'calm': mine.py, line 20: KeyError: 'lost'",
    ),
    "an exception in its loss": (
        """
        def loss(model, batch, step):
            raise ZeroDivisionError("by step 0")
        yield Phase(model=model, loss=loss)
        """,
        "phase 'train': mine.py, line 20: ZeroDivisionError: by step 0",
    ),
    "a loss that is not a number": (
        "yield Phase(model=model, loss=lambda model, batch, step: task_loss(model, batch) * torch.nan)",
        "phase 'train': step 1: the loss is nan",
    ),
}


COMPARED = ("work that changes", "Python's own randomness")  # found by counting FLOPs, and by a second run


@pytest.mark.parametrize("breach", BREACHES)
def test_a_broken_promise_is_named_with_its_phase(breach: str, tmp_path: Path) -> None:
    """Steps beyond the budget are not among these: a phase cannot have more than what is left of it."""
    body, line = BREACHES[breach]
    assert line in broken(tmp_path, textwrap.dedent(body), compares=breach in COMPARED)


def test_each_breach_is_one_line(tmp_path: Path) -> None:
    for body, line in list(BREACHES.values())[:3]:
        said = broken(tmp_path, textwrap.dedent(body), compares=False)
        assert line in said and "\n" not in said


def test_a_source_that_is_charged_must_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, SIMPLY)
    assert broken(tmp_path, SIMPLY) == ""
    path.write_text(path.read_text().replace("uses_source: ClassVar[bool] = False", "uses_source: ClassVar[bool] = True"))
    assert broken_promises(registry.get(str(path)).method, Cell("gpt2")) == [
        "uses_source is True, so the source is charged, but task.source is never read: write uses_source = False"
    ]


def test_a_schedule_of_rates_is_a_warning(tmp_path: Path) -> None:
    """The phase's schedule, and one of a param group; multipliers of 1, 0 and a slow start are none."""
    said = "a schedule never exceeds 0.001: it must return a multiple of the peak learning rate, 1 at the peak, and not a rate"
    for length in (
        "schedule=lambda step, steps: 1e-3",
        "optimizer=task.optimizer(model), group_schedules=[None, lambda *_: 1e-3]",
    ):
        seen = verdict(
            registry.get(str(written(tmp_path, f"yield Phase(model=model, {length})"))).method, Cell("gpt2"), compares=False
        )
        assert seen.warnings == [f"phase 'train': {said}"] and not seen.broken
    for multiplier in ("1.0", "0.0", "step / 1000 + (step == steps - 1)"):
        body = f"yield Phase(model=model, schedule=lambda step, steps: {multiplier})"
        assert not verdict(registry.get(str(written(tmp_path, body))).method, Cell("gpt2"), compares=False).warnings


def test_a_budget_that_is_not_used_up_is_a_warning(tmp_path: Path) -> None:
    """Unless the method asks for a share of it, as controls on purpose do. The limits of a check do not count."""
    for body, steps in {
        "yield Phase(model=model, steps=1)": 1,
        "yield Phase(model=model, share=0.5)\nyield Phase(model=model, steps=2)": 5,
        "for _ in range(4): yield Phase(model=model, steps=1)": 4,
    }.items():
        seen = verdict(registry.get(str(written(tmp_path, body))).method, Cell("gpt2"), compares=False)
        said = f"phases train {steps} of 6 steps of the budget: the rest is not trained; write share=1.0 or leave steps out"
        assert seen.warnings == [said] and not seen.broken
    for body in (
        "yield Phase(model=model, steps=task.budget)",
        "yield Phase(model=model, share=0.5)",
        "yield Phase(model=model, steps=1)\nyield Phase(model=model)",
        'yield Phase(model=model, steps=1, account="operator")\nyield Phase(model=model)',
    ):
        assert not verdict(registry.get(str(written(tmp_path, body))).method, Cell("gpt2"), compares=False).warnings


def test_an_attribute_that_is_mistyped_is_one_of_the_task(tmp_path: Path) -> None:
    seen = verdict(registry.get(str(written(tmp_path, "task.buidl()"))).method, Cell("gpt2"), compares=False)
    assert [line.partition("AttributeError: ")[2] for line in seen.broken] == ["'Task' object has no attribute 'buidl'"]


def test_a_share_of_1_is_the_whole_budget(tmp_path: Path) -> None:
    body = "trained = yield Phase(model=model, share=1)\nassert trained.steps == task.budget == 6"
    assert broken(tmp_path, body) == ""


def test_a_field_without_a_type_is_refused_where_the_class_is_made() -> None:
    with pytest.raises(UsageError, match=r"Typeless\.share = 0\.5 has no type: write share: float = 0\.5"):

        class Typeless(Method):
            paper = "https://example.org"
            share = 0.5

    with pytest.raises(UsageError, match=r"Typo\.use_source = False has no type: did you mean uses_source\? write "):

        class Typo(Method):
            paper = "https://example.org"
            use_source = False

            def phases(self, task: Task) -> Phases:
                yield Phase(model=task.build())


def test_a_plan_that_differs_from_the_run_is_a_breach(tmp_path: Path) -> None:
    body = "yield Phase(model=model, steps=1 if task.device.type == 'meta' else 2)\nyield Phase(model=model, name='rest')"
    assert "phase 'train': planned steps 1, in the run 2" in broken(tmp_path, body).replace("\n", "; ")


def test_what_cannot_be_planned_is_a_warning(tmp_path: Path) -> None:
    file = written(tmp_path, f"model.transformer.wte.weight.sum().item()\n{SIMPLY}")
    seen = verdict(registry.get(str(file)).method, Cell("gpt2"))
    assert not seen.broken and "cannot be planned without values" in seen.warnings[0]
    assert seen.lines() == ["gpt2, tied: kept, 1 phase: train"]


def test_a_refusal_is_no_breach(tmp_path: Path) -> None:
    method = registry.get(str(written(tmp_path, f"if task.target_config.tied: raise UsageError('untied only')\n{SIMPLY}"))).method
    assert verdict(method, Cell("gpt2")).lines() == ["gpt2, tied: refused: untied only"]
    assert verdict(method, Cell("gpt2", tied=False)).lines() == ["gpt2, untied: kept, 1 phase: train"]


def test_a_phase_of_many_steps_is_cut_short(tmp_path: Path) -> None:
    body = f"yield Phase(model=model, steps=1_000_000, account='operator', name='long')\n{SIMPLY}"
    assert broken(tmp_path, body) == ""


def test_every_architecture_is_there_tied_and_untied() -> None:
    assert [str(cell) for cell in miniatures.cells()] == [
        "bert, tied", "bert, untied", "cait", "dinov3", "gemma3, tied", "gpt2, tied", "gpt2, untied", "llama, tied",
        "llama, untied", "llama, grouped heads, tied", "mistral, tied", "modernbert, tied", "modernbert, untied",
        "olmo2, tied", "olmo3, tied", "qwen2, tied", "qwen3, tied", "roberta, tied", "roberta, untied", "smollm3, tied",
        "vit",
    ]  # fmt: skip


# --- the command


@pytest.fixture
def two_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one run of a method is checked."""
    monkeypatch.setattr(miniatures, "cells", lambda: [Cell("bert", tied=False), Cell("gpt2", tied=False)])


@pytest.mark.usefixtures("two_cells")
def test_check_of_a_built_in_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "scratch_short", "--set", "scratch_short.share=0.3"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"{cell}: kept, 1 phase: train" for cell in miniatures.cells()]
    assert last == "scratch_short keeps every promise in 2 of 2 miniatures"


@pytest.mark.usefixtures("two_cells")
def test_check_of_a_broken_file_says_where_and_ends_in_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "yield Phase(model=model, steps=2)\nraise KeyError('lost')")
    assert cli.main(["check", f"{file}:Mine"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "bert, untied: BROKEN: after phase 'train': mine.py, line 20: KeyError: 'lost'",
        "in 2 miniatures: after phase 'train': mine.py, line 20: KeyError: 'lost'",
        "mine breaks promises in 2 of 2 miniatures",
    ]


@pytest.mark.usefixtures("two_cells")
def test_check_warns_of_a_card_that_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, SIMPLY)
    file.write_text(file.read_text().replace('"""Break a promise."""', "").replace("https://example.org", "a paper"))
    assert cli.main(["check", str(file)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == [
        "warning: the docstring of Mine should begin with a sentence, on one line",
        "warning: Mine.paper should be a URL",
    ]


@pytest.mark.usefixtures("two_cells")
def test_a_method_that_refuses_everything_was_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(written(tmp_path, f"raise UsageError('not today')\n{SIMPLY}"))]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "mine refuses 2 of 2 miniatures, so nothing was checked: declare settings that it accepts, as miniature = "
        '{"target.width": 32} in the class, or give them by --set'
    )


DECLARED = "miniature = {'source.layers': 1, 'target.layers': 2, 'target.width': 32, 'train.schedule': 'wsd', 'train.steps': 4}"


@pytest.mark.usefixtures("two_cells")
def test_a_method_declares_the_settings_that_it_is_checked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The number of heads follows from the width. --set goes before what the class declares."""
    body = f"""
    small, large = task.source_config, task.target_config
    seen = (small.layers, small.width, large.layers, large.width, large.heads, task.training.schedule, task.budget)
    if seen != (1, 16, 2, 32, 4, 'wsd', 4): raise UsageError(f'seen {{seen}}')
    task.read(task.source)
    {SIMPLY}
    """
    file = written(tmp_path, textwrap.dedent(body))
    assert cli.main(["check", str(file)]) == 1
    file.write_text(file.read_text().replace("    scale: float = 1.0", f"    {DECLARED}\n    scale: float = 1.0"))
    assert cli.main(["check", str(file)]) == 0
    assert cli.main(["check", str(file), "--set", "train.steps=5"]) == 1
    assert "seen (1, 16, 2, 32, 4, 'wsd', 5)" in capsys.readouterr().out


def test_grouped_heads_follow_from_the_width() -> None:
    wide = Cell("llama", grouped=True).at({"target.width": 32}).experiment
    assert (wide.source.heads, wide.source.kv_heads, wide.target.heads, wide.target.kv_heads) == (4, 2, 8, 4)
    own = Cell("llama").at({"target.width": 32, "target.heads": 2}).at({"target.width": 64}).experiment
    assert (own.target.width, own.target.heads) == (32, 2), "a miniature's own settings go before others"


def test_only_some_architectures_and_what_growth_changed(capsys: pytest.CaptureFixture[str]) -> None:
    """Net2Net without noise preserves the function at whole ratios where norms come first, up to rounding in float32."""
    exact = ["--set", "net2net.noise=0.0", "--set", "target.width=32"]
    assert cli.main(["check", "net2net", *exact, "--only", "vit,bert"]) == 0
    bert, untied, vit, last = capsys.readouterr().out.splitlines()
    assert last == "net2net keeps every promise in 3 of 3 miniatures"
    changes = [float(line.rpartition("kept, 1 phase: train; growth changes the outputs by ")[2]) for line in (bert, untied, vit)]
    assert changes[0] > 1e-3 < changes[1] and changes[2] < 1e-6


@pytest.mark.usefixtures("two_cells")
def test_hyperparameters_reach_the_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, f"if self.scale != 2: raise UsageError(f'scale is {{self.scale}}')\n{SIMPLY}")
    assert cli.main(["check", str(file)]) == 1
    assert cli.main(["check", str(file), "--set", "mine.scale=2"]) == 0


@pytest.mark.usefixtures("two_cells")
def test_hyperparameters_may_have_a_default_that_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, f"assert self.order in ([2, 1], [1, 2]), self.order\n{SIMPLY}")
    field = "order: list[int] = field(default_factory=lambda: [2, 1])"
    source = file.read_text().replace("import dataclass,", "import dataclass, field,")
    file.write_text(source.replace("scale: float = 1.0", field))
    assert cli.main(["check", str(file)]) == 0
    assert cli.main(["check", str(file), "--set", "mine.order=[1, 2]"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "mine keeps every promise in 2 of 2 miniatures"
    assert cli.main(["check", str(file), "--set", "mine.order=3"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonesuch"], "unknown method 'nonesuch'"),
        (["./nonesuch.py"], "does not exist"),
        (["ligo", "--set", "ligo.nonesuch=1"], "unknown key ligo.nonesuch"),
        (["ligo", "--set", "data.corpus=5"], "check takes hyperparameters of its method, as ligo.KEY, and settings of its"),
        (["ligo", "--set", "target.widht=5"], "unknown key miniature.target.widht"),
        (["ligo", "--set", "target.width=15", "--only", "gpt2"], "source.width = 16 is larger than target.width = 15"),
        (["ligo", "--only", "gtp2"], "unknown architecture 'gtp2': did you mean gpt2?"),
        (["--aa", "--only", "gpt2"], "--only: not with --aa"),
        (["ki", "--set", "ki.share=2"], "share = 2.0: must be at least 0 and at most 1"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(("asked", "names"), [("scratch, ki", ["scratch", "ki"]), ("all", registry.names())])
def test_several_methods_or_all_are_checked(asked: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is reported. One that breaks a promise, whichever it is, decides the exit code."""
    reported: list[str] = []

    def report(found: Found, cells: Sequence[Cell]) -> int:
        assert [*cells] == cells_of(None, {})
        reported.append(found.name)
        return int(found.name == "scratch")

    monkeypatch.setattr(check, "report", report)
    assert cli.main(["check", asked]) == 1
    assert reported == names
