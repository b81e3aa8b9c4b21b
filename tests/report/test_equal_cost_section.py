"""What a page says of equal cost: the figures of equal_cost.csv, why some are missing, and what is not borne out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from growbench import report
from growbench.analysis.comparison import Comparison, analyse
from growbench.analysis.equal_cost import Outcome, notes
from growbench.formatting import difference, p_value
from tests.report.results import METHODS, fail, read, write_results, write_run


def test_the_table_holds_the_figures_of_the_csv_in_both_ledgers(climbed: Path) -> None:
    """A ladder up to the full budget: what costs less is known, what costs more is not."""
    page, table = read(climbed / "index.html"), pd.read_csv(climbed / "equal_cost.csv").set_index(["method", "ledger"])
    assert set(page.methods("equal-cost-table")) == set(METHODS) - {"scratch"}
    row, found = page.row("equal-cost-table", "stackbert"), table.loc["stackbert", "build"]
    assert 0.7 < found["budget"] < 1 and row["build: scratch's budget"] == f"{found['budget']:.3g}"
    assert row["build: difference"] == difference(*found[["difference", "low", "high"]])
    assert row["build: p"] == p_value(found["p_holm"])
    assert row["build: scratch's loss"] == f"{found['scratch_loss']:.3f}"
    assert row["final loss"] == f"{found['final_val_loss']:.3f}"
    assert page.row("equal-cost-table", "ligo")["build: difference"] == "not known"
    budget = table.loc[("ligo", "build"), "budget"]
    assert f"ligo, build: not known: scratch has no run at {budget:.3g} of its budget." in page.text


def test_a_reason_of_both_ledgers_is_said_once(made: Path) -> None:
    """In the fixture a run of stackbert failed."""
    assert "stackbert, reuse and build: not known: stackbert-seed1 did not finish." in read(made / "index.html").text


def test_scratch_alone_has_no_section(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "alone", 2, {"scratch": METHODS["scratch"]})
    page = read(report.make(folder))
    assert "equal-cost-table" not in page.tables and "Equal cost" not in page.text


@pytest.fixture(scope="module")
def longer_scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """Three seeds, and scratch at the cost of every method with its source: there it ends far lower."""
    folder = write_results(tmp_path_factory.mktemp("longer") / "results", 3)
    for seed in range(3):
        for budget in (0.85, 1.425):
            write_run(folder, "scratch", seed, METHODS["scratch"], np.random.default_rng([9, seed, int(100 * budget)]), budget)
    return folder, analyse(folder)


def test_scratchs_other_budgets_alone_make_no_ladder(longer_scratch: tuple[Path, Comparison], tmp_path: Path) -> None:
    """Savings are read off the single runs, as without them; the page has no ladder, and names the runs that failed."""
    folder, comparison = longer_scratch
    assert comparison.ladder.empty and {run.record.budget_share for run in comparison.runs} == {1.0}
    before = analyse(write_results(tmp_path / "before", 3))
    pd.testing.assert_frame_equal(comparison.savings, before.savings)
    shutil.copytree(folder, tmp_path / "results")
    fail(tmp_path / "results" / "scratch-seed1-budget1.425", "loss is not finite")
    page = read(report.make(tmp_path / "results"))
    assert "ladder-table" not in page.tables
    assert "scratch-seed1-budget1.425 failed at step 200: loss is not finite" in page.text


def test_a_saving_that_equal_cost_does_not_bear_out_is_noted(longer_scratch: tuple[Path, Comparison]) -> None:
    _, comparison = longer_scratch
    said = comparison.savings.assign(flops_verdict_build="saves", flops_verdict_reuse="saves")
    found = [replace(each, verdict=Outcome.HIGHER) if each.ledger == "build" else each for each in comparison.equal_cost]
    noted = notes(found, said)
    assert [note.partition(" meets")[0] for note in noted if "ends lower" in note] == [
        "bert2bert (build)", "ligo (build)", "stackbert (build)",
    ]  # fmt: skip
    assert set(notes(comparison.equal_cost, comparison.verdicts)) <= set(comparison.notes)
