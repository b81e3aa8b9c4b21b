"""What the comparison of training loops says: ratios of loops that were measured in turn, and the table made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from growbench.formatting import percent

TRAINER, OURS, BARE = "transformers.Trainer", "growbench", "bare loop"

# of the table of all experiments
COLUMNS = ("experiment", "tokens/s", "share of peak", "against transformers.Trainer", "time over a bare loop")


@dataclass(frozen=True)
class Ratio:
    """The median of ratios that belong together in pairs, and their quartiles. What slows a whole round cancels in it."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        lower, median, upper = np.quantile(np.divide(above, below), (0.25, 0.5, 0.75))
        return cls(float(median), float(lower), float(upper))

    def __str__(self) -> str:
        return f"{self.median:.2f} x ({self.lower:.2f} to {self.upper:.2f})"

    @property
    def as_change(self) -> str:
        """As "+1.2 % (0.3 to 2.0)": how much more than 1 it is."""
        lower, upper = (percent(each - 1, signed=True) for each in (self.lower, self.upper))
        return f"{percent(self.median - 1, signed=True)} ({lower} to {upper})"


@dataclass(frozen=True)
class Comparison:
    """Seconds a step of each loop in each round, all loops in every round, and what they are compared with."""

    name: str  # of the experiment
    seconds: Mapping[str, Sequence[float]]  # by loop
    tokens: int  # a step
    flops: int  # a step
    peak: float  # FLOP/s of matrix products
    head: Sequence[str]  # lines above the table
    foot: Sequence[str]  # lines below it

    def ratio(self, loop: str) -> Ratio:
        """How much faster than transformers.Trainer a loop is."""
        return Ratio.of(self.seconds[TRAINER], self.seconds[loop])

    @property
    def overhead(self) -> Ratio:
        """Time of growbench's step over that of the bare loop."""
        return Ratio.of(self.seconds[OURS], self.seconds[BARE])

    def step(self, loop: str) -> float:
        """Seconds a step: transformers.Trainer's median over the ratio, so that no column contradicts another."""
        return float(np.median(self.seconds[TRAINER])) / self.ratio(loop).median

    @property
    def text(self) -> str:
        columns = ("", "tokens/s", "share of peak", "ms per step", "against Trainer")
        rows = [
            (
                loop,
                f"{self.tokens / self.step(loop):.0f}",
                percent(self.flops / self.step(loop) / self.peak),
                f"{1000 * self.step(loop):.1f}",
                str(self.ratio(loop)),
            )
            for loop in self.seconds
        ]
        form = "{:<22} {:>12} {:>14} {:>12} {:>23}"
        table = [form.format(*row) for row in (columns, *rows)]
        says = (
            "against Trainer: the median of the rounds' ratios of times, and their quartiles; ms and tokens/s follow from it and "
            "Trainer's median"
        )
        loop = f"growbench's loop over the bare loop: {self.overhead.as_change} time per step, likewise"
        return "\n".join([*self.head, *table, says, loop, *self.foot])

    @property
    def row(self) -> tuple[str, ...]:
        """What the table of all experiments has, as COLUMNS."""
        step = self.step(OURS)
        share = percent(self.flops / step / self.peak)
        return self.name, f"{self.tokens / step:.0f}", share, str(self.ratio(OURS)), self.overhead.as_change


def markdown(found: Sequence[Comparison]) -> str:
    """growbench's loop on several experiments, as a table in Markdown."""
    rows = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *(each.row for each in found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
