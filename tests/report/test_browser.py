"""The page in a real browser: what its interactive layer shows, by pointer and by keyboard, and that everybody can read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from growbench import report
from growbench.analysis import columns, tables
from growbench.analysis.comparison import analyse
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import p_value, percent
from growbench.registry import SCRATCH
from growbench.report import forest
from growbench.report.cells import claimed, outcome, saving_of
from growbench.report.looks import CHIPS
from growbench.report.ranking import groups
from tests.report.browser import hindrances, pretend
from tests.report.results import METHODS, change, fail, of_images, write_results

ROWS = """return [...document.querySelectorAll('#live-table tbody tr')].map((row) => [row.dataset.method,
    ...[...row.cells].slice(1).map((cell) => cell.textContent)])"""

Open = Callable[..., Chrome]


@pytest.fixture(scope="module")
def made(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of single runs; its static figures are blank."""
    return report.make(results, tmp_path_factory.mktemp("made")).parent


@pytest.fixture(scope="module")
def climbed(ladder_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a ladder; its static figures are blank."""
    return report.make(ladder_results, tmp_path_factory.mktemp("climbed")).parent


@pytest.fixture
def opened(browser: Chrome) -> Iterator[Open]:
    """Opens a report's page at an address. Whatever a test does with it, its console stays silent."""

    def open_(report: Path, state: str = "", width: int = 1200, scheme: str = "light", medium: str = "") -> Chrome:
        browser.get("about:blank")
        pretend(browser, width, scheme, medium)
        browser.get(f"{(report / 'index.html').as_uri()}{state}")
        return browser

    browser.get_log("browser")
    yield open_
    assert browser.get_log("browser") == []


def named(page: Chrome, id: str) -> WebElement:
    return page.find_element(By.ID, id)


def state(page: Chrome) -> str:
    return page.execute_script("return location.hash")


def press(page: Chrome, *keys: str) -> None:
    """To what has the focus."""
    page.switch_to.active_element.send_keys(*keys)


def cells(folder: Path, target: float | None, protocol: str) -> dict[str, list[str]]:
    """By method what Python's tables say: how many seeds met scratch, by ledger the saving, and the p-value if there is one."""
    comparison, found = analyse(folder, target), {}
    for row in tables.records(comparison.savings if protocol == "single" else comparison.ladder):
        if row["method"] != SCRATCH:
            found[row["method"]] = [f"{row['reached']} of {row['seeds']}"]
            for ledger in Ledger:
                p = row[columns.adjusted_p_value(ledger)]
                found[row["method"]] += [saving_of(row, Unit.FLOPS, ledger), f"p {p_value(p, equals=True)}" if p >= 0 else ""]
    return found


def shown(page: Chrome) -> dict[str, list[str]]:
    """The same, of the page's table."""
    plain = str.maketrans("\N{NO-BREAK SPACE}", " ")
    found = {}
    for method, reached, *ledgers in page.execute_script(ROWS):
        saved, verdicts = ledgers[::2], [text.translate(plain) for text in ledgers[1::2]]
        p = [text[text.index("p ") :] if "p = 0." in text or "p < 0." in text else "" for text in verdicts]
        found[method] = [reached, *(value for pair in zip(saved, p, strict=True) for value in pair)]
    return found


def spaced(table: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without blanks, which the page puts in other places, and without the count of seeds that did not finish."""
    return {name: ["".join(cell.split("(1 of")[0].split()) for cell in row] for name, row in table.items()}


def test_it_stands_in_the_figures_place_and_says_what_the_tables_say(opened: Open, made: Path, results: Path) -> None:
    page = opened(made)
    figure = named(page, "fig-curves")
    assert (
        not figure.find_element(By.CLASS_NAME, "drawn").is_displayed()
        and figure.find_element(By.CLASS_NAME, "files").is_displayed()
    )
    assert figure.find_element(By.TAG_NAME, "canvas").size["width"] > 800
    assert spaced(shown(page)) == spaced(cells(results, None, "single"))
    assert "100.0" in named(page, "live-said").text and state(page) == ""


def test_of_a_ladder_it_reads_the_ladder_first(opened: Open, climbed: Path, ladder_results: Path) -> None:
    page = opened(climbed)
    assert named(page, "fig-ladder").find_elements(By.CLASS_NAME, "live")
    assert spaced(shown(page)) == spaced(cells(ladder_results, None, "ladder"))
    named(page, "live-protocol-single").find_element(By.XPATH, "following-sibling::label").click()
    assert state(page) == "#protocol=single"
    assert spaced(shown(page)) == spaced(cells(ladder_results, None, "single"))


def test_the_slider_recomputes_the_savings_and_stands_in_the_address(opened: Open, made: Path, results: Path) -> None:
    page = opened(made)
    slider, before = named(page, "live-slider"), shown(page)
    target = float(slider.get_property("value"))
    slider.send_keys(Keys.ARROW_RIGHT * 12)
    moved = float(state(page).removeprefix("#target="))
    assert moved == pytest.approx(target + 0.012, abs=1e-3)
    assert shown(page) != before
    assert spaced(shown(page)) == spaced(cells(results, moved, "single"))
    number = named(page, "live-number")
    number.clear()
    number.send_keys("5.25", Keys.ENTER)
    assert state(page) == "#target=5.25" and slider.get_property("value") == "5.25"
    assert spaced(shown(page)) == spaced(cells(results, 5.25, "single"))
    figure = named(page, "fig-curves")
    figure.find_element(By.XPATH, './/button[text()="Scratch\'s final loss"]').click()
    assert state(page) == "" and shown(page) == before


FOREST = """return [...document.querySelectorAll('.live-forest svg.wide')].map((svg) => ({
    ticks: [...svg.querySelectorAll('text')].filter((text) => text.getAttribute('text-anchor') === 'middle' && !text.closest('g'))
        .map((text) => [+text.getAttribute('x'), text.textContent]),
    titles: [...svg.querySelectorAll('text[font-weight]')].map((text) => text.textContent),
    rows: [...svg.querySelectorAll('g[data-method]')].map((row) => ({
        ...row.dataset, texts: [...row.querySelectorAll('text')].map((text) => text.textContent),
        value: row.querySelector('.live-value')?.getAttribute('transform').match(/[\\d.]+/)[0],
        ends: ['x1', 'x2'].map((end) => row.querySelector('.live-ends')?.getAttribute(end)),
    })),
}))[0]"""


@pytest.mark.parametrize(("kind", "target"), [("made", 5.05), ("climbed", 5.05)])
def test_the_forest_is_that_of_pythons_at_the_target(
    opened: Open, request: pytest.FixtureRequest, kind: str, target: float
) -> None:
    """Order, groups, marks, ends of intervals, figures and chips; the page is as printed again after a reset."""
    page = opened(request.getfixturevalue(kind))
    folder = request.getfixturevalue({"made": "results", "climbed": "ladder_results"}[kind])
    printed, moved = (
        page.find_element(By.CSS_SELECTOR, f"#fig-forest > .drawn{own}") for own in (":not(.live-forest)", ".live-forest")
    )
    assert printed.is_displayed() and not moved.is_displayed()
    number = named(page, "live-forest-number")
    number.clear()
    number.send_keys(str(target), Keys.ENTER)
    assert moved.is_displayed() and not printed.is_displayed() and state(page) == f"#target={target}"

    comparison = analyse(folder, target)
    table = comparison.savings if kind == "made" else comparison.ladder
    expected = forest.lines(comparison, groups(table))
    found = page.execute_script(FOREST)
    titles = [line.text for line in expected if line.method is None] * len(comparison.units)
    assert [title for title in found["titles"] if "ledger" not in title] == titles
    lines = [line for line in expected if line.method]
    panels = [(unit, ledger) for unit in comparison.units for ledger in Ledger]
    assert len(found["rows"]) == len(lines) * len(panels)
    ticks = [(0, ""), *found["ticks"], (0, "")]
    zeros = [place for place, (_, text) in enumerate(ticks) if text.startswith("0")]
    for index, (unit, ledger) in enumerate(panels):
        rows = found["rows"][index * len(lines) : (index + 1) * len(lines)]
        before, (start, _), after = ticks[zeros[index] - 1 : zeros[index] + 2]
        other, text = before if before[1].startswith("\N{MINUS SIGN}") else after  # of the same panel
        scale = float(text.replace("\N{MINUS SIGN}", "-").split()[0]) / 100 / (other - start)
        for line, row in zip(lines, rows, strict=True):
            assert (row["method"], row["unit"], row["ledger"]) == (line.method, unit, ledger)
            saving, texts = columns.saving_in(line.row, unit, ledger), " ".join(row["texts"])
            assert outcome(line.row, unit, ledger) in texts
            assert (CHIPS[claimed(line.row, ledger)].text in texts) == (unit == Unit.FLOPS)
            if not saving.known:
                assert row["value"] is None
                continue
            drawn = (float(row["value"]) - start) * scale
            assert drawn < -1 if saving.mean < -1 else drawn == pytest.approx(saving.mean, abs=1e-9), row
            for end, value in zip(row["ends"], (saving.low, saving.high), strict=True):
                if -1 < value < 1:
                    assert (float(end) - start) * scale == pytest.approx(value, abs=1e-9), row
    page.find_element(By.CSS_SELECTOR, "#fig-forest .live button").click()
    assert printed.is_displayed() and not moved.is_displayed() and state(page) == ""


def test_reload_and_back_restore_what_was_shown(opened: Open, made: Path) -> None:
    address = "#target=5.1&axis=tokens&scale=linear&ledger=build&near=1&hide=ligo"
    page = opened(made, address)
    at_target = shown(page)

    def chosen() -> list[str]:
        return page.execute_script("return [...document.querySelectorAll('.live input:checked')].map((each) => each.id)")

    expected = ["live-axis-tokens", "live-scale-linear", "live-ledger-build", "live-near"]
    assert chosen() == expected and named(page, "live-number").get_property("value") == "5.100"
    page.refresh()
    assert chosen() == expected and shown(page) == at_target and state(page) == address
    named(page, "live-near").click()
    page.find_element(By.CSS_SELECTOR, ".live-legend [data-method=ligo]").click()
    assert state(page) == "#target=5.1&axis=tokens&scale=linear&ledger=build"
    page.back()
    page.back()
    assert state(page) == address and chosen() == expected
    page.execute_script("location.hash = 'behind'")  # a place in the page
    assert chosen() == expected


def test_a_broken_address_shows_the_start(opened: Open, made: Path, results: Path) -> None:
    page = opened(made, "#target=<x>&axis=toString&hide=nobody&hide=__proto__&scale=")
    assert spaced(shown(page)) == spaced(cells(results, None, "single"))
    assert named(page, "live-axis-flops").is_selected()


def test_little_to_show_is_shown_without_an_error(opened: Open, tmp_path: Path) -> None:
    """Scratch alone; no finished scratch, with a target given by hand; nothing that finished."""
    alone = write_results(tmp_path / "alone", seeds=1, methods={"scratch": METHODS["scratch"]})
    assert "0 of 0 methods" in named(opened(report.make(alone).parent), "live-said").text
    failed = write_results(tmp_path / "failed", seeds=1, methods={"scratch": METHODS["scratch"], "ligo": METHODS["ligo"]})
    fail(failed / "scratch-seed0")
    page = opened(report.make(failed, target_loss=4.9).parent)
    assert named(page, "live-said").text.startswith("Target: 4.900; scratch did not finish")
    assert shown(page)["ligo"] == ["1 of 1", "–", "", "–", ""]
    fail(failed / "ligo-seed0")
    page = opened(report.make(failed, target_loss=4.9).parent)
    assert shown(page)["ligo"][1] == "did not finish"
    chart = page.find_element(By.CLASS_NAME, "live-chart")
    assert "2 methods" in chart.get_attribute("aria-label")
    chart.send_keys(Keys.HOME)
    assert "of a run that did not finish" in page.find_element(By.CLASS_NAME, "live-readout").text


def test_names_of_methods_stay_text(opened: Open, tmp_path: Path) -> None:
    name = """</script><img src=x onerror="alert('1')">&amp;, #hide=%20"""
    folder = write_results(tmp_path, seeds=1, methods={"scratch": METHODS["scratch"], "mine": METHODS["ligo"]})
    change(folder / "mine-seed0", method=name)
    page = opened(report.make(folder).parent)
    button = page.find_elements(By.CSS_SELECTOR, ".live-legend button")[1]
    assert name in button.text and not page.find_elements(By.CSS_SELECTOR, ".live img")
    button.click()
    page.refresh()
    assert page.find_elements(By.CSS_SELECTOR, ".live-legend button")[1].get_attribute("aria-pressed") == "false"


def test_of_images_it_shows_accuracy_as_python_has_it(opened: Open, tmp_path: Path) -> None:
    """In the legend, under the cursor and in the address; without a target, which is a loss."""
    folder = of_images(write_results(tmp_path, seeds=2, methods={"scratch": METHODS["scratch"], "ligo": METHODS["ligo"]}))
    page = opened(report.make(folder).parent)
    savings = analyse(folder).savings.set_index("method")
    last = "return [...document.querySelectorAll('.live-final')].map((each) => each.textContent)"
    assert page.execute_script(last) == [f"{loss:.3f}" for loss in savings["final_val_loss"]]
    named(page, "live-measure-accuracy").find_element(By.XPATH, "following-sibling::label").click()
    assert state(page) == "#measure=accuracy" and not named(page, "live-near").is_enabled()
    page.refresh()
    shares = [percent(share) for share in savings["final_val_accuracy"]]
    assert page.execute_script(last) == shares
    chart = page.find_element(By.CLASS_NAME, "live-chart")
    chart.send_keys(Keys.END)
    assert f"scratch accuracy {shares[0]} (" in page.find_element(By.CLASS_NAME, "live-readout").get_property("textContent")
    assert chart.get_attribute("aria-label").startswith("Validation accuracy against training flops")


def test_the_legend_hides_lines_and_the_pointer_reads_them(opened: Open, made: Path) -> None:
    page = opened(made)
    chart = page.find_element(By.CLASS_NAME, "live-chart")
    picture = "return document.querySelector('.live canvas').toDataURL()"
    drawn, lines = page.execute_script(picture), chart.get_attribute("aria-label")
    ligo = page.find_element(By.CSS_SELECTOR, ".live-legend [data-method=ligo]")
    ligo.click()
    ActionChains(page).move_to_element(named(page, "live-said")).perform()
    assert ligo.get_attribute("aria-pressed") == "false" and state(page) == "#hide=ligo"
    assert page.execute_script(picture) != drawn and chart.get_attribute("aria-label") != lines
    over = page.find_element(By.CLASS_NAME, "u-over")
    ActionChains(page).move_to_element_with_offset(over, over.size["width"] // 3, over.size["height"] // 4).perform()
    text = page.find_element(By.CLASS_NAME, "live-readout").text
    assert "over seeds" in text and "step" in text and "TFLOP" in text and "ligo" not in text


def test_the_keyboard_alone_suffices(opened: Open, made: Path) -> None:
    """By Tab through every control in turn; arrows within groups and along lines."""
    page = opened(made)
    page.execute_script("document.querySelector('#fig-curves').tabIndex = -1; document.querySelector('#fig-curves').focus()")
    reached = []
    for _ in range(16):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focus = page.switch_to.active_element
        reached.append(
            focus.get_attribute("id") or focus.get_attribute("data-method") or focus.text or focus.get_attribute("class")
        )
        if reached[-1] == "live-axis-flops":
            press(page, Keys.ARROW_RIGHT)
            assert state(page) == "#axis=seconds"
        elif reached[-1] == "live-chart":
            press(page, Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
            said = page.find_element(By.CLASS_NAME, "live-readout").text
            press(page, Keys.ARROW_LEFT)
            assert said and page.find_element(By.CLASS_NAME, "live-readout").text != said
        elif reached[-1] in ("live-near", "ligo"):
            press(page, Keys.SPACE)
    controls = ["live-axis-flops", "live-scale-log", "live-ledger-reuse", "live-near", "live-slider", "live-number", "live-chart"]
    assert [id for id in reached if id in controls] == controls
    assert {"scratch", "bert2bert", "ligo", "stackbert", "all", "none"} <= set(reached)
    assert state(page) == "#axis=seconds&near=1&hide=ligo"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["made", "climbed"])
def test_everybody_can_read_it(opened: Open, request: pytest.FixtureRequest, kind: str, scheme: str) -> None:
    """axe-core finds nothing serious, in either colour scheme, on a page without and with a ladder."""
    moved = "#target=5.05" if scheme == "dark" else ""
    assert hindrances(opened(request.getfixturevalue(kind), moved, scheme=scheme)) == "[]"


def test_a_phone_shows_it_without_scrolling_sideways(opened: Open, made: Path) -> None:
    page = opened(made, width=400)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 400
    assert page.find_element(By.CSS_SELECTOR, ".live canvas").size["width"] <= 400


def test_on_paper_the_static_figure_stands(opened: Open, made: Path) -> None:
    page = opened(made, medium="print")
    figure = named(page, "fig-curves")
    assert figure.find_element(By.CLASS_NAME, "drawn").is_displayed()
    assert not figure.find_element(By.CLASS_NAME, "live").is_displayed()
