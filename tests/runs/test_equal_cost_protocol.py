"""`--protocol equal-cost` from end to end: which scratch runs it trains, what they cost, and what the report makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from growbench import cli
from growbench.costs.accounts import Ledger, Unit
from growbench.runs import store
from growbench.runs.store import Run
from tests.conftest import Once, WriteMiniature

METHODS = ("stackbert", "bert2bert")


def run(*arguments: str | Path) -> int:
    return cli.main(["run", *map(str, arguments)])


@pytest.fixture(scope="module")
def results(once: Once, write_miniature: WriteMiniature) -> Path:
    """Two seeds under the protocol."""

    def train(folder: Path) -> None:
        common = "--results", folder, "--methods", ",".join(METHODS), "--seeds", "0,1", "--protocol", "equal-cost"
        assert run(write_miniature(folder), *common) == 0

    return once("equal cost", train)


@pytest.fixture(scope="module")
def trained(results: Path) -> dict[str, Run]:
    """Their runs, by name."""
    return {found.name: found for found in store.load_all(results / "miniature")}


def flops(run: Run, ledger: Ledger = Ledger.REUSE) -> float:
    return run.cost(Unit.FLOPS, ledger)


def test_scratch_is_trained_at_the_cost_of_each_method_with_a_schedule_of_its_own(trained: dict[str, Run]) -> None:
    """Beside the full budget two runs a seed: bert2BERT costs exactly the full one where its source is free."""
    for seed in (0, 1):
        scratch = {name: found for name, found in trained.items() if name.startswith(f"scratch-seed{seed}")}
        assert len(scratch) == 3
        full = scratch[f"scratch-seed{seed}"]
        step = flops(full) / full.record.steps
        for method, ledger in (("stackbert", Ledger.REUSE), ("bert2bert", Ledger.REUSE), ("bert2bert", Ledger.BUILD)):
            cost = flops(trained[f"{method}-seed{seed}"], ledger)
            (equal,) = (found for found in scratch.values() if found.record.steps == round(cost / step))
            assert flops(equal) == pytest.approx(cost, abs=step / 2)
            assert equal.record.budget_share * full.record.steps == pytest.approx(equal.record.steps, abs=0.5)
            assert equal.curve[-1]["lr"] < max(row["lr"] for row in equal.curve) / 5
    assert {name for name in trained if "budget" in name and not name.startswith("scratch")} == set()


def test_what_is_done_is_not_done_again(
    results: Path, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method that costs as much as another one asks for no further run."""
    shutil.copytree(results / "miniature", tmp_path / "miniature")
    capsys.readouterr()
    assert run(miniature, "--results", tmp_path, "--methods", "net2net", "--protocol", "equal-cost") == 0
    said = capsys.readouterr().err
    assert "net2net-seed0      finished" in said and "scratch-seed0-budget" in said
    assert not [line for line in said.splitlines() if line.startswith("scratch") and "finished" in line]


def test_the_report_sets_a_methods_loss_beside_the_run_of_its_cost(trained: dict[str, Run], results: Path) -> None:
    table = pd.read_csv(results / "miniature" / "report" / "equal_cost.csv").set_index(["method", "ledger"])
    assert list(table["seeds"]) == [2] * 4
    full = trained["scratch-seed0"]
    step = flops(full) / full.record.steps
    for method, ledger in table.index:
        pairs = []
        for seed in (0, 1):
            own = trained[f"{method}-seed{seed}"]
            steps = round(flops(own, Ledger(ledger)) / step)
            (scratch,) = (
                found for found in trained.values()
                if (found.record.method, found.record.seed, found.record.steps) == ("scratch", seed, steps)
            )  # fmt: skip
            pairs.append(own.final_loss - scratch.final_loss)
        assert table.loc[(method, ledger), "difference"] == pytest.approx(sum(pairs) / 2)


def test_of_scratchs_runs_under_wsd_those_below_the_full_budget_branch_off_it(miniature: Path, tmp_path: Path) -> None:
    """A longer one is trained alone; a method of the ladder has no run above the full budget."""
    schedule = "--set", "train.schedule=wsd", "--set", "train.steps=10", "--methods", "bert2bert"
    assert run(miniature, *schedule, "--results", tmp_path, "--protocol", "ladder", "--budgets", "0.5,1,1.5") == 0
    trained = {found.name: found for found in store.load_all(tmp_path / "miniature")}
    assert {name: found.record.steps for name, found in trained.items() if name != "source-seed0"} == {
        "scratch-seed0-budget1.5": 15, "scratch-seed0": 10, "scratch-seed0-budget0.5": 5,
        "bert2bert-seed0": 10, "bert2bert-seed0-budget0.5": 5,
    }  # fmt: skip
    assert {name for name, found in trained.items() if found.record.inherited} == {
        "scratch-seed0-budget0.5", "bert2bert-seed0-budget0.5",
    }  # fmt: skip
    assert not list(tmp_path.rglob("checkpoints"))
