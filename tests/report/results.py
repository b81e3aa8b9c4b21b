"""Results as the benchmark would leave them, and what a page made from results says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from growbench.report import plots
from growbench.runs import store

TEXT_PLOTS = [name for name in plots.PLOTS if name not in ("accuracy_vs_flops", "ladder", "ladder_savings")]
STEPS, STEP_FLOPS, STEP_SECONDS = 400, 4.2e10, 0.031


@dataclass(frozen=True)
class Growth:
    """What growth does: steps on the small model at a share of the large one's cost, operator steps, training it is worth."""

    small: int = 0
    small_cost: float = 1.0
    operator: int = 0
    gain: float = 0.0


METHODS = {
    "scratch": Growth(),
    "stackbert": Growth(small=100, small_cost=0.4, gain=0.13),
    "bert2bert": Growth(gain=0.30),
    "ligo": Growth(operator=20, gain=0.38),
}


def write_results(folder: Path, seeds: int, methods: Mapping[str, Growth] = METHODS) -> Path:
    """An experiment's results as the benchmark would leave them."""
    for index, (method, growth) in enumerate(methods.items()):
        for seed in range(seeds):
            write_run(folder, method, seed, growth, noise=np.random.default_rng([index, seed]))
    write_run(folder, "source", 0, Growth(), noise=np.random.default_rng(99))
    return folder


def write_run(folder: Path, method: str, seed: int, growth: Growth, noise: np.random.Generator, budget: float = 1.0) -> None:
    length = round(STEPS * budget)
    small, small_cost, operator = round(growth.small * budget), growth.small_cost, growth.operator
    head_start = growth.gain + noise.normal(0, 0.02)
    pace = noise.uniform(0.95, 1.1) * STEP_SECONDS
    rows: list[dict] = []
    flops = seconds = 0.0
    plan = [("operator", operator, 1.5, False), ("small", small, small_cost, False), ("train", length - small, 1.0, True)]
    grown = method not in ("scratch", "source", "stackbert")
    phases, step, run_step, before = [], 0, 0, 5.2 if grown else None
    for name, steps, cost, scored in plan:
        if not steps:
            continue
        for done in range(0, steps + 1, 4):
            share = (step + done) / length
            loss = 4.88 + 0.3 * (1 - budget)
            loss += 2.72 * (1 - share) ** 1.3 * math.exp(-3.2 * share - 3.4 * head_start * (scored or name == "operator"))
            loss += 0.25 * (name == "small") * share - 0.22 * head_start * share * scored + noise.normal(0, 0.006)
            rows.append(
                {
                    "step": run_step + done, "phase": name, "tokens": (run_step + done) * 2048, "val_loss": loss,
                    "train_loss": loss if done else None, "lr": 3e-3, "scored": scored,
                    "flops": flops + done * cost * STEP_FLOPS, "seconds": seconds + done * cost * pace,
                }
            )  # fmt: skip
        phases.append(
            {
                "name": name, "scored": name != "operator", "target_sized": name != "small",
                "first_step": run_step, "steps": steps,
                "flops_per_step": {"train" if scored or name == "small" else "operator": cost * STEP_FLOPS},
                "median_step_seconds": 0.98 * cost * pace, "growth_flops": 0.0, "output_change": 0.5 if step else None,
                "paper_flops_per_step": round(0.7 * cost * STEP_FLOPS), "optimizer": "new",
                "loss_before": before, "loss_after": rows[-1 - steps // 4]["val_loss"],
                "duplicates": None if name == "small" else 0.5, "duplicates_end": None if name == "small" else 0.125,
            }
        )  # fmt: skip
        before = rows[-1]["val_loss"]
        flops, seconds = rows[-1]["flops"], rows[-1]["seconds"]
        step += 0 if name == "operator" else steps
        run_step += steps
    source = 0.35 * STEPS * STEP_FLOPS * grown
    spent_by_operator = operator * 1.5 * STEP_FLOPS
    path = folder / store.name(method.replace("/", "_"), seed, budget)
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
        "final_val_loss": rows[-1]["val_loss"], "steps": length, "tokens": length * 2048, "parameters": 1_058_304,
        "peak_memory_bytes": 523_000_000, "phases": phases, "versions": {"torch": "2.14.1", "python": "3.11.2"},
        "hardware": {"device": "cpu", "name": "Some CPU", "threads": 2, "precision": "float32"},
        "data": {"name": "wikipedia-sample", "fingerprint": "a53f4648", "train_tokens": 700_000, "validation_tokens": 40_000},
        "error": None, "budget": budget, "inherited": None if budget == 1 else {"flops": 0.3 * flops, "seconds": 0.3 * seconds},
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(record))


def change(run: Path, **changes: Any) -> None:
    """Change entries of a stored run's run.json."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **changes}))


def of_images(folder: Path) -> Path:
    """Turn the results of a text experiment into those of an image experiment, whose accuracy is 2 / loss."""
    for path in folder.iterdir():
        rows = [json.loads(line) for line in (path / "curve.jsonl").read_text().splitlines()]
        rows = [{**row, "val_accuracy": 2 / row["val_loss"]} for row in rows]
        (path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        change(path, final_val_accuracy=rows[-1]["val_accuracy"])
    return folder


def fail(run: Path, message: str = "loss is not finite") -> None:
    """Turn a stored run into one that broke off half-way."""
    record = json.loads((run / "run.json").read_text())
    error = {"step": 200, "message": message, "traceback": "Traceback (most recent call last): ..."}
    (run / "run.json").write_text(json.dumps({**record, "status": "failed", "final_val_loss": None, "error": error}))
    lines = (run / "curve.jsonl").read_text().splitlines(keepends=True)
    (run / "curve.jsonl").write_text("".join(lines[: len(lines) // 2]))


# What a page says


@dataclass
class Cell:
    """A table's cell: its text, and the head that narrow screens show beside it."""

    head: str | None
    text: str = ""


@dataclass
class Page(HTMLParser):
    """A page's tags, links, ids, scripts, text without its figures', and the rows of its tables by the tables' ids."""

    source: str
    tags: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    tables: dict[str, list[list[Cell]]] = field(default_factory=dict)
    text: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[Cell]] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags |= {tag, *(f"{tag} {name}" for name in values)}
        if "id" in values:
            self.ids.append(values["id"] or "")
        self.links += [link for name in ("src", "srcset", "href") if (link := values.get(name)) is not None]
        if tag == "table":
            self.rows = self.tables.setdefault(values.get("id") or f"table {len(self.tables)}", [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(Cell(values.get("data-head")))
        elif tag == "small" or values.get("class") == "tag":
            self.handle_data(" ")
        if tag not in ("meta", "img", "source"):
            self.open.append("mark" if values.get("class") == "mark" else tag)

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
            return
        if {"style", "svg"} & set(self.open):
            return
        self.text += data
        if self.open and self.open[-1] == "title":
            self.title += data
        if self.open and self.open[-1] != "mark" and {"td", "th"} & set(self.open):
            self.rows[-1][-1].text += data

    def body(self, table: str) -> list[list[Cell]]:
        """A table's rows without those of its head."""
        return [row for row in self.tables[table] if any(cell.head for cell in row) or len(row) == 1]

    def methods(self, table: str) -> dict[str, list[dict[str, str]]]:
        """A table's rows by the method that they are of: in its first cell, or in a row of its own above."""
        found: dict[str, list[dict[str, str]]] = {}
        for row in self.body(table):
            if row[0].head is None:
                name = row[0].text
                found[name] = []
            if cells := {cell.head: cell.text for cell in row if cell.head is not None}:
                found[name].append(cells)
        return found

    def row(self, table: str, method: str) -> dict[str, str]:
        """The only row of a method."""
        (row,) = self.methods(table)[method]
        return row


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
