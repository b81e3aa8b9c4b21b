"""Phases whose time for a FLOP is out of line with scratch's."""

from __future__ import annotations

from typing import Any

import pytest

from growbench.analysis import pace
from growbench.analysis.comparison import compare
from growbench.analysis.pace import Place
from growbench.report import run_tables
from growbench.runs.store import Run
from tests.analysis.stored import CPU, scratch, straight


def phase(steps: int = 10, flops: float = 10.0, **clocks: Any) -> dict[str, Any]:
    """One with 0.2 seconds for a step and a FLOP, and 0.1 of CPU time."""
    times = {"seconds": 0.2 * steps * flops, "cpu_seconds": 0.1 * steps * flops} | clocks
    return {"name": "train", "steps": steps, "flops_per_step": {"train": flops}, "median_step_seconds": 0.5, **times}


def method(seed: int, *phases: dict[str, Any], **changes: Any) -> Run:
    return straight("mine", 80, seed, phases=list(phases), **changes)


def runs(*phases: dict[str, Any], seeds: int = 2, budget: float = 100.0) -> list[Run]:
    """Of scratch and of a method with these phases; scratch's seconds vary by a third of `budget` - 100 over the seeds."""
    return [
        *(scratch(seed, 100.0 if seed else budget, phases=[phase()]) for seed in range(seeds)),
        *(method(seed, *phases) for seed in range(seeds)),
    ]


def test_a_phase_like_scratchs_is_not_named_however_small() -> None:
    found = runs(phase(3, 2.0), phase(7, 10.0))
    assert [each.cpu_seconds for each in pace.paces(found).values()] == pytest.approx([1, 1])
    assert pace.note(found) == []


def test_hidden_work_is_named_with_its_time_and_its_cpu_time() -> None:
    found = runs(phase(), {**phase(seconds=60.0, cpu_seconds=40.0), "name": "more"})
    (note,) = pace.note(found)
    assert note.startswith("Time for each counted FLOP, more than 1.5 times scratch's")
    assert "scratch's on the same machine and seeds: mine, more (seconds 3.0 times, CPU time 4.0 times). " in note
    assert note in compare(found).notes


def test_work_in_another_process_is_seen_in_cpu_time_alone() -> None:
    found = runs(phase(cpu_seconds=20.0))
    assert "mine, train (seconds 1.0 times, CPU time 2.0 times)" in pace.note(found)[0]


def test_seconds_count_only_where_scratchs_own_repeat() -> None:
    slow = phase(seconds=60.0)
    assert "seconds 3.0 times" in pace.note(runs(slow))[0]
    assert pace.note(runs(slow, budget=150.0)) == []
    assert pace.note(runs(slow, seeds=1)) == []


def test_only_scratch_of_the_same_machine_and_seed_is_beside_it() -> None:
    slow = phase(cpu_seconds=40.0)
    alone = [scratch(0, phases=[phase()]), method(1, slow), method(0, slow, hardware={**CPU, "name": "another"})]
    assert pace.paces(alone) == {}


def test_runs_that_did_not_record_it_say_nothing() -> None:
    older = phase(seconds=None, cpu_seconds=None)
    assert pace.paces([scratch(0, phases=[older]), method(0, older)]) == {}
    assert pace.paces([scratch(0, phases=[phase()]), method(0, older)]) == {}


def test_a_teacher_whose_outputs_count_as_stored_is_counted() -> None:
    """Its time is in the phase's seconds."""
    taught = {**phase(cpu_seconds=20.0), "flops_per_step": {"train": 10.0, "overhead": 10.0}}
    assert pace.paces(runs(taught))[Place("mine", 0)].cpu_seconds == pytest.approx(1)


def test_the_table_of_phases_has_both_where_they_are_known() -> None:
    shown = run_tables.phases(compare(runs(phase(cpu_seconds=20.0))))
    assert shown is not None and list(shown.heads[-2:]) == ["time for a FLOP", "CPU time for a FLOP"]
    assert [row[-2:] for block in shown.blocks for row in block.rows] == [["", ""], ["1.00", "2.00"]]
    older = run_tables.phases(compare(runs(phase(seconds=None, cpu_seconds=None))))
    assert older is not None and "time for a FLOP" not in older.heads
    assert {len(row) for block in older.blocks for row in block.rows} == {len(older.heads)}
