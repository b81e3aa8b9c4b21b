"""The names that costs, savings and tests have in a report's tables and CSV files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growbench.analysis.estimator import Relation, Saving
from growbench.costs.accounts import Ledger, Unit

METHOD, LEDGER, UNIT, ACCOUNT, COST = "method", "ledger", "unit", "account", "cost"
SEED, SEEDS, STATUS, PHASE, SCORED = "seed", "seeds", "status", "phase", "scored"
LOSS, SAVING, LOW, HIGH, TARGETS = "loss", "saving", "low", "high", "targets"  # of figures over loss, or over targets
VAL_LOSS, VAL_ACCURACY = "val_loss", "val_accuracy"  # of curves

TIMED = "timed"  # the seeds with seconds that compare
PAPER_SAVING = "flops_saving_paper_counter"  # the source free, FLOPs by the counter of LiGO's paper


def low(measure: str) -> str:
    """The lower end of an interval, or the lowest of the seeds."""
    return f"{measure}_low"


def high(measure: str) -> str:
    """The upper end of an interval, or the highest of the seeds."""
    return f"{measure}_high"


def cost(unit: Unit, ledger: Ledger) -> str:
    """What one run cost."""
    return f"{unit}_{ledger}"


def cost_to_target(unit: Unit, ledger: Ledger) -> str:
    """What a run, or a method on average, pays until it meets scratch."""
    return f"{unit}_to_target_{ledger}"


def price_to_target(ledger: Ledger) -> str:
    """What the seconds cost that a method pays until it meets scratch, at a price of an hour."""
    return f"price_to_target_{ledger}"


def saving(unit: Unit, ledger: Ledger) -> str:
    """What is saved over scratch, a share of its cost."""
    return f"{unit}_saving_{ledger}"


def relation(unit: Unit, ledger: Ledger) -> str:
    """Whether a saving is a value ("=") or a bound ("<", ">")."""
    return f"{saving(unit, ledger)}_relation"


def saving_row(found: Saving, unit: Unit, ledger: Ledger) -> dict[str, Any]:
    """A saving as columns of a table."""
    column = saving(unit, ledger)
    return {
        column: found.mean,
        low(column): found.low,
        high(column): found.high,
        relation(unit, ledger): str(found.relation),
    }


def saving_in(row: Mapping[str, Any], unit: Unit, ledger: Ledger) -> Saving:
    """The saving that a row of a table holds."""
    column = saving(unit, ledger)
    return Saving(row[column], row[low(column)], row[high(column)], Relation(row[relation(unit, ledger)]))


def p_value(ledger: Ledger) -> str:
    """Of a paired t-test that a method saves no FLOPs."""
    return f"flops_p_{ledger}"


def adjusted_p_value(ledger: Ledger) -> str:
    """The same, corrected for the number of methods by Holm's procedure."""
    return f"flops_p_holm_{ledger}"


def difference(ledger: Ledger) -> str:
    """The mean difference in loss to scratch that was tested (nats)."""
    return f"loss_difference_{ledger}"


def tested_at(ledger: Ledger) -> str:
    """The share of scratch's FLOPs at which it was tested."""
    return f"tested_at_{ledger}"


def verdict(ledger: Ledger) -> str:
    """What the test says of the FLOPs."""
    return f"flops_verdict_{ledger}"


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
