"""The Python interface to stored results says what the report's files say."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from growbench.errors import UsageError
from growbench.notebook import Ledger, Results, compare
from growbench.report import sheets

REFERENCE = Path(__file__).parents[2] / "results/reference/gpt2-tiny"


@pytest.fixture(scope="module")
def results() -> Results:
    return compare(str(REFERENCE))


def test_outcomes_and_tables_are_those_of_the_committed_report(results: Results) -> None:
    rows = {row["method"]: row for row in sheets.read(REFERENCE / "report" / "savings.csv").to_dict("records")}
    assert list(results.savings["method"]) == list(rows)
    for method in ("bert2bert", "ligo", "stackbert"):
        for ledger in Ledger:
            found = results.outcome(method, str(ledger))
            for unit, saving in (("flops", found.flops), ("seconds", found.seconds)):
                for end, value in (("", saving.mean), ("_low", saving.low), ("_high", saving.high)):
                    assert value == float(rows[method][f"{unit}_saving_{ledger}{end}"])
            assert found.verdict == rows[method][f"flops_verdict_{ledger}"]
            assert found.p == float(rows[method][f"flops_p_holm_{ledger}"])
    for table, name in ((results.curves, "loss_vs_flops"), (results.runs, "savings_by_seed")):
        stored = sheets.read(REFERENCE / "report" / f"{name}.csv")
        assert list(table) == list(stored) and len(table) == len(stored)
    assert str(results) == (REFERENCE / "report" / "verdict.txt").read_text(encoding="utf-8")
    assert results.headline.split(":")[0] in " ".join(str(results).split()) and "stackbert" in results._repr_html_()


def test_a_table_that_is_changed_changes_no_other(results: Results) -> None:
    savings, runs = results.savings, results.runs
    savings["method"] = runs["method"] = "mine"
    assert "ligo" in set(results.savings["method"]) & set(results.runs["method"])


def test_every_figure_is_drawn_as_in_the_report(results: Results) -> None:
    before = plt.rcParams["font.size"], plt.rcParams["axes.spines.top"]
    stored = {file.stem for file in (REFERENCE / "report").glob("*.png")}
    assert set(results.figures) == stored and "loss_vs_flops" in stored
    figure = results.plot("savings", width=5)
    assert figure.get_figwidth() == 5 and figure.axes
    assert before == (plt.rcParams["font.size"], plt.rcParams["axes.spines.top"])


def test_unknown_names_are_refused(results: Results) -> None:
    with pytest.raises(UsageError, match=r"no method 'lgio' was compared: did you mean ligo\?"):
        results.outcome("lgio")
    with pytest.raises(UsageError, match=r"no figure 'loss': "):
        results.plot("loss")
    with pytest.raises(ValueError, match="free"):
        results.outcome("ligo", "free")
    with pytest.raises(UsageError, match="no ended run"):
        compare(REFERENCE.parent)
