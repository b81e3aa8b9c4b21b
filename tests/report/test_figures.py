"""Figures: a method keeps its colour, labels neither overlap nor leave the figure, the data are the tables'."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from growbench import registry
from growbench.analysis import tables
from growbench.analysis.comparison import Comparison, analyse
from growbench.costs import accounts
from growbench.report import board, drawing, plots
from growbench.report.looks import looks as looks_of
from growbench.report.ranking import named
from tests.report.results import METHODS, TEXT_PLOTS, change, of_images, write_run

Figures = Callable[[], AbstractContextManager[None]]


def texts(figure: Figure) -> list[Text]:
    """What is written in a figure; of the ticks those of the vertical axes, where methods' names may stand."""
    figure.draw_without_rendering()
    found = [*figure.findobj(Text, include_self=False)]
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ticks = [label for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")]
        left_out = {id(label) for label in ticks} - {
            id(label) for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high
        }
        found = [text for text in found if id(text) not in left_out]
    return [text for text in found if isinstance(text, Text) and text.get_text() and text.get_visible()]


def assert_texts_fit(figure: Figure) -> list[str]:
    """What is written in a figure neither overlaps nor leaves it."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]
    for label, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height, label
    for (one, box), (other, its) in itertools.combinations(boxes, 2):
        lines = 0.25 * min(box.height, its.height)  # boxes hold room for accents and descenders
        overlap = min(box.x1, its.x1) > max(box.x0, its.x0) and min(box.y1, its.y1) > max(box.y0, its.y0) + lines
        assert not overlap, (one, other)
    return [label for label, _ in boxes]


def test_a_method_keeps_its_colour(made: Path) -> None:
    looks = looks_of(METHODS)
    assert looks == looks_of(reversed(METHODS))
    alone = looks_of(["ligo", "my_plugin"])
    assert alone["ligo"] == looks["ligo"] and alone["my_plugin"] not in looks.values()
    page = (made / "index.html").read_text(encoding="utf-8")
    undrawn = ("amortised", "scratch"), ("equal_cost", "scratch"), ("equal_cost", "ligo")  # scratch has no run at ligo's cost
    for method in ("scratch", "bert2bert", "ligo"):
        assert f'style="color:{looks[method].variable}">{looks[method].glyph}</span>' in page
        for name in TEXT_PLOTS:
            figure = (made / f"{name}.svg").read_text(encoding="utf-8")
            if (name, method) not in undrawn:
                assert looks[method].colour.lower() in figure.lower(), (method, name)


def test_many_methods_look_different() -> None:
    looks = looks_of(["scratch", *(f"method{number}" for number in range(60))])
    assert len(set(looks.values())) == len(looks)


# Machado et al. 2009, severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


def lab(colour: str, vision: Any) -> np.ndarray:
    """A colour in CIELAB, as it is seen."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(vision) @ linear, 0, 1)
    white = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1094, 0.8726]])
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in white @ seen)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_built_in_methods_are_told_apart_by_the_colour_blind() -> None:
    looks = looks_of(registry.built_in())
    assert len(looks) >= 12 and len(set(looks.values())) == len(looks)
    for one, other in itertools.combinations(looks.values(), 2):
        if one.marker == other.marker:
            for name, vision in VISIONS.items():
                assert np.linalg.norm(lab(one.colour, vision) - lab(other.colour, vision)) > 15, (one, other, name)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """All built-in methods and a plugin with a long name, on images, all with almost the same curves, at two budgets."""
    folder = tmp_path_factory.mktemp("many")
    for index, method in enumerate(sorted({*registry.built_in(), "a_plugin_whose_name_is_long"})):
        for budget in (0.5, 1):
            curve = METHODS["scratch" if method == "scratch" else "bert2bert"]  # so that all meet scratch
            write_run(folder, method, 0, curve, noise=np.random.default_rng(index), budget=budget)
    change(folder / "ligo-seed0", keeps_source=True)
    return analyse(of_images(folder))


@pytest.mark.parametrize(
    ("name", "width"),
    [*((name, drawing.NARROW) for name in plots.PLOTS), *((name, drawing.WIDE) for name in [*plots.PLOTS][::4])],
)
def test_labels_of_many_methods_neither_overlap_nor_leave_the_figure(many: Comparison, name: str, width: float) -> None:
    plot = plots.PLOTS[name]
    data = plot.data(many)
    with style.context(["default", drawing.PARAMETERS]):
        figure = plot.draw(many, data, width)
        labels = assert_texts_fit(figure)
    shown = set(many.methods if name in ("savings", "ladder_savings", "cost_breakdown", "equal_cost") else named(many))
    if name == "amortised":  # it has no line for a bound
        shown &= {*data["method"], "scratch"}
    assert len(shown) > 5
    for method in shown:
        if method != "scratch" or name not in ("savings", "ladder_savings", "equal_cost"):
            assert drawing.brief(many.label(method)) in labels


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_labels_of_the_performance_profile_fit(width: float) -> None:
    """Thirteen methods whose lines all but coincide."""
    labels = {
        method: method for method in ["scratch", *sorted(set(registry.built_in()) - {"scratch"}), "a_plugin_with_a_long_name"]
    }
    rows = [
        (method, ledger, tau, share) for method in labels for ledger in accounts.Ledger for tau, share in ((1, 0), (2, 1), (4, 1))
    ]
    with style.context(["default", drawing.PARAMETERS]):
        figure = board.performance_profile(labels, pd.DataFrame(rows, columns=["method", "ledger", "tau", "share"]), width)
        assert_texts_fit(figure)


def test_the_ladder_is_drawn_in_both_ledgers(climbed: Path, made: Path) -> None:
    curve = pd.read_csv(climbed / "ladder.csv")
    runs = pd.read_csv(climbed / "ladder_by_seed.csv")
    ligo = runs[(runs["method"] == "ligo") & (runs["budget"] == 0.7)]
    for ledger in ("reuse", "build"):
        (found,) = tables.records(curve[(curve["method"] == "ligo") & (curve["budget"] == 0.7) & (curve["ledger"] == ledger)])
        assert found["flops"] == pytest.approx(ligo[f"flops_{ledger}"].mean())
    assert (curve["low"] <= curve["val_loss"]).all() and (curve["val_loss"] <= curve["high"]).all()
    assert (climbed / "ladder.png").stat().st_size and (climbed / "ladder.svg").stat().st_size
    assert 'id="fig-ladder"' in (climbed / "index.html").read_text(encoding="utf-8")
    assert "ladder-table" not in re.sub(
        "<style>.*?</style>", "", (made / "index.html").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert not list(made.glob("ladder*"))


def test_amortised_ends_are_the_two_ledgers(made: Path) -> None:
    table, savings = (pd.read_csv(made / f"{name}.csv") for name in ("amortised", "savings"))
    assert set(table["method"]) == {"bert2bert", "ligo"}  # stackbert missed the target
    for method, targets, ledger in itertools.product(("bert2bert", "ligo"), (1, math.inf), ("reuse", "build")):
        if (targets == 1) == (ledger == "build"):
            found = table[(table["method"] == method) & (table["targets"] == targets)]["saving"]
            assert found.item() == pytest.approx(savings.set_index("method").loc[method, f"flops_saving_{ledger}"])
