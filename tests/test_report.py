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
                    "step": step + done, "phase": name, "tokens": (step + done) * 2048, "val_loss": loss, "train_loss": loss,
                    "lr": 3e-3, "flops": flops + done * cost * STEP_FLOPS, "seconds": seconds + done * cost * pace, "scored": scored,
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
        "config": {"experiment": {"architecture": "gpt2", "train": {"steps": STEPS}}, "method": {"steps": operator} if operator else {}},
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
