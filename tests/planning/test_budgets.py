"""How many steps scratch trains at each method's cost: by hand, and as `growbench run --dry-run` says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growbench import cli
from growbench.config import loading
from growbench.config.schema import Pretrained
from growbench.planning.budgets import Budgets, equal_cost, share_of
from growbench.planning.plan import plan, plan_source
from growbench.registry import Found, get, get_all

STEPS = 12  # of the miniature's budget


def methods(*names: str) -> list[Found]:
    return get_all(["scratch", *names], {"ligo": {"operator_steps": 3}})


def steps_of(budgets: Budgets) -> dict[str, int]:
    """By method, or method and ledger, the steps of scratch at its cost."""
    return {whose: round(share * STEPS) for share, names in budgets.scratch_alone.items() for whose in names}


def test_scratch_trains_for_as_many_steps_as_the_methods_flops_pay_for(miniature: Path) -> None:
    """LiGO pays for its operator in both ledgers and for its source in one; StackBERT's early stages are cheap."""
    experiment = loading.load(str(miniature))
    step = plan(experiment, get("scratch"), 300)[0].charged_per_step
    small = sum(phase.flops for phase in plan_source(experiment, 300))
    grown = sum(phase.flops for phase in plan(experiment, methods("ligo")[1], 300))
    stages = sum(phase.flops for phase in plan(experiment, get("stackbert"), 300))
    assert steps_of(equal_cost(experiment, methods("ligo", "stackbert"), 300, None)) == {
        "ligo, reuse": round(grown / step),
        "ligo, build": round((grown + small) / step),
        "stackbert": round(stages / step),
    }
    assert stages / step < STEPS - 0.5 < STEPS + 0.5 < grown / step


def test_several_processes_pay_for_what_each_computes_for_itself(miniature: Path) -> None:
    """Each makes the weights of LiGO's operator; its parts of batches add up to the whole."""
    experiment, ligo = loading.load(str(miniature)), get("ligo", {"operator_steps": 20})
    half = replace(experiment, train=replace(experiment.train, batch=experiment.train.batch // 2))
    (learned, _), (in_one_half, _) = plan(experiment, ligo, 300), plan(half, ligo, 300)
    weights = 2 * in_one_half.charged_per_step - learned.charged_per_step
    step = plan(experiment, get("scratch"), 300)[0].charged_per_step
    alone, both = (steps_of(equal_cost(experiment, [get("scratch"), ligo], 300, None, degree)) for degree in (1, 2))
    assert both["ligo, reuse"] - alone["ligo, reuse"] == pytest.approx(20 * weights / step, abs=1)
    assert both["ligo, reuse"] > alone["ligo, reuse"] + 1


def test_methods_of_the_same_cost_share_one_run_and_the_full_budget_is_no_second_one(miniature: Path) -> None:
    experiment = loading.load(str(miniature))
    budgets = equal_cost(experiment, methods("bert2bert", "net2net", "random_source"), 300, None)
    assert list(budgets.scratch_alone.values()) == [
        ("bert2bert, reuse", "net2net, reuse", "random_source"),
        ("bert2bert, build", "net2net, build"),
    ]
    above, full = budgets.of("scratch")
    assert above > full == 1 and budgets.of("bert2bert") == [1]


def test_the_cost_of_a_pretrained_source_is_the_one_that_is_given(miniature: Path) -> None:
    experiment = replace(loading.load(str(miniature)), pretrained=Pretrained("somewhere"))
    step = plan(experiment, get("scratch"), 300)[0].charged_per_step
    known = equal_cost(experiment, methods("bert2bert"), 300, 5 * step)
    assert steps_of(known) == {"bert2bert, reuse": STEPS, "bert2bert, build": STEPS + 5}
    assert steps_of(equal_cost(experiment, methods("bert2bert"), 300, None)) == {"bert2bert, reuse": STEPS}


@given(budget=st.integers(1, 10**8), steps=st.integers(1, 10**9))
def test_a_share_says_its_number_of_steps_in_few_digits(budget: int, steps: int) -> None:
    """A folder's name holds twelve digits of it: two runs of different steps never share one."""
    share = share_of(steps, budget)
    assert round(share * budget) == steps
    assert float(f"{share:.12g}") == share


def test_a_share_is_as_short_as_it_can_be() -> None:
    assert [share_of(steps, 1000) for steps in (700, 856, 1000, 1283)] == [0.7, 0.856, 1, 1.283]
    assert share_of(2492, 3000) == 0.8307


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert cli.main(["run", *map(str, arguments), "--dry-run", "--throughput", "1e9"]) == 0
    return capsys.readouterr().out


def test_a_dry_run_shows_scratchs_runs_with_their_costs_and_whose_they_are(
    miniature: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = dry_run(capsys, miniature, "--methods", "ligo,stackbert", "--protocol", "equal-cost").splitlines()
    rows = {line[:22].strip(): line.split() for line in lines if line.startswith("scratch")}
    below = {line[:22].strip(): lines[place + 1].strip() for place, line in enumerate(lines) if line.startswith("scratch")}
    experiment = loading.load(str(miniature))
    expected = equal_cost(experiment, methods("ligo", "stackbert"), 300, None)
    assert list(rows) == ["scratch" + f" x {share:g}" * (share != 1) for share in expected.of("scratch")]
    for share, names in expected.scratch_alone.items():
        assert below[f"scratch x {share:g}"] == "costs as much as " + "; ".join(names)
        assert int(rows[f"scratch x {share:g}"][3]) == round(share * STEPS)


def test_a_ladders_budgets_above_the_full_one_are_scratchs_alone(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "--methods", "bert2bert", "--protocol", "ladder", "--budgets", "0.5,1,1.5"
    names = [line[:22].strip() for line in dry_run(capsys, miniature, *asked).splitlines()]
    assert [name for name in names if name.startswith(("scratch", "bert"))] == [
        "scratch x 1.5", "scratch", "scratch x 0.5", "bert2bert", "bert2bert x 0.5",
    ]  # fmt: skip


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What is said in one line by a command that does nothing else."""
    assert cli.main(["run", *map(str, arguments), "--protocol", "equal-cost"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_what_cannot_be_done_at_equal_cost_is_refused_in_one_line(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = refusal(capsys, miniature, "--methods", "scratch_short", "--set", "train.warmup=7")
    assert "scratch at the cost of scratch_short: warmup = 7: must be" in few
    stop = "--stop-at-target", "--target-loss", "5"
    assert "--stop-at-target: not with --protocol equal-cost" in refusal(capsys, miniature, *stop)
    assert "--budgets: only with --protocol ladder" in refusal(capsys, miniature, "--budgets", "0.5,1")
    mine = tmp_path / "mine.py"
    mine.write_text(UNPLANNABLE, encoding="utf-8")
    unknown = refusal(capsys, miniature, "--methods", mine)
    assert "needs the cost of every method before it is trained, but mine cannot be planned without values of weights" in unknown


UNPLANNABLE = '''
from growbench.method import Method, Phase, Phases, Task


class Mine(Method):
    """Train for as many steps as the norm of a weight says."""

    paper = "https://example.org"
    uses_source = False

    def phases(self, task: Task) -> Phases:
        model = task.build()
        next(model.parameters()).norm().item()
        yield Phase(model=model)
'''


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ("0.01,1", "growbench: --budgets 0.01: too little of 12 steps: steps = 0: must be above 0 and finite"),
        ("0.1,1", "growbench: --budgets 0.1: too little of 12 steps: warmup = 2: must be at least 0 and below steps = 1"),
        ("0.5,0.50001,1", "growbench: --budgets 0.5,0.50001: both are 6 of 12 steps: give one"),
    ],
)
def test_budgets_that_make_no_ladder_are_refused_by_name(
    budgets: str, said: str, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = ["--protocol", "ladder", "--budgets", budgets, "--results", tmp_path / "results", "--dry-run"]
    assert cli.main(["run", str(miniature), "--methods", "scratch", *map(str, ladder)]) == 2
    refused = capsys.readouterr().err
    assert refused.startswith(said) and refused.count("\n") == 1


def test_a_dry_run_says_short_times_in_seconds(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(capsys, miniature, "--methods", "scratch").splitlines()
    (scratch,) = (line.split() for line in lines if line.startswith("scratch"))
    assert scratch[-1] == "s" and 0 < float(scratch[-2]) < 1
