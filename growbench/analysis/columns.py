"""Savings with their intervals, and the names that costs and savings have in a report's tables and CSV files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from growbench.analysis.statistics import Values, interval
from growbench.costs.accounts import Ledger, Unit

PAPER_SAVING = "flops_saving_paper_counter"  # the source free, FLOPs by the counter of LiGO's paper


def cost(unit: Unit, ledger: Ledger) -> str:
    """What one run cost."""
    return f"{unit}_{ledger}"


def cost_to_target(unit: Unit, ledger: Ledger) -> str:
    """What a method's runs cost on average until the target loss."""
    return f"{unit}_to_target_{ledger}"


def saving(unit: Unit, ledger: Ledger) -> str:
    """What is saved over scratch, a share of its cost."""
    return f"{unit}_saving_{ledger}"


def spent(unit: Unit) -> str:
    """What a run of a ladder cost beyond what it inherited."""
    return f"spent_{unit}"


def published_saving(unit: Unit) -> str:
    return f"published_{unit}_saving"


def to_best(ledger: Ledger) -> str:
    """FLOPs to target over those of the experiment's cheapest method."""
    return f"to_best_{ledger}"


def to_scratch(ledger: Ledger) -> str:
    """FLOPs to target over scratch's."""
    return f"to_scratch_{ledger}"


def p_value(against: str, ledger: Ledger) -> str:
    """Of a test that a saving in FLOPs differs from that of `against`: scratch, or best."""
    return f"flops_p_{against}_{ledger}"


@dataclass(frozen=True)
class Saving:
    """What a method saves over scratch, a share of its cost, with its 95 % interval. NaN: none, or none that can be given."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def over(cls, values: Values) -> Saving:
        """Of one value a seed."""
        return cls(float(np.mean(values)), *interval(values, most=1)) if len(values) else cls()

    @classmethod
    def of(cls, row: Mapping[str, Any], unit: Unit, ledger: Ledger) -> Saving:
        """From a row of a table."""
        return cls(*(row[column] for column in _columns(unit, ledger)))

    @property
    def known(self) -> bool:
        return not math.isnan(self.mean)

    def row(self, unit: Unit, ledger: Ledger) -> dict[str, float]:
        """As three columns of a table."""
        return dict(zip(_columns(unit, ledger), (self.mean, self.low, self.high), strict=True))


def _columns(unit: Unit, ledger: Ledger) -> tuple[str, str, str]:
    column = saving(unit, ledger)
    return column, f"{column}_low", f"{column}_high"
