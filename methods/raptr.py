"""RaPTr: random path training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from growbench.method import Batch, Method, Phase, Phases, Task, UsageError, task_loss


class Raptr(Method):
    """Control: train the whole target from the start, but each step runs a random part of its layers, larger in each stage.

    Formula: a step runs a path of k of the L layers in their order: the first, the last, and k - 2 of the others, drawn anew for
    each step. Skipped layers pass their input on, and neither their weights nor their moments change. k rises in stages up to L.
    Paper: Panigrahi et al. 2024 (progressive subnetworks), the path of fixed length with first and last layer kept.
    Function preserving: nothing is grown; the sizes are the target's throughout.
    Claim: better loss than scratch with 20 to 33 % fewer FLOPs for BERT-Base and UL2. As a rival without growth it shows what a
    method gains by running fewer layers at first.
    Defaults: 6, 8, 10 and 12 of 12 layers, as the paper's schedule for BERT-Base, in four stages of equal length, which is 25 %
    fewer FLOPs in the layers. The paper's factors for the outputs of a short path, and its first steps with all layers, are left
    out, because their constants could not be confirmed. The optimizer's state is kept between stages.
    Costs: each stage is charged as training, with the layers that it runs. There is no source model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.05913"
    uses_source: ClassVar[bool] = False
    lengths: tuple[float, ...] = (1 / 2, 2 / 3, 5 / 6)  # of the path in each stage before the last, as shares of the layers
    shares: tuple[float, ...] = (1 / 4, 1 / 4, 1 / 4)  # of the budget, for the same stages

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.shares):
            raise UsageError(f"lengths = {list(self.lengths)} and shares = {list(self.shares)}: must be as many")
        if not all(0 < each <= 1 for each in (*self.lengths, *self.shares)) or sum(self.shares) >= 1:
            raise UsageError(f"shares = {list(self.shares)}: all shares and lengths must be above 0, the sum of shares below 1")

    def phases(self, task: Task) -> Phases:
        model, layers, optimizer = task.build(), task.target_config.layers, None
        for length, share in zip(self.lengths, self.shares, strict=True):
            paths = random_paths(task, max(1, round(length * layers)))

            def loss(model: nn.Module, batch: Batch, step: int, paths: Sequence[list[int]] = paths) -> Tensor:
                with running(task, model, paths[step]):
                    return task_loss(model, batch)

            name = f"{len(paths[0])} of {layers} layers"
            trained = yield Phase(model=model, share=share, loss=loss, optimizer=optimizer, name=name)
            optimizer = trained.optimizer
        yield Phase(model=model, optimizer=optimizer, name="all layers")


def random_paths(task: Task, length: int) -> list[list[int]]:
    """For each step of the budget the layers that it runs: the first, the last, and random ones between them."""
    layers = task.target_config.layers
    ends = [0, layers - 1][: min(length, layers)]
    order = torch.rand(task.budget, max(layers - 2, 0), generator=task.rng).argsort(1) + 1
    return [sorted({*ends, *row}) for row in order[:, : length - len(ends)].tolist()]


@contextmanager
def running(task: Task, model: nn.Module, path: Sequence[int]) -> Iterator[None]:
    """Within, the model consists of these of its layers alone."""
    parent, name = task.architecture.stack(model)
    layers = getattr(parent, name)
    chosen = [layers[layer] for layer in path]
    setattr(parent, name, nn.Sequential(*chosen) if isinstance(layers, nn.Sequential) else nn.ModuleList(chosen))
    try:
        yield
    finally:
        setattr(parent, name, layers)
