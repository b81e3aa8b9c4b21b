"""Several experiments together: every method's savings, how far it is from the best, and what it costs beside scratch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import gmean

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison
from growbench.analysis.estimator import Relation
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH

FEW = 3  # experiments, below which shares of them say nothing


FURTHEST = 4.0  # times the best method's cost, where a profile ends


def savings(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """Every experiment's tables of savings below one another, its name first; those in which only scratch was run are left out.

    Added: `decides`, whether a row is of the protocol that decides in its experiment: the ladder where it has one. In these rows,
    in FLOPs and by ledger, `to_best_*`: the cost to target over that of the experiment's cheapest method, scratch included at its
    full budget; and `to_scratch_*`: the same over scratch's. Inf where a method does not meet scratch, NaN where the cost of the
    source is not known.
    """
    rows = []
    for name, found in comparisons.items():
        tables = [table for table in (found.savings, found.ladder) if not table.empty]
        rows += [table.assign(experiment=name, decides=table is found.verdicts) for table in tables if len(found.methods) > 1]
    if not rows:
        return pd.DataFrame({"experiment": [], "method": [], "decides": np.array([], bool)})
    table = pd.concat(rows, ignore_index=True)
    table.insert(0, "experiment", table.pop("experiment"))
    for ledger in Ledger:
        cost = table[columns.cost_to_target(Unit.FLOPS, ledger)].where(table["decides"])
        best = cost.groupby(table["experiment"]).transform("min")
        of_scratch = table["decides"] & (table["method"] == SCRATCH)
        scratch = cost[of_scratch].set_axis(table.loc[of_scratch, "experiment"])
        # a model that meets the target as it is grown may cost nothing
        table[columns.to_best(ledger)] = (cost / best).where(~(cost <= best), 1.0)
        table[columns.to_scratch(ledger)] = cost / table["experiment"].map(scratch)
    return table


def everywhere(table: pd.DataFrame) -> list[str]:
    """The methods with a deciding row in every experiment, by the table's order: only their shares of experiments compare."""
    experiments = table[table["decides"]].groupby("method", sort=False)["experiment"].nunique()
    return list(experiments.index[experiments == table["experiment"].nunique()])


def profiles(table: pd.DataFrame) -> pd.DataFrame:
    """Performance profiles (Dolan and More 2002): the share of experiments in which a method costs at most `tau` times the best.

    One row a method run everywhere, ledger and `tau` at which the share rises, from 1 to the furthest. A miss never counts.
    """
    rows = []
    for method in everywhere(table):
        for ledger in Ledger:
            ratios = table.loc[table["decides"] & (table["method"] == method), columns.to_best(ledger)].to_numpy()
            if np.isnan(ratios).any():  # the cost of its source is not known
                continue
            for tau in np.unique([1.0, *ratios[ratios <= FURTHEST], FURTHEST]):
                rows.append((method, ledger, tau, np.mean(ratios <= tau)))
    return pd.DataFrame(rows, columns=["method", "ledger", "tau", "share"])


def mean_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The geometric mean over all experiments of cost to target over scratch's, by method.

    Only of methods that were run in all experiments, as means over different ones do not compare. NaN where a ratio is only
    a bound or not known.
    """
    shared, rows = everywhere(table), []
    for method, runs in table[table["decides"]].groupby("method", sort=False):
        means = [_mean_ratio(runs, ledger) if method in shared else np.nan for ledger in Ledger]
        rows.append((method, len(runs), *means))
    return pd.DataFrame(rows, columns=["method", "experiments", *(columns.to_scratch(ledger) for ledger in Ledger)])


def _mean_ratio(runs: pd.DataFrame, ledger: Ledger) -> float:
    ratios = runs[columns.to_scratch(ledger)].to_numpy()
    measured = (runs[columns.relation(Unit.FLOPS, ledger)] == Relation.EQUAL).all() and np.isfinite(ratios).all()
    with np.errstate(divide="ignore"):  # a model that is there as it is grown may have cost nothing
        return float(gmean(ratios)) if measured else np.nan
