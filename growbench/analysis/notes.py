"""What a reader must know before believing the tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from growbench.analysis.crossing import cost_to_loss
from growbench.analysis.selection import is_scratch, made_by_earlier_code
from growbench.analysis.statistics import smallest_detectable
from growbench.costs.accounts import Unit
from growbench.formatting import percent
from growbench.runs import store
from growbench.runs.store import Run

LEFT_OUT = "Left out,"  # how the note begins that names what was not compared


def notes(runs: Sequence[Run], shorter: Sequence[Run], left_out: Sequence[Run], target_loss: float | None) -> list[str]:
    """What a reader must know before believing the tables, one sentence each. `shorter`: runs below the full budget."""
    found = []
    if left_out:
        found.append(
            f"{LEFT_OUT} since their experiment differs from that of scratch, or their hyperparameters from those of the "
            f"method's first seed: {_names(left_out)}."
        )
    found += _code_note([*runs, *shorter])
    if target_loss is not None:
        found.append(
            f"The target {target_loss:g} was given by hand, so savings are measured against what scratch paid to reach it, "
            "or against its full budget where it did not."
        )
    unknown = [run for run in runs if any(math.isnan(run.source_cost(unit)) for unit in Unit)]
    trained_elsewhere = [run for run in unknown if "pretrained" not in run.record.config.experiment]
    if len(unknown) > len(trained_elsewhere):
        found.append(f"The source was pretrained, and {store.UNKNOWN_SOURCE}.")
    if trained_elsewhere:
        names = _names(trained_elsewhere)
        found.append(f"Source trained on other hardware, hence no saving in seconds with it charged: {names}.")
    unfinished = [run for run in (*runs, *shorter) if not run.finished]
    if unfinished:
        found.append(f"Did not finish, and count as not reached: {_names(unfinished)}.")
    scratch = {run.record.seed: run for run in runs if is_scratch(run) and run.finished}
    unpaired = [run for run in runs if run.record.seed not in scratch]
    if unpaired:
        found.append(f"Without a finished scratch run of the same seed, hence without a saving: {_names(unpaired)}.")
    foreign = [
        run for run in runs if run.record.seed in scratch and run.record.hardware != scratch[run.record.seed].record.hardware
    ]
    if foreign:
        found.append(f"Ran on other hardware than scratch, hence no saving in seconds: {_names(foreign)}.")
    if len({run.record.hardware for run in scratch.values()}) > 1:
        found.append("Scratch ran on different hardware in different seeds: its mean seconds mix machines.")
    if len({run.record.seed for run in runs}) == 1:
        found.append("One seed: no interval can be given, and small differences mean nothing. A claim takes three seeds or more.")
    return found + _noise_note(list(scratch.values()))


def _code_note(runs: Sequence[Run]) -> list[str]:
    """Which runs today's code is not known to make."""
    earlier = made_by_earlier_code(runs)
    names = "all runs" if len(earlier) == len(runs) else _names(earlier)
    changed = "The methods' code has changed since, and growbench reproduce has not confirmed these runs"
    return [f"Made by earlier code: {names}. {changed}."] if earlier else []


def _noise_note(scratch: Sequence[Run]) -> list[str]:
    """How much scratch varies, and what saving can be told from that with so many seeds; nothing for one."""
    if len(scratch) < 2:
        return []
    deviation = np.std([run.final_loss for run in scratch], ddof=1)
    least = detectable_saving(scratch)
    found = f"only a saving of about {percent(least)} or more" if least < 1 else "no saving"
    return [
        f"Noise floor: scratch's final loss varies by {deviation:.4f} (standard deviation over {len(scratch)} seeds). For a "
        f"method whose cost varies as much as scratch's does near its final loss, these seeds would find {found}. "
        "Savings of steadier methods are easier to find."
    ]


def detectable_saving(scratch: Sequence[Run]) -> float:
    """The saving that a paired test finds four times in five, by what scratch runs pay to the worst of their final losses.

    As if methods varied as scratch does, and two runs of one seed had nothing in common.
    """
    level = max(run.final_loss for run in scratch)
    costs = np.array([cost_to_loss(run.curve, level, "flops") for run in scratch])
    return smallest_detectable(math.sqrt(2) * np.std(costs / costs.mean(), ddof=1), len(scratch))


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(run.name for run in runs)
