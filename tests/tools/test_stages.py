"""A run's stages: which process a method belongs to, and what each is told. Nothing is imported to find out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from growbench import cli, registry
from growbench.config.loading import load
from growbench.costs.ledger import Costs
from growbench.method import Method, Phase, Phases, Task
from growbench.method.interface import MethodError
from growbench.planning.budgets import MethodCost
from growbench.planning.plan import META, walk
from growbench.runs.apart import Died
from growbench.tools import stages
from growbench.tools.miniatures import VOCABULARY, Cell
from growbench.training.phases import MOST_PHASES, Limits


@pytest.mark.parametrize(
    ("spec", "options", "foreign"),
    [
        ("ligo", {}, False),
        ("random_source", {"like": "ligo"}, False),
        ("random_source", {"like": "./mine.py:Mine"}, True),
        ("random_source", {"like": ["ligo", {"other": "mine.py"}]}, True),
        ("./nowhere.py", {}, True),
        ("lego", {}, False),
    ],
)
def test_whose_a_method_is_is_told_without_its_code(spec: str, options: dict[str, Any], foreign: bool) -> None:
    assert registry.is_foreign(spec, options) == foreign


def test_a_built_in_around_a_plugin_is_foreign(tmp_path: Path) -> None:
    class Wraps(Method):
        wraps: ClassVar[tuple[str, ...]] = ("./mine.py",)

        def phases(self, task: Task) -> Phases:
            yield Phase(model=task.build())

    assert registry.Found("ligo", registry.get("ligo").method, "").foreign is False
    assert registry.Found("wraps", Wraps(), "").foreign is True


def test_each_plugin_has_processes_of_its_own(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """First each is checked, then all others are trained, with what the plugins need of them, and then each plugin."""
    called: list[Any] = []

    def answer(function: Callable[..., Any], options: Any, *rest: Any) -> Any:
        called.append((function.__name__, *rest))
        if function is stages._check_alone:
            name = Path(rest[0]).stem
            return stages.Checked(name, [1] if name == "one" else [], MethodCost(7.0, True))
        if rest[0] == "./two.py":
            raise Died("ended by itself, with exit code 0")
        return True

    monkeypatch.setattr("growbench.runs.apart.apart", answer)
    monkeypatch.chdir(tmp_path)
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("raise AssertionError")
    specs = ["scratch", "ligo", "./one.py", "./two.py"]
    options = cli.parser().parse_args(["run", str(miniature), "--methods", ",".join(specs)])
    assert not stages.train(options, specs, load(str(miniature)))
    costs = {name: MethodCost(7.0, True) for name in ("one", "two")}
    assert called == [
        ("_check_alone", "./one.py"),
        ("_check_alone", "./two.py"),
        ("_train", ["scratch", "ligo"], [1], costs),
        ("_train_alone", "./one.py"),
        ("_train_alone", "./two.py"),
    ]
    line = "two                failed: its process ended by itself, with exit code 0 before its runs were finished\n"
    assert capsys.readouterr().err == line


def test_built_in_methods_start_no_process(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[list[str]] = []
    monkeypatch.setattr("growbench.runs.apart.apart", None)
    monkeypatch.setattr(stages, "_train", lambda options, specs: trained.append(specs) or True)
    assert stages.train(cli.parser().parse_args(["run"]), ["scratch", "ligo"], load(str(miniature)))
    assert trained == [["scratch", "ligo"]]


class Endless(Method):
    """Never enough."""

    paper: ClassVar[str] = ""
    uses_source: ClassVar[bool] = False

    def phases(self, task: Task) -> Phases:
        model = task.build()
        while True:
            yield Phase(model=model, steps=1, account="operator")


def test_an_endless_generator_is_refused() -> None:
    """By default after many more phases than any method has."""
    assert Limits().phases == MOST_PHASES
    with pytest.raises(MethodError, match="still goes on after 3 phases, within a budget of 6 steps"):
        list(walk(Cell("gpt2").experiment, Endless(), VOCABULARY, Costs(META), Limits(phases=3)))
