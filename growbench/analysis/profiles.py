"""Several experiments together: every method's savings, how far it is from the best, and what it costs beside scratch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import gmean

from growbench.analysis import columns
from growbench.analysis.comparison import Comparison
from growbench.costs.accounts import Ledger, Unit
from growbench.registry import SCRATCH

FEW = 3  # experiments, below which shares of them say nothing


FURTHEST = 4.0  # times the best method's cost, where a profile ends


def savings(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """Every experiment's table of savings below one another, its name first.

    Added, in FLOPs and by ledger: `to_best_*`, the cost to target over that of the experiment's cheapest method, scratch
    included at its full budget, and `to_scratch_*`, the same over scratch's. Inf where a seed missed the target, NaN where the
    cost of the source is not known.
    """
    table = pd.concat({name: found.savings for name, found in comparisons.items()}, names=["experiment", None])
    table = table.reset_index("experiment").reset_index(drop=True)
    for ledger in Ledger:
        cost = table[columns.cost_to_target(Unit.FLOPS, ledger)]
        best = cost.groupby(table["experiment"]).transform("min")
        scratch = cost[table["method"] == SCRATCH].set_axis(table.loc[table["method"] == SCRATCH, "experiment"])
        # a model that meets the target as it is grown may cost nothing
        table[columns.to_best(ledger)] = (cost / best).where(~(cost <= best), 1.0)
        table[columns.to_scratch(ledger)] = cost / table["experiment"].map(scratch)
    return table


def everywhere(table: pd.DataFrame) -> list[str]:
    """The methods that were run in every experiment, in the order of the table: only their shares of experiments compare."""
    experiments = table.groupby("method", sort=False)["experiment"].nunique()
    return list(experiments.index[experiments == table["experiment"].nunique()])


def profiles(table: pd.DataFrame) -> pd.DataFrame:
    """Performance profiles (Dolan and More 2002): the share of experiments in which a method costs at most `tau` times the best.

    One row a method run everywhere, ledger and `tau` at which the share rises, from 1 to the furthest. A miss never counts.
    """
    rows = []
    for method in everywhere(table):
        for ledger in Ledger:
            ratios = table.loc[table["method"] == method, columns.to_best(ledger)].to_numpy()
            if np.isnan(ratios).any():  # the cost of its source is not known
                continue
            for tau in np.unique([1.0, *ratios[ratios <= FURTHEST], FURTHEST]):
                rows.append((method, ledger, tau, np.mean(ratios <= tau)))
    return pd.DataFrame(rows, columns=["method", "ledger", "tau", "share"])


def mean_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The geometric mean over experiments of cost to target over scratch's, by method; NaN for one that missed any it ran in."""
    rows = []
    for method, runs in table.groupby("method", sort=False):
        ratios = [runs[columns.to_scratch(ledger)].to_numpy() for ledger in Ledger]
        rows.append((method, len(runs), *(gmean(found) if np.isfinite(found).all() else np.nan for found in ratios)))
    return pd.DataFrame(rows, columns=["method", "experiments", *(columns.to_scratch(ledger) for ledger in Ledger)])
