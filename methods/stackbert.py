"""StackBERT: progressive stacking."""

from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

from torch import nn

from growbench.method import Method, Phase, Phases, Schedule, Task, UsageError, deepen, stack


class StackBert(Method):
    """Train a shallow model of the target's width, and double its layers in stages up to the target's depth.

    Formula: layer l of a stage copies layer l mod L of the stage before, including biases and norms; all other weights are kept.
    All layers train in every stage.
    Paper: Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking", algorithm 1.
    Function preserving: no; the loss jumps at each doubling.
    Defaults: two doublings, after stages of 12.5 % and 17.5 % of the budget, as 50K and 70K of 400K steps in the authors' code
    (gonglinyuan/StackingBERT). The optimizer's state is new at each stage; the run's learning-rate schedule continues.
    stage_lrs: in its place the rate falls linearly in each stage, from the peak after the run's warm-up to these shares of it at
    the ends of the stages. In the authors' code they are [0.6875, 0.375, 0.24375]: 8e-4, then 5.5e-4 and 3e-4, then towards 0 at
    800K steps of the last stage, of which the paper's model has 280K.
    from_source: the given small model, if it has the target's width, replaces the stages up to its depth.
    Costs: every stage is charged as training. There is no source model, except with from_source.
    """

    paper: ClassVar[str] = "https://proceedings.mlr.press/v97/gong19a.html"
    shares: tuple[float, ...] = (0.125, 0.175)  # of the budget, for each stage before the last
    stage_lrs: tuple[float, ...] = ()  # at the end of each stage, shares of the peak; (): the run's schedule
    from_source: bool = False

    def __post_init__(self) -> None:
        if not all(share > 0 for share in self.shares) or sum(self.shares) >= 1:
            raise UsageError(f"shares = {list(self.shares)}: each must be above 0, their sum below 1")
        stages = len(self.shares) + 1
        if self.stage_lrs and (len(self.stage_lrs) != stages or not all(0 <= rate <= 1 for rate in self.stage_lrs)):
            raise UsageError(f"stage_lrs = {list(self.stage_lrs)}: must be {stages} shares of the peak, from 0 to 1, or none")

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
        left_out = len(self.shares) + 1 - len(depths)  # stages that the source replaces
        schedules = self.schedules(task, left_out)
        for share, schedule, depth, next_depth in zip(self.shares[left_out:], schedules, depths, depths[1:], strict=False):
            trained = yield Phase(model=model, share=share, schedule=schedule, name=f"depth {depth}")
            model = self.deeper(task, trained.model, next_depth)
        yield Phase(model=model, schedule=schedules[-1], name=f"depth {depths[-1]}")

    def schedules(self, task: Task, left_out: int) -> list[Schedule | None]:
        """Of each stage but the first `left_out`; None: the run's. The first of them warms up as the run does."""
        if not self.stage_lrs:
            return [None] * (len(self.shares) + 1 - left_out)
        rates = pairwise([1.0, *self.stage_lrs][left_out:])
        return [falling(begin, end, 0 if stage else task.training.warmup_steps) for stage, (begin, end) in enumerate(rates)]

    def deeper(self, task: Task, model: nn.Module, depth: int) -> nn.Module:
        """The model with its stack of layers repeated up to `depth` layers."""
        weights = task.read(model)
        layers = len(weights["layers.attention.out.weight"].value)
        return task.model_from(deepen(weights, stack(layers, depth)), replace(task.target_config, layers=depth))


def falling(begin: float, end: float, warmup: int) -> Schedule:
    """A stage's schedule: linear from `begin` to `end`, after `warmup` steps that rise to `begin`."""

    def lr_multiplier(step: int, steps: int) -> float:
        if step < warmup:
            return begin * (step + 1) / warmup
        return begin + (end - begin) * (step - warmup) / (steps - warmup)

    return lr_multiplier
