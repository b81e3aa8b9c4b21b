"""The page in a browser: on a phone nothing scrolls but tables in their boxes and no number wraps; on paper it has four pages.

And everybody can read what it is where scripts are off.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib import style
from selenium.webdriver import Chrome, Keys

from growbench.analysis.comparison import analyse
from growbench.report import drawing, inline, page, plots
from tests.report.browser import hindrances, pretend

MINI = Path(__file__).parents[2] / "results/mini/gpt2-mini"
PHONE = 400  # pixels
FIGURES = ("ladder_savings", "loss_vs_flops", "ladder", "cost_breakdown")  # those that are not folded


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of ten methods and three seeds on a ladder, with the figures that are not folded."""
    comparison, images = analyse(MINI), {}
    with style.context(["default", drawing.PARAMETERS]):
        for name in FIGURES:
            plot = plots.PLOTS[name]
            cuts = [plot.draw(comparison, plot.data(comparison), width) for width in (drawing.WIDE, drawing.NARROW)]
            images[name] = drawing.Cuts(*(inline.drawn(inline.svg(cut), f"{name}-{n}") for n, cut in enumerate(cuts)))
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(page.html(comparison, images, "../index.html"), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def browser(browser: Chrome) -> Chrome:
    """As it was opened, whatever earlier tests have it pretend to be."""
    pretend(browser)
    return browser


def on_a_phone(browser: Any, address: str) -> None:
    """A window cannot be as narrow as a phone; what the page sees can."""
    pretend(browser, PHONE)
    browser.get(address)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")


def test_a_phone_scrolls_tables_in_their_boxes_alone(browser: Any, address: str) -> None:
    on_a_phone(browser, address)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE
    wider = "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert browser.execute_script(wider) > 3
    shown = "[...document.querySelectorAll('.drawn svg')].filter(each => each.checkVisibility())"
    assert {*browser.execute_script(f"return {shown}.map(each => each.classList.value)")} == {"narrow"}


def test_no_number_wraps_on_a_phone(browser: Any, address: str) -> None:
    """A cell's own text is one line high; what is in brackets has a line of its own."""
    on_a_phone(browser, address)
    lines = """const range = document.createRange();
        return [...document.querySelectorAll('td[data-head]:not(.text), td:not(.text) small')].map(each => {
            range.selectNodeContents([...each.childNodes].find(node => node.nodeType === Node.TEXT_NODE) ?? each);
            return [each.textContent, new Set([...range.getClientRects()].map(box => Math.round(box.top))).size];
        })"""
    found = browser.execute_script(lines)
    assert len(found) > 300 and not [text for text, count in found if count > 1]


def test_what_scripts_say_counts_methods_as_the_headline_does(browser: Any, address: str) -> None:
    """Controls are none of them. At another target the table says so."""
    browser.get(address)
    said = browser.find_element("id", "live-said").text
    reuse, build = re.findall(r"(\d+) of (\d+) methods", browser.find_element("id", "verdict").text)
    assert f"{' of '.join(reuse)} methods are shown to save" in said and f"free, {build[0]} with" in said
    head = "return document.querySelector('#live-table th:nth-child(2)').textContent"
    assert browser.execute_script(head) == "met scratch"
    browser.find_element("id", "live-slider").send_keys(Keys.PAGE_UP)
    assert browser.execute_script(head) == "met target"


def test_figures_have_the_schemes_colours(browser: Any, address: str) -> None:
    grounds, inks = [], []
    for scheme in ("light", "dark"):
        pretend(browser, scheme=scheme)
        browser.get(address)
        grounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        inks.append(browser.execute_script("return getComputedStyle(document.querySelector('svg text')).fill"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 29)"] and inks[0] != inks[1]


def test_a_link_to_a_folded_section_opens_it(browser: Any, address: str) -> None:
    browser.get(f"{address}#about-growth")
    assert browser.execute_script("return document.querySelector('#about-growth').closest('details').open")


def test_the_page_prints_on_four_pages(browser: Any, address: str) -> None:
    browser.get(address)
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"])
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) <= 4


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", PHONE)])
def test_everybody_can_read_it_without_scripts(browser: Chrome, address: str, tmp_path: Path, scheme: str, width: int) -> None:
    """axe-core finds nothing serious in figures that are text and paths, in the wide and in the narrow cut."""
    whole = Path(address.removeprefix("file://")).read_text(encoding="utf-8")
    page = tmp_path / "index.html"
    page.write_text(re.sub(r"<script\b.*?</script>", "", whole, flags=re.DOTALL), encoding="utf-8")
    pretend(browser, width, scheme)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.querySelectorAll('.drawn svg > desc').length") == 2 * len(FIGURES)
    assert hindrances(browser, "figure") == "[]"
