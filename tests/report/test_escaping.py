"""Nothing that comes from files becomes markup: names, titles, errors, settings of runs, and trials of tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from growbench import report
from growbench.report import live, parts
from tests.report.results import METHODS, Page, fail, read, write_results

HOSTILE = """</style></title></pre>"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}&amp;"""
TAGS = """html lang|head|meta charset|meta name|meta content|title|style|body|h1|h2|h3|p|p class|b|i|ul|li|span|span class
|span style|div|div class|table|table id|table class|thead|tbody|tr|tr class|th|th class|th colspan|td|td class|td data-head|small
|figure|figure id|figure class|figure data-figure|figcaption|details|details class|summary|pre|dl|dt|dd|nav aria-label|nav class
|main|h2 id|a href|a class|a aria-label|p id|div id|div tabindex|tr data-method|svg|svg class|svg viewbox|svg role|svg font-size
|td colspan|svg aria-labelledby|svg aria-describedby|title id|desc id|h2 class|script|script id|script type"""
KNOWN = {tag for entry in TAGS.replace("\n", "").split("|") for tag in (entry, entry.split()[0])}


def spoiled(value: Any) -> Any:
    """Hostile text behind every text in a record but the words that the program itself knows."""
    if isinstance(value, dict):
        return {key: spoiled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [spoiled(each) for each in value]
    return value + HOSTILE if isinstance(value, str) and value not in ("finished", "failed", "scratch", "source") else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three experiments, one of them with hostile text wherever a run's files may hold text."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("one", "two"):
        write_results(folder / name, 2)
    bad = write_results(folder / "<script>alert(2)<&", 2)
    fail(bad / "stackbert-seed1")
    for path in bad.glob("*/run.json"):
        record = spoiled(json.loads(path.read_text()))
        record["config"]["method"] |= {"train.lr": 0.001, "init": HOSTILE}
        record["config"]["experiment"][HOSTILE] = {HOSTILE: HOSTILE}
        path.write_text(json.dumps(record))
    for path in bad.glob("*/curve.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "phase": row["phase"] + HOSTILE}) + "\n" for row in rows))
    (bad / "tuning").mkdir()
    quoted = HOSTILE.replace('"', '""')
    (bad / "tuning" / "trials.csv").write_text(
        f'method,trial,seeds,status,loss,flops,train.lr,error\n"ligo{quoted}",0,"0{quoted}",failed,,1e12,0.001,"{quoted}"\n'
    )
    return folder


@pytest.fixture(scope="module")
def pages(folder: Path) -> list[Path]:
    return report.make_all(folder)


def test_hostile_text_stays_text(pages: list[Path]) -> None:
    shown = [read(page) for page in pages]
    for page in shown:
        assert page.tags <= KNOWN
        assert [script.strip() for script in page.scripts[1:]] == [
            live.asset(name).strip() for name in live.SCRIPTS if page.scripts
        ]
    (bad,) = [page for page in shown if HOSTILE in page.title]
    assert {method["name"] for method in json.loads(bad.scripts[0])["methods"]} == {
        "scratch",
        *(name + HOSTILE for name in METHODS if name != "scratch"),
    }
    for what in ("hyperparameters", "values"):
        assert any(cell.head == what and HOSTILE in cell.text for rows in bad.tables.values() for row in rows for cell in row)
    assert set(METHODS) - {"scratch"} == {name.removesuffix(HOSTILE) for name in bad.methods("savings-table")} - {"scratch"}
    assert f"loss is not finite{HOSTILE}" in bad.text and f"(most recent call last): ...{HOSTILE}" in bad.text
    assert f"Some CPU{HOSTILE}" in bad.text and f"wikipedia-sample{HOSTILE}" in bad.text
    assert "<script>alert(2)<&" in shown[-1].text and HOSTILE in shown[-1].text


def test_what_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="experiments"):
        parts.render("board.html", title="all")


def test_a_page_is_escaped_by_default() -> None:
    page = Page(parts.render("base.html", title="<b>&"))
    assert page.title == "<b>&" and "b" not in page.tags
