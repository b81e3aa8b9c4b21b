"""Training from random initialisation."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task


class Scratch(Method):
    """Train the target from random initialisation: the baseline.

    Weights N(0, 0.02) as the architecture's own library draws them, biases 0, norms 1. Not a growth: nothing is
    preserved and nothing is charged but training. It has no hyperparameters beside the experiment's.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1810.04805"
    uses_source: ClassVar[bool] = False

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build())
