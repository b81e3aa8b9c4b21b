"""Training from random initialisation on a shorter budget."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task, UsageError


class ScratchShort(Method):
    """Control: train the target from random initialisation with a complete schedule on a smaller budget.

    Formula: scratch on `share` of the budget, with warm-up and the whole decay.
    Paper: Kaddour et al. 2023 (No Train No Gain). Scratch reaches its final loss only at the end of its decay, so a saving that
    this control reaches too comes from the schedule, not from growth.
    Function preserving: nothing is grown.
    Defaults: half of the budget.
    Costs: training only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2307.06440"
    uses_source: ClassVar[bool] = False
    share: float = 0.5  # of the budget

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"share = {self.share}: must be above 0 and at most 1")

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build(), share=self.share, schedule=task.schedule)
