"""Which stored runs compare with one another."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import pandas as pd

from growbench import registry
from growbench.config.schema import PROTOCOL
from growbench.costs.accounts import Unit
from growbench.errors import UsageError
from growbench.registry import SCRATCH, SOURCE
from growbench.runs.records import UNKNOWN_ORIGIN
from growbench.runs.store import Run


def is_scratch(run: Run) -> bool:
    return run.record.method == SCRATCH


def comparable(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs that share scratch's experiment (should it have several, the most common one at the full budget), and the others.

    Of one method, only those with the hyperparameters and the origin of its first seed: two variants have no common mean.
    """
    scratch = [run for run in runs if is_scratch(run) and run.record.budget_share == 1]
    base = [run for run in scratch if run.finished] or scratch or runs
    identity = Counter(_identity(run) for run in base).most_common(1)[0][0]
    ordered = sorted(runs, key=lambda run: (run.record.method, run.record.seed))
    shared = [run for run in ordered if _identity(run) == identity]
    first: dict[str, str] = {}
    for run in shared:
        first.setdefault(run.record.method, _variant(run))
    kept = [run for run in shared if _variant(run) == first[run.record.method]]
    return kept, [run for run in runs if run not in kept]


def _identity(run: Run) -> str:
    return json.dumps(run.record.config.experiment, sort_keys=True)


def _variant(run: Run) -> str:
    return json.dumps([run.record.config.method, run.record.origin], sort_keys=True)


def made_by_earlier_code(runs: Iterable[Run]) -> list[Run]:
    """The runs of another protocol, and those whose method has other code today and which were not reproduced with it.

    Of the code of a method that is not known by its name here, as a loose file is not, nothing is said.
    """
    known, today = {SOURCE, *registry.names()}, cache(_origin_today)

    def is_earlier(run: Run) -> bool:
        record = run.record
        if record.config.experiment.get("protocol", 1) != PROTOCOL:
            return True
        return record.method_itself in known and (record.origin == UNKNOWN_ORIGIN or record.origin != today(_method(run)))

    return [run for run in runs if is_earlier(run)]


def _method(run: Run) -> str:
    """A run's method with its hyperparameters, as JSON."""
    hyperparameters = {key: value for key, value in run.record.config.method.items() if not key.startswith("train.")}
    return json.dumps([SCRATCH if run.record.method == SOURCE else run.record.method_itself, hyperparameters])


def _origin_today(method: str) -> str | None:
    """None if the method has other hyperparameters today."""
    try:
        return registry.get(*json.loads(method)).origin
    except UsageError:
        return None


def first_run(runs: Iterable[Run], method: str) -> Run:
    """A method's run of the lowest seed that finished, or else of the lowest seed."""
    own = [run for run in runs if run.record.method == method]
    return min(own, key=lambda run: (not run.finished, run.record.seed))


def marks(runs: Sequence[Run]) -> pd.DataFrame:
    """By method, whether it is a control, and whether it keeps its source: the final model then holds the small one too.

    A control has no trained small model behind it, neither given nor trained on the way, so that what it saves is not owed
    to growth: read off a finished run's costs and phases. A method that makes no use of what its source has learned says itself
    that it is one. Runs of older versions may not say, and are then not marked.
    """
    methods = list(dict.fromkeys(run.record.method for run in runs))
    firsts = [first_run(runs, method) for method in methods]
    columns = {"control": [_is_control(run) for run in firsts], "keeps_source": [run.record.keeps_source for run in firsts]}
    return pd.DataFrame(columns, index=methods)


def _is_control(run: Run) -> bool:
    if run.record.control:
        return True
    if is_scratch(run) or not run.finished or run.source_cost(Unit.FLOPS) != 0:
        return False
    scored = [phase for phase in run.record.phases if phase.scored]
    return bool(scored) and all(phase.target_sized for phase in scored)


def target_of(runs: Iterable[Run]) -> float:
    """The mean loss (nats) at the end of the curves of the finished scratch runs. Raises UsageError if there is none."""
    losses = [run.curve_loss for run in runs if is_scratch(run) and run.finished]
    if not losses:
        raise UsageError("no finished scratch run sets the target: run scratch, or give --target-loss")
    return math.fsum(losses) / len(losses)
