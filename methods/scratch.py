"""Training from random initialisation."""

from typing import ClassVar

from growbench.method import Method, Phase, Phases, Task


class Scratch(Method):
    """Train the target from random initialisation: the baseline.

    The architecture's library initialises the weights: N(0, 0.02), biases 0, norms 1. Nothing is grown, so nothing is preserved
    and only training is charged. There are no hyperparameters beyond the experiment's.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1810.04805"
    uses_source: ClassVar[bool] = False

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build())
