"""Control: scratch with a new optimizer on the way."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task, UsageError


class ScratchRestart(Method):
    """Control: scratch that throws its optimizer's state away after a share of the budget, as growth does.

    Formula: nothing is grown; the model goes on, the learning rate goes on, Adam's moments start anew.
    Paper: Shen et al. 2022 (Staged Training) count the optimizer's state among what growth takes over; most methods start a new
    one. What this control saves, they owe to that and not to growth.
    Function preserving: nothing is grown.
    Defaults: after a fifth of the budget.
    Costs: none beyond training. No source model.
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
