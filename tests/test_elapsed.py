"""Where the time of a command went, by a clock that is set by hand."""

from __future__ import annotations

import re

import pytest

from growbench import elapsed as module
from growbench.elapsed import Elapsed, Part, Spent, table


class Clock:
    """Two CPU seconds a second."""

    now = 100.0

    def __call__(self) -> Spent:
        return Spent(self.now, 2 * self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "_clock", found)
    monkeypatch.setattr(module, "_age", lambda: 3.0)
    return found


def test_each_second_is_in_one_part(clock: Clock) -> None:
    """Those before the clock was read first are of the start; a part has not what a part within it has."""
    elapsed = Elapsed()
    clock.now += 1
    with elapsed.part(Part.OTHER):
        clock.now += 10
        with elapsed.part(Part.EVALUATION):
            clock.now += 5
        clock.now += 2
        elapsed.move(Part.STEPS, Spent(9, 18))
    with elapsed.part(Part.PLAN), elapsed.part(Part.COUNTING):
        clock.now += 4
    found = elapsed.parts()
    assert {part: spent.seconds for part, spent in found.items()} == {
        Part.START: 4, Part.PLAN: 4, Part.STEPS: 9, Part.EVALUATION: 5, Part.OTHER: 3,
    }  # fmt: skip
    assert list(found) == [part for part in Part if part in found]
    assert sum(found.values(), Spent()) == Spent(3 + clock.now - 100, 2 * clock.now)
    elapsed.begin()
    clock.now += 1
    assert elapsed.parts() == {Part.START: Spent(1, 2)}


def test_time_of_other_processes_counts_and_waiting_for_them_does_not(clock: Clock) -> None:
    elapsed = Elapsed()
    with elapsed.part(Part.WAITING):
        clock.now += 50
    elapsed.add({Part.START: Spent(1, 1), Part.STEPS: Spent(40, 70)})
    elapsed.add({Part.STEPS: Spent(45, 80)})
    assert {part: spent.seconds for part, spent in elapsed.parts().items()} == {Part.START: 4, Part.STEPS: 85}


def test_the_table_says_shares_of_the_seconds() -> None:
    lines = table({Part.START: Spent(1, 2), Part.STEPS: Spent(3, 5)}).splitlines()
    assert [re.split(r" {2,}", line.strip()) for line in lines[1:]] == [
        ["start", "1.0", "25.0%", "2.0"], ["training steps", "3.0", "75.0%", "5.0"], ["all", "4.0", "100.0%", "7.0"],
    ]  # fmt: skip


def test_a_process_knows_when_it_was_started() -> None:
    first, second = module._age(), module._age()
    assert 0 < first <= second < first + 5
