"""The board of several experiments, and which folders are experiments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from growbench import report
from growbench.errors import UsageError
from growbench.formatting import percent
from tests.report.results import METHODS, Page, change, fail, read, write_results, write_run

Figures = Callable[[], AbstractContextManager[None]]


def write_experiments(folder: Path, methods: list[list[str]]) -> Path:
    """Experiments of one seed with these methods beside scratch."""
    for number, names in enumerate(methods):
        chosen = {method: METHODS.get(method, METHODS["ligo"]) for method in ("scratch", *names)}
        write_results(folder / f"experiment {number}", 1, chosen)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The reports of three experiments; ligo was not run in one of them, and beside them lies what is no experiment."""
    folder = tmp_path_factory.mktemp("several")
    write_experiments(folder, [["ligo", "bert2bert"], ["bert2bert", "<b>"], ["ligo", "bert2bert"]])
    change(folder / "experiment 0/ligo-seed0", keeps_source=True)
    for name in ("tuning", "notes"):
        (folder / name).mkdir()
    for budget in (0.4, 0.7):
        for method in ("scratch", "bert2bert"):
            write_run(folder / "experiment 1", method, 0, METHODS[method], noise=np.random.default_rng(5), budget=budget)
    return report.make_all(folder)


def test_several_experiments_have_a_board_with_links(several: list[Path]) -> None:
    *pages, index = several
    folder = index.parents[1]
    assert pages == [folder / f"experiment {number}/report/index.html" for number in range(3)] and all(map(Path.is_file, pages))
    assert index == folder / "report/index.html"
    made = {"index.html", "overview.csv", "overview.md", "mean_ratios.csv", "performance_profile.csv"}
    assert {path.name for path in index.parent.iterdir()} == made
    text = index.read_text(encoding="utf-8")
    links = [unquote(link) for link in Page(text).links if link.endswith(".html")]
    assert [(index.parent / link).resolve() for link in links] == [page.resolve() for page in pages]
    backs = [unquote(link) for link in read(pages[0]).links if link.endswith(".html")]
    assert [(pages[0].parent / link).resolve() for link in backs] == [index.resolve()]
    assert "<script" not in text and "<b>" not in text and "&lt;b&gt;" in text
    assert "Not shown, since not run in every experiment: &lt;b&gt;, ligo†." in text
    assert "keeps its source" in text


def test_the_board_holds_every_saving_in_both_ledgers(several: list[Path]) -> None:
    rows = read(several[-1]).methods("board")["bert2bert"]
    for index in several[:-1]:
        saved = pd.read_csv(index.with_name("savings.csv")).set_index("method").loc["bert2bert"]
        for ledger, row in zip(("reuse", "build"), rows, strict=True):
            shown = percent(saved[f"flops_saving_{ledger}"])
            assert row["ledger"] == ledger and row[index.parents[1].name] == shown
    table = pd.read_csv(several[-1].with_name("overview.csv"))
    assert {("experiment 1", "<b>"), ("experiment 2", "ligo")} <= set(zip(table["experiment"], table["method"], strict=True))


def test_the_board_has_a_column_for_a_ladder_and_is_there_as_markdown(several: list[Path]) -> None:
    text = several[-1].with_name("overview.md").read_text(encoding="utf-8")
    head, _, *rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    assert [name.strip() for name in head[2:]] == ["experiment 0", "experiment 1", "experiment 1, ladder", "experiment 2"]
    ladder = pd.read_csv(several[1].with_name("ladder_savings.csv")).set_index("method").loc["bert2bert"]
    (reuse,) = [row for row in rows if [cell.strip() for cell in row[:2]] == ["bert2bert", "reuse"]]
    assert percent(ladder["flops_saving_reuse"]) in reuse[4] and percent(ladder["flops_saving_reuse"]) not in reuse[3]
    assert "ligo†" in text and "keeps its source" in text
    assert "experiment 1, ladder" in read(several[-1]).methods("board")["bert2bert"][0]


def test_what_cannot_be_compared_is_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_experiments(tmp_path, [["ligo"], ["ligo"], ["ligo"]])
    fail(folder / "experiment 1/scratch-seed0")
    for name in ("tuning", "notes"):
        (folder / name).mkdir()
    *pages, index = report.make_all(folder)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in said] == ["experiment 1", "notes"]
    assert len(pages) == 2 and not (index.parent / "performance_profile.svg").exists()  # two experiments are too few


def test_runs_that_were_replaced_are_no_experiment(tmp_path: Path) -> None:
    write_results(tmp_path / "replaced", 1)
    with pytest.raises(UsageError):
        report.make_all(tmp_path)


def test_one_experiment_is_reported_alone(tmp_path: Path) -> None:
    folder = write_experiments(tmp_path / "results", [["ligo"]])
    assert report.make_all(folder) == [folder / "experiment 0/report/index.html"]
    assert report.make_all(folder / "experiment 0", tmp_path / "out") == [tmp_path / "out/index.html"]
    assert not (folder / "report").exists()


def test_several_experiments_elsewhere_and_refusals(tmp_path: Path) -> None:
    folder = write_experiments(tmp_path / "results", [["ligo"], ["ligo"]])
    pages = report.make_all(folder, tmp_path / "out")
    assert pages == [tmp_path / "out" / name / "index.html" for name in ("experiment 0", "experiment 1", "")]
    assert 'href="experiment%200/index.html"' in pages[-1].read_text(encoding="utf-8")
    assert not list(folder.glob("**/report"))
    with pytest.raises(UsageError, match="holds 2 experiments; name one"):
        report.make_all(folder, target_loss=5.0)
    for path in folder.glob("*/scratch-seed0"):
        fail(path)
    with pytest.raises(UsageError, match="nothing to compare"):
        report.make_all(folder)
    with pytest.raises(UsageError, match=r"absent: there is no such folder$"):
        report.make_all(tmp_path / "absent")
