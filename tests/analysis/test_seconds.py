"""Which seconds a report compares, on runs whose seconds are known by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growbench.analysis import seconds
from growbench.analysis.seconds import SecondsKind, choose
from growbench.costs.accounts import Account, Ledger, Unit
from growbench.costs.hardware import Hardware
from growbench.runs import step_seconds
from growbench.runs.records import RunRecord
from growbench.runs.step_seconds import MethodSeconds, PhaseSeconds, StepSeconds
from growbench.runs.store import Run

HERE = {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"}
ELSEWHERE = {**HERE, "name": "Another CPU"}
EXPERIMENT = {"train": {"steps": 100}, "fingerprint": "data"}


def run(method: str, seed: int, measured: float, phases: Sequence[tuple[str, int]] = (("train", 100),), **changes: Any) -> Run:
    """A finished run that took `measured` seconds: its phases by name and steps, evaluated at the start, middle and end."""
    rows, begun, whole = [], 0, sum(steps for _, steps in phases)
    for name, steps in phases:
        for step in (begun, begun + steps // 2, begun + steps):
            spent = {"flops": 10 * step, "seconds": measured * step / whole}
            rows.append({"step": step, "phase": name, "val_loss": 5 - step / 100, "scored": name == "train", **spent})
        begun += steps
    record = {
        "schema_version": 2, "status": "finished", "experiment": "e", "title": "An experiment", "method": method, "seed": seed,
        "origin": f"growbench {method}", "config": {"experiment": EXPERIMENT, "method": {"train.lr": 0.1}},
        "cost": {"flops": {"train": 10 * whole}, "seconds": {"train": measured, "evaluation": 7.0}},
        "final_val_loss": rows[-1]["val_loss"], "steps": whole, "tokens": 2000, "hardware": HERE,
        "phases": [{"name": name, "steps": steps, "scored": name == "train"} for name, steps in phases],
    }  # fmt: skip
    return Run(Path(f"{method}-seed{seed}"), RunRecord.read(json.dumps({**record, **changes})), rows)


def scratch(*measured: float, **changes: Any) -> list[Run]:
    return [run("scratch", seed, each, **changes) for seed, each in enumerate(measured)]


def phase(name: str, steps: int, each: float, growth: float = 0.0, error: float = 0.001) -> PhaseSeconds:
    return PhaseSeconds(name=name, steps=steps, step_seconds=each, spread=0.01, error=error, growth_seconds=growth)


def method(origin: str, *phases: PhaseSeconds) -> MethodSeconds:
    config = step_seconds.digest_of_method({})
    return MethodSeconds(origin=origin, config=config, commit="c", date="2026-11-26", phases=list(phases))


REFERENCE = StepSeconds(
    hardware=Hardware(**HERE),
    versions={"torch": "2"},
    experiment=step_seconds.digest_of_experiment(EXPERIMENT),
    methods={
        "scratch": method("growbench scratch", phase("train", 100, 0.5)),
        "ligo": method("growbench ligo", phase("learn", 20, 0.75, growth=2), phase("train", 100, 0.5, growth=1)),
        "source": method("growbench scratch", phase("train", 200, 0.1, growth=0.5)),
    },
)
NOISY = (1091.0, 1013.0, 626.0)
GROWN: dict[str, Any] = {
    "phases": (("learn", 20), ("train", 100)),
    "cost": {"flops": {"train": 1200, "source": 100}, "seconds": {"train": 66.0, "source": None}},
}


def test_seconds_that_do_not_repeat_are_not_compared_and_the_note_says_why() -> None:
    """Their standard deviation is 249 s, their mean 910 s."""
    runs = scratch(*NOISY)
    found = choose(runs)
    assert found.kind == SecondsKind.NONE
    assert "vary by 27.4\N{NO-BREAK SPACE}%" in found.note and "there are no reference seconds. growbench bench" in found.note
    timed = found.timed(runs[0])
    assert math.isnan(timed.cost(Unit.SECONDS, Ledger.REUSE)) and all(math.isnan(row["seconds"]) for row in timed.curve)
    assert timed.cost(Unit.FLOPS, Ledger.REUSE) == 1000
    assert timed.record.cost.of(Unit.SECONDS, Account.EVALUATION) == 7


def test_seconds_that_repeat_are_taken_as_measured() -> None:
    runs = [*scratch(100, 102, 101), run("ligo", 0, 80)]
    found = choose(runs, [REFERENCE])
    assert found.kind == SecondsKind.MEASURED and "vary by 1.0\N{NO-BREAK SPACE}%" in found.note
    assert [found.timed(each) for each in runs] == runs


def test_variation_is_per_step_and_the_worst_of_the_budgets() -> None:
    early = replace(scratch(50)[0].record, steps=50)
    steady = [*scratch(100, 100), replace(scratch(50)[0], record=early)]
    assert seconds.variation_of(steady) == 0
    config = {"experiment": EXPERIMENT, "method": {}, "budget_share": 0.5}
    rungs = [run("scratch", seed, each, config=config) for seed, each in enumerate((40, 60))]
    assert seconds.variation_of([*scratch(100, 100), *rungs]) == pytest.approx(np.std([40, 60], ddof=1) / 50)
    assert math.isnan(seconds.variation_of(scratch(100)))


def test_reference_seconds_are_steps_times_step_times_plus_growth() -> None:
    grown = run("ligo", 0, **{"measured": 66.0, **GROWN})
    found = choose([*scratch(*NOISY), grown], [REFERENCE])
    assert (
        found.kind == SecondsKind.REFERENCE and "vary by 27.4" in found.note and "Some CPU in float32 (2026-11-26)" in found.note
    )
    timed = found.timed(grown)
    assert [row["seconds"] for row in timed.curve] == [2, 9.5, 17, 18, 43, 68]
    assert [row["flops"] for row in timed.curve] == [row["flops"] for row in grown.curve]
    assert timed.cost(Unit.SECONDS, Ledger.REUSE) == 68
    assert timed.cost(Unit.SECONDS, Ledger.BUILD) == 68 + 200 * 0.1 + 0.5
    of = timed.record.cost.of
    assert [of(Unit.SECONDS, account) for account in (Account.GROWTH, Account.OPERATOR, Account.TRAIN)] == [3, 15, 50]
    assert found.timed(scratch(*NOISY)[2]).cost(Unit.SECONDS, Ledger.BUILD) == 50


def test_a_run_that_was_cut_short_has_reference_seconds_up_to_its_end() -> None:
    whole = run("ligo", 0, **{"measured": 66.0, **GROWN})
    cut = replace(whole, record=replace(whole.record, phases=whole.record.phases[:1]), curve=whole.curve[:5])
    found = choose([*scratch(*NOISY), cut], [REFERENCE])
    assert [row["seconds"] for row in found.timed(cut).curve] == [2, 9.5, 17, 18, 43]


def test_what_a_branch_inherited_is_timed_alike() -> None:
    rung = run("scratch", 0, 1091.0, inherited={"flops": 500, "seconds": 900.0})
    timed = choose([*scratch(*NOISY), rung], [REFERENCE]).timed(rung)
    assert timed.record.inherited is not None and timed.record.inherited.seconds == 25


def test_a_pretrained_source_costs_what_is_stated() -> None:
    config = {"experiment": {**EXPERIMENT, "pretrained": {"checkpoint": "x"}}, "method": {}}
    cost = {"flops": {"train": 1200, "source": 100}, "seconds": {"train": 66.0, "source": 40.0}}
    grown = run("ligo", 0, 66.0, **{**GROWN, "cost": cost, "config": config})
    reference = replace(REFERENCE, experiment=step_seconds.digest_of_experiment(config["experiment"]))
    found = choose([*scratch(*NOISY, config=config), grown], [reference])
    assert found.timed(grown).cost(Unit.SECONDS, Ledger.BUILD) == 108


@pytest.mark.parametrize("source", [None, method("other code", phase("train", 200, 0.1))])
def test_the_source_is_unknown_unless_it_was_measured_with_scratchs_code(source: MethodSeconds | None) -> None:
    methods = {name: each for name, each in REFERENCE.methods.items() if name != "source"} | (
        {"source": source} if source else {}
    )
    grown = run("ligo", 0, **{"measured": 66.0, **GROWN})
    timed = choose([*scratch(*NOISY), grown], [replace(REFERENCE, methods=methods)]).timed(grown)
    assert timed.cost(Unit.SECONDS, Ledger.REUSE) == 68 and math.isnan(timed.cost(Unit.SECONDS, Ledger.BUILD))


STALE = {
    "not measured": {},
    "measured with other code": {"scratch": method("growbench older", phase("train", 100, 0.5))},
    "measured with other hyperparameters": {
        "scratch": replace(REFERENCE.methods["scratch"], config=step_seconds.digest_of_method({"depth": 2}))
    },
    "has other phases than were measured": {"scratch": method("growbench scratch", phase("first", 100, 0.5))},
    "measured on a busy machine: uncertain by 3.0\N{NO-BREAK SPACE}%": {
        "scratch": method("growbench scratch", phase("train", 100, 0.5, error=0.03))
    },
}


@pytest.mark.parametrize("reason", STALE)
def test_a_stale_reference_is_refused_with_a_word(reason: str) -> None:
    found = choose(scratch(*NOISY), [replace(REFERENCE, methods=STALE[reason])])
    assert found.kind == SecondsKind.NONE and f"the reference seconds are not used: scratch {reason}." in found.note


def test_a_reference_of_another_configuration_is_refused_with_a_word() -> None:
    found = choose(scratch(*NOISY), [replace(REFERENCE, experiment="another")])
    assert found.kind == SecondsKind.NONE and "another configuration of the experiment" in found.note


def test_a_reference_of_the_runs_machine_comes_first_and_one_of_another_names_both() -> None:
    foreign = replace(
        REFERENCE,
        hardware=Hardware(**ELSEWHERE),
        methods={"scratch": method("growbench scratch", phase("train", 100, 2.0))},
    )
    runs = scratch(*NOISY)
    for references in ([foreign, REFERENCE], [REFERENCE, foreign]):
        found = choose(runs, references)
        assert found.hardware == REFERENCE.hardware and "were trained on" not in found.note
        assert found.timed(runs[0]).cost(Unit.SECONDS, Ledger.REUSE) == 50
    found = choose(runs, [foreign])
    assert (
        "measured alone, on Another CPU in float32 (2026-11-26). The runs were trained on Some CPU in float32: there"
        in found.note
    )
    assert found.timed(runs[0]).cost(Unit.SECONDS, Ledger.REUSE) == 200
    stale = replace(REFERENCE, methods=STALE["measured with other code"])
    assert choose(runs, [stale, foreign]).hardware == foreign.hardware
    wrong = choose(runs, [replace(foreign, experiment="another"), stale])
    assert wrong.kind == SecondsKind.NONE and "not used: scratch measured with other code." in wrong.note


def test_a_method_without_reference_has_no_seconds_and_is_named() -> None:
    other = run("ki", 0, 80)
    found = choose([*scratch(*NOISY), other], [REFERENCE])
    assert found.kind == SecondsKind.REFERENCE and "There are none for ki (not measured)." in found.note
    assert math.isnan(found.timed(other).cost(Unit.SECONDS, Ledger.REUSE))


def test_scratch_on_unequal_hardware_has_no_measured_seconds() -> None:
    runs = [*scratch(100, 100), run("scratch", 2, 100, hardware=ELSEWHERE)]
    found = choose(runs)
    assert found.kind == SecondsKind.NONE and found.note.startswith("Scratch ran on different hardware")
    found = choose(runs, [REFERENCE])
    assert found.kind == SecondsKind.REFERENCE and found.timed(runs[2]).cost(Unit.SECONDS, Ledger.REUSE) == 50


def test_a_method_that_ran_elsewhere_has_no_measured_seconds() -> None:
    foreign = run("ligo", 0, 80, hardware=ELSEWHERE)
    found = choose([*scratch(100, 101), foreign])
    assert (
        found.kind == SecondsKind.MEASURED and "Ran on other hardware than scratch" in found.note and "ligo-seed0" in found.note
    )
    assert math.isnan(found.timed(foreign).cost(Unit.SECONDS, Ledger.REUSE))
    assert found.timed(scratch(100)[0]).cost(Unit.SECONDS, Ledger.REUSE) == 100


def test_one_seed_takes_reference_seconds_or_says_that_nothing_shows_that_they_repeat() -> None:
    assert choose(scratch(100), [REFERENCE]).kind == SecondsKind.REFERENCE
    found = choose(scratch(100))
    assert found.kind == SecondsKind.MEASURED and "nothing shows that they repeat" in found.note


def test_runs_beside_others_have_no_measured_seconds_but_reference_seconds_of_the_whole_machine() -> None:
    """Their share of the threads says nothing: alone they would have all."""
    beside = {**HERE, "threads": 1, "at_once": 2}
    runs = scratch(100, 100, hardware=beside)
    found = choose(runs)
    assert found.kind == SecondsKind.NONE and found.note.startswith("Scratch ran beside other runs on the same machine")
    assert choose(runs, [REFERENCE]).timed(runs[0]).cost(Unit.SECONDS, Ledger.REUSE) == 50
    assert choose(scratch(100, 100, hardware={**HERE, "threads": 1}), [REFERENCE]).kind == SecondsKind.MEASURED
    begun_so = scratch(100, 100, hardware={**HERE, "earlier": str(Hardware(**beside))})
    assert choose(begun_so).kind == SecondsKind.NONE


def test_a_damaged_file_counts_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "step_seconds.json").write_text("{")
    assert seconds.references_of(tmp_path) == []
    assert "step_seconds.json" in capsys.readouterr().err
