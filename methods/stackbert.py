"""StackBERT: progressive stacking."""

from dataclasses import replace
from typing import ClassVar

from torch import nn

from growbench.method import Method, Phase, Phases, Task, UsageError, deepen, stack


class StackBert(Method):
    """Train a shallow model of the target's width, and double its layers in stages up to the target's depth.

    Formula: layer l of a stage copies layer l mod L of the stage before, including biases and norms; all other weights are kept.
    All layers train in every stage.
    Paper: Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking", algorithm 1.
    Function preserving: no; the loss jumps at each doubling.
    Defaults: two doublings, after stages of 12.5 % and 17.5 % of the budget, as 50K and 70K of 400K steps in the authors' code
    (gonglinyuan/StackingBERT). The optimizer's state is new at each stage; the run's learning-rate schedule continues.
    from_source: the given small model, if it has the target's width, replaces the stages up to its depth.
    Costs: every stage is charged as training. There is no source model, except with from_source.
    """

    paper: ClassVar[str] = "https://proceedings.mlr.press/v97/gong19a.html"
    shares: tuple[float, ...] = (0.125, 0.175)  # of the budget, for each stage before the last
    from_source: bool = False

    def __post_init__(self) -> None:
        if not all(share > 0 for share in self.shares) or sum(self.shares) >= 1:
            raise UsageError(f"shares = {list(self.shares)}: each must be above 0, their sum below 1")

    @property
    def uses_source(self) -> bool:  # type: ignore[override]
        return self.from_source

    def phases(self, task: Task) -> Phases:
        depths = [task.target_config.layers]
        for _ in self.shares:
            depths.insert(0, (depths[0] + 1) // 2)
        if self.from_source:
            small = task.source_config
            if replace(small, layers=task.target_config.layers) != task.target_config:
                raise UsageError("from_source: stackbert grows in depth only, so the source's other sizes must be the target's")
            depths = [depth for depth in depths if depth > small.layers] or depths[-1:]
            model = self.deeper(task, task.source, depths[0])
        else:
            model = task.build(replace(task.target_config, layers=depths[0]))
        shares = self.shares[len(self.shares) + 1 - len(depths) :]
        for share, depth, next_depth in zip(shares, depths, depths[1:], strict=False):
            trained = yield Phase(model=model, share=share, name=f"depth {depth}")
            model = self.deeper(task, trained.model, next_depth)
        yield Phase(model=model, name=f"depth {depths[-1]}")

    def deeper(self, task: Task, model: nn.Module, depth: int) -> nn.Module:
        """The model with its stack of layers repeated up to `depth` layers."""
        weights = task.read(model)
        layers = len(weights["layers.attention.out.weight"].value)
        return task.model_from(deepen(weights, stack(layers, depth)), replace(task.target_config, layers=depth))
