"""Reports that several tests read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome

from growbench import report
from tests.conftest import Once
from tests.report import browser as browsers
from tests.report.results import METHODS, change, fail, write_results, write_run

Figures = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def results(once: Once) -> Path:
    """Three seeds of four methods, one of whose runs failed."""

    def fill(folder: Path) -> None:
        write_results(folder, seeds=3)
        fail(folder / "stackbert-seed1", "loss is <nan>")

    return once("results", fill)


@pytest.fixture(scope="session")
def made(results: Path, once: Once, figures: Figures) -> Path:
    """Their report, with all figures, which take long: one process of pytest makes it."""
    once("report of results", partial(_report, results, figures()))
    return results / "report"


@pytest.fixture(scope="session")
def ladder_results(once: Once) -> Path:
    """A ladder: two seeds at three budgets; stackbert misses the target in one seed, ligo is ahead at once."""
    return once("ladder", _ladder)


def _ladder(folder: Path) -> None:
    write_results(folder, 2)
    for index, (method, growth) in enumerate(METHODS.items()):
        for seed, budget in itertools.product(range(2), (0.4, 0.7)):
            write_run(folder, method, seed, growth, noise=np.random.default_rng([index, seed, int(10 * budget)]), budget=budget)
    change(folder / "stackbert-seed1", final_val_loss=5.5)
    for seed in range(2):
        change(folder / f"ligo-seed{seed}-budget0.4", final_val_loss=4.5)
        change(folder / f"ligo-seed{seed}-budget0.7", final_val_loss=4.4)


@pytest.fixture(scope="session")
def climbed(ladder_results: Path, once: Once, figures: Figures) -> Path:
    """Its report, with the figures that the other one has not, and those that a page shows first."""
    drawn = figures("ladder_savings", "ladder", "loss_vs_flops", "cost_breakdown")
    once("report of ladder", partial(_report, ladder_results, drawn))
    return ladder_results / "report"


def _report(results: Path, drawn: AbstractContextManager[None], _: Path) -> None:
    """Among the results."""
    with drawn:
        report.make(results)


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    """One for all tests that need one; they are skipped where there is none."""
    with browsers.opened() as driver:
        yield driver


@pytest.fixture
def javascript(request: pytest.FixtureRequest) -> browsers.Call:
    """Calls functions of the page's estimator: by node, or else by the browser."""
    return partial(browsers.call, lambda: request.getfixturevalue("browser"))
