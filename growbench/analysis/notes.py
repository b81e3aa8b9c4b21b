"""What a reader must know before believing the tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from growbench.analysis.estimator import Estimate, Relation
from growbench.analysis.outliers import outlying_seeds
from growbench.analysis.protocols import Protocol, Question, Reading
from growbench.analysis.selection import is_scratch, made_by_earlier_code
from growbench.analysis.statistics import smallest_detectable
from growbench.costs.accounts import Ledger, Unit
from growbench.formatting import percent, saving
from growbench.registry import SCRATCH
from growbench.runs import store
from growbench.runs.store import Run

LEFT_OUT = "Left out,"  # how the note begins that names what was not compared

NEAR_END = 0.8  # the share of scratch's cost from which on its slope is taken

LARGEST = 0.99  # a saving above which the power of the tests has no figure

QUESTION = Question.of(Unit.FLOPS, Ledger.REUSE)  # of what is said about savings here


@dataclass(frozen=True)
class Noted:
    """What notes are about. `reading`: by the protocol that decides."""

    runs: Sequence[Run]
    shorter: Sequence[Run]  # at another than the full budget
    left_out: Sequence[Run]
    reading: Reading
    methods: Sequence[str]  # of the reading

    @property
    def scratch(self) -> dict[int, Run]:
        """The finished runs of scratch at the full budget, by seed."""
        return {run.record.seed: run for run in self.runs if is_scratch(run) and run.finished}

    def notes(self) -> list[str]:
        """One or a few sentences each."""
        found = [*self._left_out(), *self._code(), *self._settings(), *self._precision(), *self._target()]
        found += [*self._sources(), *self._pairs(), *self._ladder()]
        if len({run.record.seed for run in self.runs}) == 1:
            found.append(
                "One seed: there is no interval and no test, and small differences mean nothing. A claim takes five seeds, and "
                "three at the least."
            )
        if stopped := [run for run in self.runs if run.record.config.stop_at_loss is not None]:
            names = _names(stopped)
            found.append(f"Ended at the target, so that later losses are not known and few savings can be shown: {names}.")
        if damaged := [run for run in (*self.runs, *self.shorter) if run.cut]:
            names = ", ".join(f"{run.name} ({run.cut})" for run in damaged)
            found.append(f"Evaluations that were made again after an interruption are left out of the curves of: {names}.")
        return [*found, *self._spans(), *self._outliers(), *self._power()]

    def _left_out(self) -> list[str]:
        if not self.left_out:
            return []
        return [
            f"{LEFT_OUT} since their experiment differs from that of scratch, or their hyperparameters from those of the "
            f"method's first seed: {_names(self.left_out)}."
        ]

    def _code(self) -> list[str]:
        """Which runs today's code is not known to make."""
        runs = [*self.runs, *self.shorter]
        earlier = made_by_earlier_code(runs)
        names = "all runs" if len(earlier) == len(runs) else _names(earlier)
        changed = "The protocol or the methods' code has changed since, and growbench reproduce has not confirmed these runs"
        return [f"Made by earlier code: {names}. {changed}."] if earlier else []

    def _settings(self) -> list[str]:
        """Which methods' final models have settings that scratch's does not have."""
        lasts = {
            run.record.method: run.record.phases[-1].settings or {} for run in self.runs if run.finished and run.record.phases
        }
        texts = {method: ", ".join(f"{key} = {value:.3g}" for key, value in each.items()) for method, each in lasts.items()}
        names = "; ".join(f"{method} ({text})" for method, text in texts.items() if text)
        return [f"Trained with settings that scratch does not have: {names}."] if names else []

    def _precision(self) -> list[str]:
        """Which of the runs were trained in another precision than most."""
        kinds = {
            "float32": {"float32"},
            "bf16": {"bf16"},
            "both, as they were resumed elsewhere": {"float32", "bf16"},
        }
        runs = [*self.runs, *self.shorter]
        groups = {name: [run for run in runs if run.record.hardware.precisions == kind] for name, kind in kinds.items()}
        most = max(groups, key=lambda name: len(groups[name]))
        parts = [f"in {name}: {_names(group)}" for name, group in groups.items() if group and name != most]
        return [f"Trained {'; '.join(parts)}; all others in {most}. So their losses differ by rounding too."] if parts else []

    def _target(self) -> list[str]:
        target = self.reading.target_loss
        if target is None:
            return []
        text = f"The target {target:g} was given by hand: savings are over the cost at which scratch's mean loss meets it"
        reached = self.reading.scratch_saving(Unit.FLOPS)
        if not self.scratch:
            return [f"{text}. No run of scratch finished, so there are no savings."]
        if reached.relation == Relation.BELOW:
            return [
                f"{text}. It never does, so they are over its full cost, and are lower bounds. Of a method that does not meet it "
                "either nothing is known."
            ]
        if reached.relation == Relation.ABOVE:
            return [f"{text}. It does so at its smallest cost already, so there are no savings."]
        return [f"{text}, {percent(1 - reached.mean)} of its full cost."]

    def _sources(self) -> list[str]:
        unknown = [run for run in self.runs if any(_lacks_source_cost(run, unit) for unit in Unit)]
        elsewhere = [run for run in unknown if "pretrained" not in run.record.config.experiment]
        found = [f"The source was pretrained, and {store.UNKNOWN_SOURCE}."] if len(unknown) > len(elsewhere) else []
        if elsewhere:
            names = _names(elsewhere)
            found.append(
                f"No seconds of the training of the source compare, hence no saving in seconds with it charged: {names}."
            )
        return found

    def _pairs(self) -> list[str]:
        found = []
        unfinished = [run for run in (*self.runs, *self.shorter) if not run.finished]
        if whole := [run for run in unfinished if not is_scratch(run) and run.record.budget_share == 1]:
            found.append(f"Did not finish, hence no saving is claimed for their methods: {_names(whole)}.")
        if rungs := [run for run in unfinished if not is_scratch(run) and run.record.budget_share != 1]:
            found.append(f"Did not finish, so that the ladder of their seed begins above them: {_names(rungs)}.")
        if scratch := [run for run in unfinished if is_scratch(run)]:
            found.append(f"Did not finish, hence nothing is compared with them: {_names(scratch)}.")
        if unpaired := [run for run in self.runs if run.record.seed not in self.scratch and not is_scratch(run)]:
            found.append(f"Without a finished scratch run of the same seed, hence without a saving: {_names(unpaired)}.")
        return found

    def _ladder(self) -> list[str]:
        """What was run, and has no part in what is read off the ladder."""
        if self.reading.protocol != Protocol.LADDER:
            return []
        found = []
        if off := sorted({run.record.method for run in self.runs} - set(self.methods)):
            found.append(f"Without several budgets, hence not on the ladder, which decides: {', '.join(off)}.")
        if late := list(filter(None, map(self._late, self.methods))):
            found.append(
                "On the ladder a method is read only at costs that all its seeds have. So smaller budgets are not used where a "
                f"seed begins at a larger one: {', '.join(late)}."
            )
        return found

    def _late(self, method: str) -> str:
        """The seeds of a method whose ladder begins at a larger budget than that of others; blank if they begin alike."""
        if method == SCRATCH:
            return ""
        first = {pair.seed: self.reading.budgets(method, pair.seed)[0] for pair in self.reading.pairs(method, QUESTION)}
        late = [f"seed {seed} at {budget:g}" for seed, budget in first.items() if budget > min(first.values())]
        return f"{method} ({', '.join(late)})" if late else ""

    def _spans(self) -> list[str]:
        """Which methods have no loss at the cost that they are compared at."""
        estimates = {method: self.reading.estimate(method, QUESTION) for method in self.methods if method != SCRATCH}
        off = [
            f"{m} ({percent(each.tested_at)})" for m, each in estimates.items() if each.p >= 0 and abs(each.tested_at - 1) > 0.001
        ]
        if not off:
            return []
        return [
            "Tested against scratch's loss at the nearest cost that all their seeds have, as a share of scratch's cost: "
            f"{', '.join(off)}."
        ]

    def _outliers(self) -> list[str]:
        """Which scratch seeds are far from the others, and what is saved without them."""
        seeds = outlying_seeds(self.runs)
        if not seeds:
            return []
        losses = ", ".join(f"seed {seed} ends at {self.scratch[seed].final_loss:.3f}" for seed in seeds)
        others = np.mean([run.final_loss for seed, run in self.scratch.items() if seed not in seeds])
        rest = self.reading.without(seeds)
        changed = [
            f"{method} {_text(self.reading.estimate(method, QUESTION))}, without it {_text(rest.estimate(method, QUESTION))}"
            for method in self.methods
            if method != SCRATCH
        ]
        return [
            f"Outlying scratch seed: {losses}, while the others end at {others:.3f} on average. All savings lean on it. FLOPs "
            f"saved (reuse, {self.reading.protocol} protocol) with all seeds: {'; '.join(changed)}."
        ]

    def _power(self) -> list[str]:
        """What these seeds could find; nothing where there is no test."""
        found = detectable_saving(self.reading, self.methods)
        if found is None:
            return []
        least = f"a test finds a true saving of about {percent(found.saving)} or more four times in five"
        if found.saving > LARGEST:
            least = f"no true saving below {percent(LARGEST, 0)} is found four times in five"
        return [
            f"Power: with {found.seeds} seeds {least}, before the correction for several methods. Differences to scratch vary by "
            f"{found.deviation:.4f} nats between seeds (standard deviation, pooled over methods). Over the last "
            f"{percent(1 - NEAR_END, 0)} of its cost, scratch's loss falls by {found.slope:.3f} nats for each factor e of cost "
            f"({self.reading.protocol} protocol)."
        ]


@dataclass(frozen=True)
class Power:
    """The smallest saving that a paired t-test finds with 80 % power, and what it follows from."""

    saving: float
    seeds: int
    deviation: float
    slope: float


def detectable_saving(reading: Reading, methods: Sequence[str]) -> Power | None:
    """From the standard deviation of D where it is tested, pooled over methods, and from scratch's slope at its end.

    A difference d in loss is worth the share 1 - exp(-d / slope) of the cost. Of methods with unequal numbers of seeds, the
    smallest counts. None where no method has a test.
    """
    estimates = [reading.estimate(method, QUESTION) for method in methods if method != SCRATCH]
    tested = [each for each in estimates if not math.isnan(each.p)]
    if not tested:
        return None
    falls = [
        curve.at(NEAR_END * reading.full_cost(seed, Unit.FLOPS)) - curve.at(reading.full_cost(seed, Unit.FLOPS))
        for seed, curve in reading.scratch_curves[Unit.FLOPS].items()
    ]
    slope = float(np.mean(falls)) / -math.log(NEAR_END)
    deviation = float(np.sqrt(np.mean([each.deviation**2 for each in tested])))
    seeds = min(len(each.own) for each in tested)
    difference = smallest_detectable(deviation, seeds)
    return Power(1 - math.exp(-difference / slope) if slope > 0 else 1.0, seeds, deviation, slope)


def _text(found: Estimate) -> str:
    each = found.saving
    return saving(each.mean, each.low, each.high, each.relation)


def _lacks_source_cost(run: Run, unit: Unit) -> bool:
    """Whether the cost of its source is not known, in a unit in which its own is."""
    return math.isnan(run.source_cost(unit)) and not math.isnan(run.cost(unit, Ledger.REUSE))


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(run.name for run in runs)
