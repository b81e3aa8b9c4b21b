"""The page's estimator, in JavaScript, finds what growbench.analysis finds."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special

from growbench import formatting
from growbench.analysis import columns, tables
from growbench.analysis.comparison import analyse
from growbench.analysis.estimator import Curve, Estimate, at_least, estimate, verdict
from growbench.analysis.protocols import Protocol, Reading
from growbench.analysis.savings import savings
from growbench.analysis.statistics import holm
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH
from growbench.report import live_data
from tests.report.browser import Call
from tests.report.results import METHODS, change, fail, write_results

CLOSE = 1e-9


def close(found: Any, expected: float) -> bool:
    """Equal to 1e-9, or the same infinity, or both NaN."""
    value = float(found)
    return value == expected or (math.isnan(value) and math.isnan(expected)) or abs(value - expected) < CLOSE


def mismatches(found: Mapping[str, Any], expected: Estimate) -> list[str]:
    """The figures of an estimate that differ, with both values."""
    saving, other = found["saving"], expected.saving
    pairs = {"mean": (saving["mean"], other.mean), "low": (saving["low"], other.low), "high": (saving["high"], other.high)}
    pairs |= {"p": (found["p"], expected.p), "at": (found["testedAt"], expected.tested_at)}
    pairs |= {"difference": (found["difference"], expected.difference), "deviation": (found["deviation"], expected.deviation)}
    texts = {"relation": (saving["relation"], str(other.relation)), "untested": (found["untested"], expected.untested)}
    numbers = [f"{name}: {one} {two}" for name, (one, two) in pairs.items() if not close(one, two)]
    return numbers + [f"{name}: {one} {two}" for name, (one, two) in texts.items() if one != two]


# Estimates of random curves


def random_case(draw: np.random.Generator) -> dict[str, Any]:
    """Curves of one to six seeds: short and long, with ties, lost losses, costs that repeat, all alike, target missed."""
    seeds, ladder, ties = int(draw.integers(1, 7)), bool(draw.integers(2)), draw.random() < 0.3
    shape, offset, pace = draw.uniform(0.05, 0.5), draw.normal(0, 0.05), draw.lognormal(0, 0.4)
    curves = []
    for _ in range(seeds):
        points = int(draw.integers(1, 7) if ladder else draw.integers(1, 40))
        costs = np.sort(draw.uniform(5, 130, points))
        if draw.random() < 0.2:
            costs = np.round(costs, -1)  # some repeat
        losses = (
            3 * (np.maximum(costs, 1.0) * pace / 100) ** -shape + offset + draw.normal(0, draw.choice([0, 0.02, 0.2]), points)
        )
        losses = np.round(losses, 1) if ties else losses
        failed = draw.random(points) < (0.1 if draw.random() < 0.3 else 0)
        curves.append(
            {"costs": list(costs), "losses": [None if lost else loss for loss, lost in zip(losses, failed, strict=True)]}
        )
    same = draw.random() < 0.5
    references = [100.0] * seeds if same else list(draw.uniform(90, 110, seeds))
    scratch = [3.0] * seeds if same else [round(loss, 1 if ties else 9) for loss in draw.normal(3, 0.05, seeds)]
    if draw.random() < 0.1:
        curves = curves[:1] * seeds
    return {"ladder": ladder, "curves": curves, "scratch": scratch, "references": references}


def curve_of(case: Mapping[str, Any], given: Mapping[str, Sequence[float | None]]) -> Curve:
    losses = [math.nan if loss is None else loss for loss in given["losses"]]
    return (Curve.of_ladder if case["ladder"] else Curve.of_run)(given["costs"], losses)


def test_estimates_of_random_curves_are_pythons(javascript: Call) -> None:
    draw = np.random.default_rng(0)
    cases = [random_case(draw) for _ in range(300)]
    estimates = """(cases) => cases.map((case_) => {
        const curve = case_.ladder ? estimator.curveOfLadder : estimator.curveOfRun;
        const curves = case_.curves.map((each) => curve(each.costs, each.losses));
        const found = estimator.estimate(curves, case_.scratch, case_.references);
        return {
            found, bound: estimator.atLeast(found), verdict: estimator.verdict(found, found.p),
            meets: curves.map((each, i) => estimator.meets(each, case_.scratch[i])),
            at: curves.map((each) => (each.costs.length ? estimator.lossAt(each, 77) : NaN)),
        };
    })"""
    untested, relations = set(), set()
    for case, found in zip(cases, javascript(estimates, cases), strict=True):
        curves = [curve_of(case, given) for given in case["curves"]]
        expected = estimate(curves, case["scratch"], case["references"])
        assert not mismatches(found["found"], expected), case
        assert not mismatches(found["bound"], at_least(expected)), case
        assert found["verdict"] == verdict(expected, expected.p)
        for curve, loss, meets, at in zip(curves, case["scratch"], found["meets"], found["at"], strict=True):
            assert close(meets, curve.meets(loss)), case
            assert close(at, curve.at(77) if len(curve) else math.nan), case
        untested.add(expected.untested)
        relations.add(expected.saving.relation)
    assert len(relations) == 3 and len(untested) == 4  # none of them was spared


def test_students_t_is_scipys(javascript: Call) -> None:
    freedoms, statistics = list(range(1, 41)), [0.0, 1e-4, 0.3, 1.0, 2.5, 4.2, 31.0, 1e4]
    both = """(freedoms, statistics) => freedoms.map((freedom) =>
        [estimator.critical(0.05, freedom), ...statistics.map((t) => estimator.tail(t, freedom))])"""
    for freedom, (critical, *tails) in zip(freedoms, javascript(both, freedoms, statistics), strict=True):
        assert critical == pytest.approx(special.stdtrit(freedom, 0.975), rel=1e-12)
        assert tails == pytest.approx(list(2 * special.stdtr(freedom, -np.array(statistics))), abs=1e-13)


def test_holms_correction_is_pythons(javascript: Call) -> None:
    draw = np.random.default_rng(1)
    families = [list(np.round(draw.random(int(draw.integers(0, 8))) ** 3, 3)) for _ in range(40)]
    families = [[None if draw.random() < 0.2 else p for p in family] for family in families]
    found = javascript("(all) => all.map((p) => estimator.holm(p.map((each) => each ?? NaN)))", families)
    for family, adjusted in zip(families, found, strict=True):
        expected = holm([math.nan if p is None else p for p in family])
        assert all(close(one, two) for one, two in zip(adjusted, expected, strict=True))


# Tables of stored runs at any target

READ = """(data, targets) => targets.map((target) => {
    const runs = data.runs.map((run) => run.curve ? { ...run, curve: {
        ...run.curve, ...Object.fromEntries(["flops", "seconds", "loss", "scored"].map(
            (key) => [key, reading.unpacked(run.curve[key])])) } } : run);
    const kept = data.protocol === "single" ? runs.filter((run) => run.budget === 1) : runs;
    const read = new reading.Reading(new reading.Runs(data.protocol, kept), target);
    return Object.fromEntries(["flops", "seconds"].flatMap((unit) => ["reuse", "build"].map((ledger) =>
        [`${unit} ${ledger}`, [...read.judged(data.methods, unit, ledger)].map(
            ([name, found]) => ({ ...found, name, reached: read.reached(name) }))])));
})"""


def assert_tables_agree(javascript: Call, folder: Path, targets: Sequence[float | None], protocol: Protocol) -> None:
    """The page's figures at these targets, from its JSON, against the tables of Python."""
    whole = analyse(folder)
    kept = [method for method in whole.methods if protocol == Protocol.SINGLE or method in set(whole.ladder["method"])]
    controls = whole.where("control")
    methods = [{"name": method, "control": method in controls} for method in kept]
    data = json.loads(json.dumps({"runs": live_data.runs_of(whole), "methods": methods, "protocol": protocol}, allow_nan=False))
    for target, found in zip(targets, javascript(READ, data, targets), strict=True):
        read = Reading(protocol, whole.readings[protocol].runs, target)
        assert_table_agrees(savings(read, kept, controls), target, found)


def assert_table_agrees(table: pd.DataFrame, target: float | None, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    rows = {row["method"]: row for row in tables.records(table) if row["method"] != SCRATCH}
    for unit in Unit:
        for ledger in Ledger:
            cells = found[f"{unit} {ledger}"]
            assert {cell["name"] for cell in cells} == set(rows)
            for cell in cells:
                row, saving = rows[cell["name"]], columns.saving_in(rows[cell["name"]], unit, ledger)
                where = (target, unit, ledger, row["method"])
                pairs = [(cell["saving"][end], getattr(saving, end)) for end in ("mean", "low", "high")]
                if unit == Unit.FLOPS:
                    pairs += [
                        (cell["p"], row[columns.p_value(ledger)]),
                        (cell["adjusted"], row[columns.adjusted_p_value(ledger)]),
                    ]
                    assert (cell["verdict"], cell["untested"])[cell["verdict"] == "no verdict"] == row[columns.verdict(ledger)], (
                        where
                    )
                assert all(close(*pair) for pair in pairs), (where, pairs)
                assert cell["saving"]["relation"] == saving.relation and cell["reached"] == row["reached"], where
                cost = row[columns.cost_to_target(unit, ledger)]
                assert close(cell["cost"], cost) or float(cell["cost"]) == pytest.approx(cost, rel=CLOSE), where


def test_tables_of_single_runs_are_pythons_at_every_target(javascript: Call, tmp_path: Path) -> None:
    """From above all losses to below; a method with a failed run, one of fewer seeds, a source of unknown cost, a control."""
    folder = write_results(tmp_path / "e", seeds=3, methods={**METHODS, "net2net": METHODS["bert2bert"], "mslt": METHODS["ligo"]})
    fail(folder / "stackbert-seed1")
    (folder / "net2net-seed2" / "run.json").unlink()
    cost = json.loads((folder / "bert2bert-seed1" / "run.json").read_text())["cost"]
    change(folder / "bert2bert-seed1", cost={unit: {**spent, "source": None} for unit, spent in cost.items()})
    targets = [None, 8.0, 5.6, 4.95, 4.88, 4.85, 4.6, 4.0]
    assert_tables_agree(javascript, folder, targets, Protocol.SINGLE)


def test_tables_of_one_seed_are_pythons(javascript: Call, tmp_path: Path) -> None:
    assert_tables_agree(javascript, write_results(tmp_path / "e", seeds=1), [None, 5.0, 4.7], Protocol.SINGLE)


def test_tables_of_a_ladder_are_pythons_at_every_target(javascript: Call, ladder_results: Path, tmp_path: Path) -> None:
    """A method that misses scratch in one seed, one that is ahead at once, one whose shortest run failed."""
    folder = shutil.copytree(ladder_results, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    change(folder / "bert2bert-seed0-budget0.4", status="failed", final_val_loss=None)
    assert_tables_agree(javascript, folder, [None, 5.4, 5.05, 4.95, 4.88, 4.6, 4.2], Protocol.LADDER)


# Numbers as people read them


def test_numbers_are_written_as_pythons(javascript: Call) -> None:
    draw = np.random.default_rng(2)
    shares = [0.0, -0.00001, 0.1225, 0.5, 1.0, -2.345, *draw.normal(0, 0.5, 40)]
    costs = [0.0, 0.9999, 9.995, 59.0, 180.0, 3601.0, 12345.6, 2.4e5, 9.996e11, 1.0e12, *10 ** draw.uniform(-2, 20, 40)]
    levels = [0.0005, 0.001, 0.0496, 0.0504, 0.05, 1.0, *draw.random(40)]
    ends = [(0.4, 0.3, 0.5, "="), (0.4, -math.inf, 0.5, "="), (0.4, 0.3, math.inf, "="), (0.4, 0.4, math.inf, ">")]
    ends += [
        (0.1, -math.inf, math.inf, "<"),
        (math.nan, math.nan, math.nan, "="),
        (0.2, math.nan, math.nan, "<"),
        (-0.3, -math.inf, -0.3, "<"),
    ]
    given = [[str(value).replace("inf", "Infinity") for value in row] for row in ends]
    every = """(shares, costs, levels, ends) => [
        shares.map(format.percent), costs.map((cost) => format.quantity(cost, "FLOP")),
        costs.map((cost) => format.quantity(cost, "s")), levels.map(format.pValue),
        ends.map(([mean, low, high, relation]) => format.saving({ mean: +mean, low: +low, high: +high, relation }))]"""
    found = javascript(every, shares, costs, levels, given)
    expected = [
        [formatting.percent(share) for share in shares],
        [formatting.quantity(cost, "FLOP") for cost in costs],
        [formatting.quantity(cost, "s") for cost in costs],
        [formatting.p_value(p, equals=True) for p in levels],
        [formatting.saving(*row) for row in ends],
    ]
    plain = str.maketrans("\N{NO-BREAK SPACE}", " ")
    for one, other in zip(found, expected, strict=True):
        assert [text.translate(plain) for text in one] == [text.translate(plain) for text in other]


# The embedded columns


def test_columns_are_unpacked_to_the_very_same_numbers(javascript: Call) -> None:
    given = [
        [], [3.0], [1, 2], [0, 4, 8, 12, 16, 17], [0, 56425553920, 112851107840, 5e11], [0.1, 0.2, 0.30000000000000004, 0.4],
        [0.1 * k for k in range(20)], [4.9, math.nan, math.inf, 4.7], [1, 1, 1, 1, 0, 0, 0], [2**60, 2**60 + 1024, 2**60 + 2048],
        [round(0.1 * k, 9) for k in range(20)],
    ]  # fmt: skip
    packed = [live_data.packed(values) for values in given]
    assert packed[3] == [[0, 5, 4], 17] and len(packed[7]) == 4
    for found, expected in zip(javascript("(all) => all.map(reading.unpacked)", packed), given, strict=True):
        assert [math.nan if value is None else float(value) for value in found] == pytest.approx(
            [value if math.isfinite(value) else math.nan for value in map(float, expected)], rel=0, abs=0, nan_ok=True
        )
