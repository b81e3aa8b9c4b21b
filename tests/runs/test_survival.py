"""The short forms of what runs at night: nonsense is refused in one line, and killed runs end in the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.attack import carry_out
from tests.soak.attempt import ATTACKS
from tests.soak.crash import crash
from tests.soak.fuzz import PROPERTIES, throw


@pytest.fixture(scope="session")
def shared_with_attacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks")


CASES = {"command lines": 30, "experiment files": 60, "corpora": 60}


@pytest.mark.parametrize("name", PROPERTIES)
def test_nonsense_ends_in_success_or_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWBENCH_CACHE", "")  # put back afterwards
    assert sum(throw(name, CASES[name]).values()) == CASES[name]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_killed_runs_end_in_the_same_bits(miniature: Path, tmp_path: Path, precision: str) -> None:
    """Two kills; `python -m tests.soak.crash` kills all methods, fifty times."""
    longer = miniature.read_text().replace("steps = 12", "steps = 20")
    miniature.write_text(longer.replace('precision = "float32"', f'precision = "{precision}"'))
    assert len(crash([str(miniature)], "scratch,ligo", 2, 0, tmp_path, most=20)) == 2


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.short])
def test_attacked_and_still_standing(name: str, tmp_path: Path, shared_with_attacks: Path) -> None:
    """`python -m tests.soak.attack` carries out all others too."""
    happened, kept = carry_out(ATTACKS[name], tmp_path, shared_with_attacks)
    assert kept, happened
