"""The page that places every method."""

from __future__ import annotations

import re
from pathlib import Path

from growbench import registry

PAGE = Path(__file__).parents[2] / "docs" / "side_by_side.md"


def test_every_built_in_method_has_one_row_of_seven_cells() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", row)[0] for row in rows) == sorted(registry.built_in())
    assert all(len([cell for cell in row.strip("|").split(" | ") if cell.strip()]) == 7 for row in rows)
