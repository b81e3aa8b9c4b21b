"""Sampling errors by document, against closed forms and a simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from growbench.analysis import sampling
from growbench.runs import store
from growbench.runs.store import Run

RECORD = {
    "schema_version": 3, "status": "finished", "experiment": "e", "title": "E", "origin": "o",
    "config": {"experiment": {}, "method": {}},
    "cost": {"flops": {"train": 1.0}, "seconds": {}}, "steps": 1, "tokens": 1, "phases": [],
    "hardware": {"device": "cpu", "name": "c", "threads": 1, "precision": "float32", "processes": ""},
}  # fmt: skip


def stored(folder: Path, method: str, seed: int, documents: np.ndarray | None, loss: float = 2.0) -> Run:
    place = folder / f"{method}-seed{seed}"
    place.mkdir()
    record = RECORD | {"method": method, "seed": seed, "final_val_loss": loss, "final_test_loss": loss + 1}
    (place / "run.json").write_text(json.dumps(record))
    (place / "curve.jsonl").touch()
    if documents is not None:
        np.save(place / "documents.npy", documents.astype(np.float32))
    run = store.load(place)
    assert run is not None
    return run


def test_documents_of_one_size_give_the_standard_error_of_a_mean() -> None:
    differences = [0.1, -0.2, 0.4, 0.05, 0.3]
    assert sampling.standard_error(differences, [7] * 5) == pytest.approx(stats.sem(differences))
    assert sampling.standard_error([0.3, 0.3, 0.3], [1, 2, 3]) == pytest.approx(0, abs=1e-12)
    assert math.isnan(sampling.standard_error([0.3], [5]))


def test_two_documents_by_hand() -> None:
    """Mean (1 x 3 + 5 x 1) / 4 = 2; residuals -3 and 3; sqrt(2 / 1 x 18) / 4 = 1.5."""
    assert sampling.standard_error([1, 5], [3, 1]) == pytest.approx(1.5)


def test_the_error_is_the_spread_over_draws_of_documents() -> None:
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(2000):
        labels = rng.integers(20, 200, 60)
        differences = 0.1 + 0.2 * rng.standard_normal(60) + rng.standard_normal(60) / np.sqrt(labels)
        means.append(np.average(differences, weights=labels))
        errors.append(sampling.standard_error(differences, labels))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)


def test_a_difference_is_paired_by_document_and_averaged_over_seeds(tmp_path: Path) -> None:
    labels, hard = np.array([10, 30, 20]), np.array([1.0, 5.0, 3.0])  # documents differ much, the models little
    gains = np.array([[0.1, 0.2, 0.3], [0.3, 0.0, 0.1]])
    runs, finals = [], {}
    for seed in (0, 1):
        for method, losses in ("scratch", hard + 0.01 * seed), ("ligo", hard + 0.01 * seed - gains[seed]):
            finals[method, seed] = float(np.average(losses, weights=labels))
            runs.append(stored(tmp_path, method, seed, np.stack([losses, labels], 1), finals[method, seed]))
    gained = np.average(gains, axis=1, weights=labels)
    found = sampling.differences(runs)["ligo"]
    assert found.mean == pytest.approx(-gained.mean()) and found.documents == 3
    assert found.over_seeds == pytest.approx(stats.sem(gained))
    assert found.over_documents == pytest.approx(sampling.standard_error(-gains.mean(0), labels), rel=1e-4)
    table = sampling.columns(runs, ["scratch", "ligo"])
    assert table.loc["ligo", "final_test_loss"] == pytest.approx((finals["ligo", 0] + finals["ligo", 1]) / 2 + 1)
    assert table.loc["scratch", "loss_minus_scratch"] == 0
    (text,) = sampling.note(runs)
    assert f"ligo −{gained.mean():.4f} (0.0" in text


def test_runs_without_the_file_are_not_recorded_and_not_0(tmp_path: Path) -> None:
    """Nor are those whose documents are others."""
    documents = np.array([[1.0, 10], [2.0, 20]])
    runs = [
        stored(tmp_path, "scratch", 0, documents),
        stored(tmp_path, "ligo", 0, None),
        stored(tmp_path, "ki", 0, documents[::-1]),
    ]
    for method in ("ligo", "ki"):
        found = sampling.differences(runs)[method]
        assert found.mean == 0 and math.isnan(found.over_documents) and math.isnan(found.over_seeds)
    assert "ligo +0.0000 (not recorded; not recorded)" in sampling.note(runs)[0]
