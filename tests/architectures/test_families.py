"""Every family keeps its promises, on checkpoints of its library with settings of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.promises import FAMILIES, PROMISES, Family, written


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_keeps_every_promise_or_says_why_not(family: Family, tmp_path: Path) -> None:
    checkpoint = written(family, tmp_path)
    figures = {name: promise.measure(checkpoint) for name, promise in PROMISES.items()}
    broken = {name: figure for name, figure in figures.items() if not PROMISES[name].kept(figure)}
    assert broken.keys() == family.changes.keys(), figures
