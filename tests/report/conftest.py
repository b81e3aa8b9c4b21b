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
from tests.report import browser as browsers
from tests.report.results import METHODS, change, fail, write_results, write_run

Figures = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of four methods, one of whose runs failed."""
    folder = write_results(tmp_path_factory.mktemp("results"), seeds=3)
    fail(folder / "stackbert-seed1", "loss is <nan>")
    return folder


@pytest.fixture(scope="session")
def made(results: Path, figures: Figures) -> Path:
    """Their report."""
    with figures():
        return report.make(results).parent


@pytest.fixture(scope="session")
def ladder_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder: two seeds at three budgets; stackbert misses the target in one seed, ligo is ahead at once."""
    folder = write_results(tmp_path_factory.mktemp("climbed"), 2)
    for index, (method, growth) in enumerate(METHODS.items()):
        for seed, budget in itertools.product(range(2), (0.4, 0.7)):
            write_run(folder, method, seed, growth, noise=np.random.default_rng([index, seed, int(10 * budget)]), budget=budget)
    change(folder / "stackbert-seed1", final_val_loss=5.5)
    for seed in range(2):
        change(folder / f"ligo-seed{seed}-budget0.4", final_val_loss=4.5)
        change(folder / f"ligo-seed{seed}-budget0.7", final_val_loss=4.4)
    return folder


@pytest.fixture(scope="session")
def climbed(ladder_results: Path, figures: Figures) -> Path:
    """Its report."""
    with figures():
        return report.make(ladder_results).parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    """One for all tests that need one; they are skipped where there is none."""
    with browsers.opened() as driver:
        yield driver


@pytest.fixture
def javascript(request: pytest.FixtureRequest) -> browsers.Call:
    """Calls functions of the page's estimator: by node, or else by the browser."""
    return partial(browsers.call, lambda: request.getfixturevalue("browser"))
