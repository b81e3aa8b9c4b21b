"""The report: every file is there, the page stands alone, names are escaped, a method keeps its colour."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from growbench import report
from growbench.config import UsageError
from growbench.report import plots, units

STEPS, STEP_FLOPS, STEP_SECONDS = 400, 4.2e10, 0.031
# What growth does, as (steps on the small model, its cost there, operator steps, training that growth is worth).
METHODS = {
    "scratch": (0, 1.0, 0, 0.0),
    "stackbert": (100, 0.4, 0, 0.13),
    "bert2bert": (0, 1.0, 0, 0.30),
    "ligo": (0, 1.0, 20, 0.38),
}


def write_results(folder: Path, seeds: int, methods: dict[str, tuple[int, float, int, float]] = METHODS) -> Path:
    """An experiment's results as the benchmark would leave them."""
    for index, (method, shape) in enumerate(methods.items()):
        for seed in range(seeds):
            write_run(folder, method, seed, *shape, noise=np.random.default_rng([index, seed]))
    write_run(folder, "source", 0, 0, 1.0, 0, 0.0, noise=np.random.default_rng(99))
    return folder


def write_run(
    folder: Path, method: str, seed: int, small: int, small_cost: float, operator: int, gain: float, noise: np.random.Generator
) -> None:
    head_start = gain + noise.normal(0, 0.02)
    pace = noise.uniform(0.95, 1.1) * STEP_SECONDS
    rows: list[dict] = []
    flops = seconds = 0.0
    plan = [("operator", operator, 1.5, False), ("small", small, small_cost, False), ("train", STEPS - small, 1.0, True)]
    phases, step = [], 0
    for name, steps, cost, scored in plan:
        if not steps:
            continue
        for done in range(0, steps + 1, 4):
            share = (step + done) / STEPS
            loss = 4.88 + 2.72 * (1 - share) ** 1.3 * math.exp(-3.2 * share - 3.4 * head_start * (scored or name == "operator"))
            loss += 0.25 * (name == "small") * share - 0.22 * head_start * share * scored + noise.normal(0, 0.006)
            rows.append(
                {
                    "step": step + done, "phase": name, "tokens": (step + done) * 2048, "val_loss": loss,
                    "train_loss": loss if done else None, "lr": 3e-3, "scored": scored,
                    "flops": flops + done * cost * STEP_FLOPS, "seconds": seconds + done * cost * pace,
                }
            )  # fmt: skip
        phases.append(
            {
                "name": name, "scored": scored, "target_sized": name != "small", "first_step": step, "steps": steps,
                "flops_per_step": cost * STEP_FLOPS, "median_step_seconds": 0.98 * cost * pace, "growth_flops": 0.0,
            }
        )  # fmt: skip
        flops, seconds = rows[-1]["flops"], rows[-1]["seconds"]
        step += 0 if name == "operator" else steps
    grown = method not in ("scratch", "source", "stackbert")
    source = 0.35 * STEPS * STEP_FLOPS * grown
    spent_by_operator = operator * 1.5 * STEP_FLOPS
    path = folder / f"{method.replace('/', '_')}-seed{seed}"
    path.mkdir(parents=True)
    (path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {
        "status": "finished", "experiment": "gpt2-tiny", "title": "GPT-2 2x64 -> 4x128 on a Wikipedia sample", "method": method,
        "origin": "growbench 0.1.0", "seed": seed,
        "config": {"experiment": {"architecture": "gpt2", "train": {"steps": STEPS}}, "method": {"operator_steps": operator}},
        "published": {"flops": 44.7, "seconds": 40.7} if method == "ligo" else None,
        "cost": {
            "flops": {"source": source, "growth": 0.0, "operator": spent_by_operator, "train": flops - spent_by_operator,
                      "evaluation": 1e12, "overhead": 0.0},
            "seconds": {"source": source / STEP_FLOPS * pace, "growth": 0.02 * grown, "operator": operator * 1.5 * pace,
                        "train": seconds - operator * 1.5 * pace, "evaluation": 1.5, "overhead": 0.8},
        },
        "final_val_loss": rows[-1]["val_loss"], "steps": STEPS, "tokens": STEPS * 2048, "parameters": 1_058_304,
        "peak_memory_bytes": 523_000_000, "phases": phases, "versions": {"torch": "2.14.1", "python": "3.11.2"},
        "hardware": {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"},
        "data": {"name": "wikipedia-sample", "fingerprint": "a53f4648", "train_tokens": 700_000, "validation_tokens": 40_000},
        "error": None,
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(record))


def fail(run: Path, message: str = "loss is not finite") -> None:
    """Turn a stored run into one that broke off half-way."""
    record = json.loads((run / "run.json").read_text())
    error = {"step": 200, "message": message, "traceback": "Traceback (most recent call last): ..."}
    (run / "run.json").write_text(json.dumps({**record, "status": "failed", "final_val_loss": None, "error": error}))
    lines = (run / "curve.jsonl").read_text().splitlines(keepends=True)
    (run / "curve.jsonl").write_text("".join(lines[: len(lines) // 2]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three seeds of four methods, one of whose runs failed."""
    folder = write_results(tmp_path_factory.mktemp("results"), seeds=3)
    fail(folder / "stackbert-seed1", "loss is <nan>")
    return report.make(folder).parent


def test_every_file_is_there(made: Path) -> None:
    expected = {"index.html", "savings.md", "savings_by_seed.csv"}
    expected |= {f"{name}.{kind}" for name in plots.PLOTS for kind in ("png", "svg", "csv")}
    assert {path.name for path in made.iterdir()} == expected
    assert all(path.stat().st_size for path in made.iterdir())


def test_savings_table_has_the_promised_columns(made: Path) -> None:
    measures = [f"{unit}_saving_{ledger}" for unit in ("flops", "seconds") for ledger in ("reuse", "build")]
    expected = ["method", "seeds", "reached", "target_loss"]
    expected += [name + end for name in measures for end in ("", "_low", "_high")]
    expected += ["published_flops_saving", "published_seconds_saving"]
    table = pd.read_csv(made / "savings.csv")
    assert list(table.columns[: len(expected)]) == expected
    ligo = table.set_index("method").loc["ligo"]
    assert ligo["flops_saving_reuse_low"] <= ligo["flops_saving_reuse"] <= ligo["flops_saving_reuse_high"] < 1
    assert ligo["published_flops_saving"] == pytest.approx(0.447)
    assert table["flops_saving_reuse"].isna().tolist() == [False, False, False, True]


def test_page_stands_alone(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert links and all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import", page)


def test_page_says_what_was_not_reached_and_why(made: Path) -> None:
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "not reached<small>(2 of 3)" in page
    assert "loss is &lt;nan&gt;" in page and "<nan>" not in page
    assert "stackbert-seed1" in page


def test_markdown_table_is_well_formed(made: Path) -> None:
    lines = (made / "savings.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(METHODS)
    assert "not reached (2 of 3)" in lines[-1]


def test_names_are_escaped_and_one_seed_has_no_interval(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", 1, {"scratch": METHODS["scratch"], "<b>$x|": METHODS["ligo"]})
    out = report.make(folder, tmp_path / "out").parent
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<b>$x" not in page and "&lt;b&gt;$x|" in page
    assert "One seed" in page
    assert pd.read_csv(out / "savings.csv")["flops_saving_reuse_low"].isna().all()


def test_the_same_runs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    report.make(made.parent, tmp_path)
    for path in made.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_method_keeps_its_colour(made: Path) -> None:
    looks = plots.looks(METHODS)
    assert looks == plots.looks(reversed(METHODS))
    page = (made / "index.html").read_text(encoding="utf-8")
    for method in ("scratch", "bert2bert", "ligo"):
        assert f"background:{looks[method].colour}" in page
        for name in plots.PLOTS:
            drawing = (made / f"{name}.svg").read_text(encoding="utf-8")
            assert looks[method].colour.lower() in drawing.lower(), (method, name)


def test_many_methods_look_different() -> None:
    looks = plots.looks(["scratch", *(f"method{number}" for number in range(40))])
    assert len(set(looks.values())) == len(looks)


def test_only_a_failed_run_and_a_target_by_hand(tmp_path: Path) -> None:
    folder = write_results(tmp_path, 1, {"a_method_with_a_very_long_name": METHODS["ligo"]})
    fail(folder / "a_method_with_a_very_long_name-seed0")
    page = report.make(folder, target_loss=5.0).read_text(encoding="utf-8")
    assert "not reached" in page and "Without a finished scratch run" in page
    with pytest.raises(UsageError, match="--target-loss"):
        report.make(folder)


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", 1, {"scratch": METHODS["scratch"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        report.make(folder, tmp_path / "file")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (9.899, "9.90"), (123.4, "123"), (54321, "54,321"), (-1.5, "−1.50")]
)
def test_digits(value: float, text: str) -> None:
    assert units.digits(value) == text


def test_units_fit_the_largest_cost() -> None:
    assert units.scale(2.3e15, "flops").name == "PFLOP"
    assert units.scale(100.0, "seconds").name == "s" and units.scale(7200.0, "seconds").name == "min"
    assert units.scale(1.0, "flops").text(math.inf) == "∞"
