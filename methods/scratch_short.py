"""Training from random initialisation on a shorter budget."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task, UsageError


class ScratchShort(Method):
    """Train the target from random initialisation with a shorter schedule of its own: a control.

    Formula: scratch on `share` of the budget, warm-up and whole decay included.
    Paper: Kaddour et al. 2023 (No Train No Gain): scratch meets its final loss only at the end of its decay, so a saving that
    a shortened decay reaches too is owed to the schedule and not to growth.
    Function preserving: nothing is grown.
    Defaults: half of the budget.
    Costs: what it trains.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2307.06440"
    uses_source: ClassVar[bool] = False
    share: float = 0.5  # of the budget

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"share = {self.share}: must be above 0 and at most 1")

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build(), share=self.share, schedule=task.schedule)
