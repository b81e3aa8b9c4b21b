"""StackBERT: progressive stacking."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from growbench.config import UsageError
from growbench.method import Method, Phase, Phases, Task, deepen


def stacked(old: int, new: int) -> Sequence[int]:
    """Layer l of the deeper model copies layer l mod `old` (Gong et al. 2019, algorithm 1)."""
    return [layer % old for layer in range(new)]


@dataclass(frozen=True)
class StackBert(Method):
    """Train a shallow model of the target's width, double its layers, go on; the last stage has the target's depth.

    Formula: layer l of a stage copies layer l mod L of the stage before, biases and norms included; everything else
    carries over. All layers train in every stage.
    Paper: Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking", algorithm 1.
    Function preserving: no, the loss jumps at each doubling.
    Defaults: two doublings after 12.5 % and 17.5 % of the budget, as 50K and 70K of 400K steps in the authors' code
    (gonglinyuan/StackingBERT); the optimizer starts anew at each stage, the learning rate goes on along one curve.
    Costs: every stage is training and is charged as such. No source model.
    """

    paper: ClassVar[str] = "https://proceedings.mlr.press/v97/gong19a.html"
    uses_source: ClassVar[bool] = False
    shares: tuple[float, ...] = (0.125, 0.175)  # of the budget, one stage each before the last

    def __post_init__(self) -> None:
        if not all(share > 0 for share in self.shares) or sum(self.shares) >= 1:
            raise UsageError(f"shares = {list(self.shares)}: each must be above 0, their sum below 1")

    def phases(self, task: Task) -> Phases:
        depths = [task.target.layers]
        for _ in self.shares:
            depths.insert(0, (depths[0] + 1) // 2)
        sizes = replace(task.target, layers=depths[0])
        model = task.build(sizes)
        for share, deeper in zip(self.shares, depths[1:], strict=True):
            trained = yield Phase(model=model, steps=share, name=f"depth {sizes.layers}")
            weights = deepen(task.read(trained.model), stacked(sizes.layers, deeper))
            sizes = replace(task.target, layers=deeper)
            model = task.grow(weights, sizes)
        yield Phase(model=model, name=f"depth {sizes.layers}")
