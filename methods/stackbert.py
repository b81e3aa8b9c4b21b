"""StackBERT: progressive stacking."""

from dataclasses import replace
from typing import ClassVar

from torch import nn

from growbench.method import Method, Phase, Phases, Task, UsageError, deepen, stack


class StackBert(Method):
    """Train a shallow model of the target's width, double its layers, go on; the last stage has the target's depth.

    Formula: layer l of a stage copies layer l mod L of the stage before, biases and norms included; everything else
    carries over. All layers train in every stage.
    Paper: Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking", algorithm 1.
    Function preserving: no, the loss jumps at each doubling.
    Defaults: two doublings after 12.5 % and 17.5 % of the budget, as 50K and 70K of 400K steps in the authors' code
    (gonglinyuan/StackingBERT); the optimizer starts anew at each stage, the learning rate goes on along one curve.
    from_source: the given small model, if its width is the target's, takes the place of the stages up to its depth.
    Costs: every stage is training and is charged as such. No source model, unless from_source.
    """

    paper: ClassVar[str] = "https://proceedings.mlr.press/v97/gong19a.html"
    shares: tuple[float, ...] = (0.125, 0.175)  # of the budget, one stage each before the last
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
        """The model with its stack of layers repeated up to `depth`."""
        weights = task.read(model)
        layers = len(weights["layers.attention.out.weight"].value)
        return task.model_from(deepen(weights, stack(layers, depth)), replace(task.target_config, layers=depth))
