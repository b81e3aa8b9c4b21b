"""Training from random initialisation with a restart of the optimizer."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task, UsageError


class ScratchRestart(Method):
    """Control: scratch whose optimizer state is reset after a share of the budget, as in growth.

    Formula: Adam's moments are reset; model and learning rate continue. Most methods start with a new optimizer state: what this
    control saves comes from that reset, not from growth.
    Paper: Shen et al. 2022 (Staged Training) also grow the optimizer's state.
    Function preserving: nothing is grown.
    Defaults: after a fifth of the budget.
    Costs: training only. There is no source model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.06211"
    uses_source: ClassVar[bool] = False
    share: float = 0.2  # of the budget before the restart

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"share = {self.share}: must be above 0 and below 1")

    def phases(self, task: Task) -> Phases:
        trained = yield Phase(model=task.build(), share=self.share, name="before the restart")
        yield Phase(model=trained.model)
