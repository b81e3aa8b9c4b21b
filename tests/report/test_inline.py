"""Figures in a page: real text, the page's colours, methods by name, and nothing that a name brings along."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import style
from matplotlib.figure import Figure

from growbench import registry
from growbench.analysis.comparison import analyse
from growbench.report import drawing, inline, page, plots, ranking
from growbench.report.headline import headline
from growbench.report.looks import CHIPS, METHODS
from tests.report.results import METHODS as RUN
from tests.report.results import Page, write_results

HOSTILE = "</svg><script>alert(1)</script>\"'&"


def figure() -> Figure:
    """A line of a method with a hostile name, a link, a chip."""
    with style.context(["default", drawing.PARAMETERS]):
        made = Figure(figsize=(3, 2))
        axes = made.subplots()
        lines = axes.plot([0, 1, 2, 3], [1, 1, 3, 2], "-s", color=METHODS[1].light)
        text = axes.text(0.2, 1.5, HOSTILE, url="https://example.org/?a=1&b=2", color=METHODS[2].light)
        inline.tag([*lines, text], HOSTILE)
        return made


def drawn(made: Figure) -> inline.Drawn:
    with style.context(["default", drawing.PARAMETERS]):
        return inline.drawn(inline.svg(made), "name")


def test_names_stay_text_and_lines_tell_their_method() -> None:
    found = drawn(figure())
    assert (found.width, found.height) == (216, 144)
    root = ElementTree.fromstring(f"<svg>{found.body}</svg>")
    texts = [text.text for text in root.iter("text")]
    assert HOSTILE in texts and "script" not in {element.tag for element in root.iter()}
    (group,) = {element.attrib["data-method"] for element in root.iter("g") if "data-method" in element.attrib}
    assert group == HOSTILE and next(title.text for title in root.iter("title")) == HOSTILE
    assert [link.attrib["href"] for link in root.iter("a")] == ["https://example.org/?a=1&b=2"]


def test_colours_are_the_pages_variables() -> None:
    body = drawn(figure()).body
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', body))
    assert {"var(--m-1)", "var(--m-2)"} <= colours
    assert all(re.fullmatch(r"none|var\(--[\w-]+\)", colour) for colour in colours)


def test_ids_are_the_figures_own_and_all_are_there() -> None:
    body = drawn(figure()).body
    ids = re.findall(r' id="([^"]*)"', body)
    used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', body)
    assert ids and len(ids) == len(set(ids)) and all(id.startswith("name-") for id in ids)
    assert {one or other for one, other in used} == set(ids)


def end(path: str) -> tuple[float, float]:
    """Where an SVG path of M, relative l and z ends."""
    x = y = 0.0
    for command, numbers in re.findall(r"([Mlz])([^Mlz]*)", path):
        values = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", numbers)]
        for dx, dy in zip(values[::2], values[1::2], strict=True):
            x, y = (dx, dy) if command == "M" else (x + dx, y + dy)
    return x, y


@pytest.mark.parametrize("step", [0.04, 0.049, 0.1, 7.77])
def test_a_path_of_short_steps_ends_where_it_should(step: float) -> None:
    """Each point is rounded, and no error adds up."""
    points = [(10 + step * number, 100 - 0.3 * step * number) for number in range(500)]
    path = inline._path("M " + " \nL ".join(f"{x} {y}" for x, y in points))
    assert end(path) == pytest.approx(points[-1], abs=0.05)


class Svg(HTMLParser):
    """The titles, descriptions, texts and methods of the figures in a page, and its figures' ids."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.said: dict[str, list[str]] = {"title": [], "desc": [], "text": []}
        self.methods: set[str] = set()
        self.figures: list[str] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "figure":
            self.figures.append(values["id"] or "")
        if self.open or tag == "svg":
            self.open.append(tag)
            self.methods.add(values.get("data-method") or "")

    def handle_endtag(self, tag: str) -> None:
        if self.open:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.said:
            self.said[self.open[-1]].append(data)


def test_a_page_holds_its_figures_as_text_with_the_result_in_words(climbed: Path, made: Path) -> None:
    comparison = analyse(climbed.parent)
    found = Svg((climbed / "index.html").read_text(encoding="utf-8"))
    assert found.figures[:4] == ["fig-forest", "fig-curves", "fig-ladder", "fig-cost"]
    assert len(found.said["desc"]) == 2 * len(found.figures)  # a wide and a narrow cut each
    assert all(len(words) > 20 for words in found.said["desc"]) and headline(comparison) in found.said["desc"][0]
    assert {"ligo", "Reuse ledger: source model free", "Near the target: ± 0.3 nats, linear cost"} <= {*found.said["text"]}
    assert {chip.text for chip in CHIPS.values()} & {*found.said["text"]}
    assert set(comparison.methods) <= found.methods
    drawn = [*climbed.glob("*.svg"), *made.glob("*.svg")]
    assert {path.stem for path in drawn} == set(plots.PLOTS) - {"accuracy_vs_flops"}
    assert all(path.read_text(encoding="utf-8").count("<text") > 5 for path in drawn)


def test_of_many_methods_few_are_coloured_and_the_page_is_small(tmp_path: Path) -> None:
    """As many as there are, on curves of a hundred evaluations; lines that are not named are grey."""
    methods = {method: RUN["scratch" if method == "scratch" else "ligo"] for method in registry.built_in()}
    comparison = analyse(write_results(tmp_path / "many", 1, methods))
    plot = plots.PLOTS["loss_vs_flops"]
    cut = drawn(plot.draw(comparison, plot.data(comparison), drawing.WIDE))
    assert len(cut.body) < 100_000
    assert 3 < len(set(re.findall(r"var\(--m-\d\)", cut.body))) < ranking.NAMED
    assert all(f'data-method="{method}"' in cut.body for method in methods)
    source = page.html(comparison, {"loss_vs_flops": drawing.Cuts(cut, cut)})
    assert "Grey, named when pointed at" in Page(source).text and len(source) < 600_000
