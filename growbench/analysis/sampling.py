"""The sampling error of a difference between two models: how much it hangs on which documents are held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from growbench import formatting
from growbench.analysis.selection import is_scratch
from growbench.registry import SCRATCH
from growbench.runs.store import Run

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Difference:
    """A method's final loss minus that of scratch with the same seed (nats): the mean over seeds, and its standard errors.

    NaN: not recorded, or too few documents or seeds.
    """

    mean: float = math.nan
    over_documents: float = math.nan
    over_seeds: float = math.nan
    documents: int = 0


def standard_error(differences: ArrayLike, labels: ArrayLike) -> float:
    """Of the mean difference over all labels, documents being drawn as a whole.

    `differences`: of each document's mean loss; `labels`: how many each has. Linearised, as for a ratio of two sums (Cochran
    1977, section 6.3). NaN for fewer than two documents.
    """
    each, sizes = np.asarray(differences, float), np.asarray(labels, float)
    if len(each) < 2:
        return math.nan
    mean = np.average(each, weights=sizes)
    residuals = sizes * (each - mean)
    return float(np.sqrt(len(each) / (len(each) - 1) * np.sum(residuals**2)) / np.sum(sizes))


def difference(runs: Sequence[Run], scratch: Sequence[Run]) -> Difference:
    """Of finished runs of one method and of scratch with the same seeds, in the same order."""
    own = [run.final_loss - reference.final_loss for run, reference in zip(runs, scratch, strict=True)]
    if not own:
        return Difference()
    mean, over_seeds = float(np.mean(own)), float(np.std(own, ddof=1) / math.sqrt(len(own))) if len(own) > 1 else math.nan
    pairs = [(run.documents, reference.documents) for run, reference in zip(runs, scratch, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None and np.array_equal(a[:, 1], b[:, 1])]
    if len(known) < len(pairs) or any(not np.array_equal(a[:, 1], known[0][0][:, 1]) for a, _ in known):
        return Difference(mean, over_seeds=over_seeds)
    of_documents = np.mean([a[:, 0] - b[:, 0] for a, b in known], axis=0)
    return Difference(mean, standard_error(of_documents, known[0][0][:, 1]), over_seeds, len(of_documents))


def differences(runs: Sequence[Run]) -> dict[str, Difference]:
    """By method, over its seeds that finished and for which scratch did."""
    scratch = {run.record.seed: run for run in runs if is_scratch(run) and run.finished}
    found = {}
    for method in dict.fromkeys(run.record.method for run in runs if not is_scratch(run)):
        own = [run for run in runs if run.record.method == method and run.finished and run.record.seed in scratch]
        found[method] = difference(own, [scratch[run.record.seed] for run in own])
    return found


def columns(runs: Sequence[Run], methods: Sequence[str]) -> pd.DataFrame:
    """By method, the mean final test loss, and the difference of validation losses with its errors."""
    found = differences(runs)
    rows = []
    for method in methods:
        tested = [run.record.final_test_loss for run in runs if run.record.method == method and run.finished]
        known = [loss for loss in tested if loss is not None]
        each = found.get(method, Difference())
        rows.append(
            {
                "final_test_loss": math.fsum(known) / len(known) if known and len(known) == len(tested) else math.nan,
                "loss_minus_scratch": 0.0 if method == SCRATCH else each.mean,
                "loss_minus_scratch_error_over_documents": each.over_documents,
                "loss_minus_scratch_error_over_seeds": each.over_seeds,
            }
        )
    return pd.DataFrame(rows, index=list(methods))


def note(runs: Sequence[Run]) -> list[str]:
    """How large the sampling error is beside the seeds'; nothing without a method that compares."""
    found = {method: each for method, each in differences(runs).items() if not math.isnan(each.mean)}
    if not found:
        return []
    texts = [
        f"{name} {formatting.difference(each.mean)} ({_text(each.over_documents)}; {_text(each.over_seeds)})"
        for name, each in found.items()
    ]
    return [
        "Final validation loss minus that of scratch with the same seed, in nats, and its standard errors over documents "
        f"(paired) and over seeds: {', '.join(texts)}. Intervals of savings do not hold the error over documents."
    ]


def _text(error: float) -> str:
    return NOT_RECORDED if math.isnan(error) else f"{error:.4f}"
