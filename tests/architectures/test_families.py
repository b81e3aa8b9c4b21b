"""Every family keeps its promises, on checkpoints of its library with settings of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.promises import FAMILIES, PROMISES, Family, written

each_promise = pytest.mark.parametrize(
    ("family", "promise"),
    [pytest.param(family, promise, id=f"{family.name}, {promise}") for family in FAMILIES for promise in PROMISES],
)


@each_promise
def test_every_family_keeps_every_promise_or_says_why_not(family: Family, promise: str, tmp_path: Path) -> None:
    figure = PROMISES[promise].measure(written(family, tmp_path))
    assert PROMISES[promise].kept(figure) == (promise not in family.changes), figure
