"""Methods that cannot be run are refused by their plan, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from growbench import cli, registry
from growbench.config import loading
from growbench.errors import UsageError
from growbench.planning.plan import CPU, Unplannable, plan, refuse

PLUGIN = '''
from dataclasses import replace

from growbench.method import Method, Phase, Phases, Task


class Mine(Method):
    """Train otherwise than it may be."""

    paper = "https://example.org"
    uses_source = False

    def phases(self, task: Task) -> Phases:
        {body}
'''
NEEDS_VALUES = "scale = next(task.build().parameters()).norm().item()"
SIMPLY = "yield Phase(model=task.build())"

REFUSED = {  # what a method does, and what it is told
    "a wrong final size": (
        "yield Phase(model=task.build(replace(task.target_config, width=48)))",
        "mine: the last scored model does not have the target's sizes: it has width = 48, the target 32",
    ),
    "a wrong size at the end of several phases": (
        f"yield Phase(model=task.build(), steps=4); {SIMPLY.replace('build()', 'build(replace(task.target_config, layers=1))')}",
        "mine: the last scored model does not have the target's sizes: it has layers = 1, the target 2",
    ),
    "more steps than the budget has, and a phase behind them": (
        "yield Phase(model=task.build(), steps=100, name='long'); yield Phase(model=task.build(), name='rest')",
        "mine: phase 'long' asked for 100 steps where the budget of 12 had 12 left, so nothing is left for phase 'rest': "
        "use fewer steps, or share=",
    ),
    "a share of which no step is left": (
        "yield Phase(model=task.build(), share=0.01)",
        "mine: phase 'train': 0 steps of a budget of 12: must have at least one",
    ),
    "an error of its own where it has no values": (
        f"{NEEDS_VALUES}; raise KeyError('lost')",
        "mine: mine.py, line 14: KeyError: 'lost'",
    ),
    "a wrong final size that depends on values": (
        f"{NEEDS_VALUES}; yield Phase(model=task.build(replace(task.target_config, layers=1 + (scale < 0))))",
        "mine: the last scored model does not have the target's sizes: it has layers = 1, the target 2",
    ),
    "no phase that depends on values": (
        f"{NEEDS_VALUES}\n        if scale < 0:\n            {SIMPLY}",
        "mine: no phase is scored: nothing is trained within the budget: write `yield Phase(model=...)`",
    ),
}


def written(folder: Path, body: str) -> Path:
    path = folder / "mine.py"
    path.write_text(PLUGIN.format(body=body), encoding="utf-8")
    return path


@pytest.mark.parametrize("what", REFUSED)
def test_a_method_is_refused_before_anything_is_trained(
    what: str, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line, and no run is stored, scratch's neither."""
    body, line = REFUSED[what]
    results = tmp_path / "results"
    assert cli.main(["run", str(miniature), "--methods", str(written(tmp_path, body)), "--results", str(results)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"growbench: {line}\n")
    assert not results.exists()


def test_a_method_that_only_cannot_be_planned_is_not_refused(miniature: Path, tmp_path: Path) -> None:
    experiment = loading.load(str(miniature))
    found = registry.get(str(written(tmp_path, f"{NEEDS_VALUES}; {SIMPLY}")))
    with pytest.raises(Unplannable, match=r"mine cannot be planned without values of weights: mine\.py, line 14: "):
        plan(experiment, found, 300)
    refuse(experiment, found, 300, CPU)


def test_a_budget_that_is_used_up_ends_the_phases(miniature: Path, tmp_path: Path) -> None:
    """More steps than are left are cut where nothing comes behind them; a phase behind the last step is left out."""
    experiment = loading.load(str(miniature))
    model = "model = task.build(); "
    for body in (
        f"{model}yield Phase(model=model, steps=5); yield Phase(model=model, steps=100)",
        f"{model}yield Phase(model=model, steps=5); yield Phase(model=model); yield Phase(model=model, steps=100)",
    ):
        planned = plan(experiment, registry.get(str(written(tmp_path, body))), 300)
        assert [phase.steps for phase in planned] == [5, 7]


def test_a_budget_that_is_too_small_is_refused_by_the_share(miniature: Path) -> None:
    """StackBERT's first stage is an eighth of the budget."""
    experiment = loading.load(str(miniature), ["train.steps=10"])
    stages = registry.get("stackbert")
    refuse(experiment, stages, 300, CPU)
    with pytest.raises(UsageError, match="at least one"):
        refuse(experiment.at(0.3, {}), stages, 300, CPU)
