"""Progressive Neural Networks: a new column beside the frozen source."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from growbench.method import Method, Phase, Phases, Task, interleave, ligo_paper_step, tunable


class Columns(nn.Module):
    """The frozen source and the target side by side. Each layer of the target also reads the source through an adapter."""

    def __init__(self, task: Task, alpha: float) -> None:
        super().__init__()
        small, large = task.source_config, task.target_config
        self.sizes, self.source_sizes = large, small
        self.column, self.source = task.build(), copy.deepcopy(task.source)  # a copy, because hooks are added to it
        with task.device:
            adapters = [
                Adapter(task.source_config.width, task.target_config.width, alpha) for _ in range(task.target_config.layers)
            ]
        self.adapters = nn.ModuleList(adapters)
        self.states: list[Tensor] = []  # the input of each source layer in the last forward pass

        def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.states.append(inputs[0])

        def join(adapter: nn.Module, place: int) -> Callable[..., tuple[Any, ...]]:
            return lambda layer, inputs: (inputs[0] + adapter(self.states[place]), *inputs[1:])

        for layer in layers_of(task, self.source):
            layer.register_forward_pre_hook(keep)
        places = interleave(small.layers, large.layers)
        for layer, adapter, place in zip(layers_of(task, self.column), adapters, places, strict=True):
            layer.register_forward_pre_hook(join(adapter, place))

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        self.states.clear()
        with torch.no_grad():
            self.source(inputs, positions)
        logits: Tensor = self.column(inputs, positions)
        return logits

    def train(self, mode: bool = True) -> "Columns":
        super().train(mode)
        self.source.eval()
        return self

    def paper_step_flops(self, batch: int, sequence_length: int) -> int:
        """FLOPs of a step as LiGO's paper counts them: a training step of the target and a forward pass of the source."""
        return (
            ligo_paper_step(self.sizes, batch, sequence_length) + ligo_paper_step(self.source_sizes, batch, sequence_length) // 2
        )


class Adapter(nn.Module):
    """U gelu(V alpha h): maps the input of a source layer, (..., old), to an addition to that of a target layer, (..., new)."""

    def __init__(self, old: int, new: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.down = nn.Linear(old, old)
        self.up = nn.Linear(old, new, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = self.up(functional.gelu(self.down(self.alpha * hidden)))
        return added


def layers_of(task: Task, model: nn.Module) -> list[nn.Module]:
    """The model's growing layers."""
    parent, name = task.architecture.stack(model)
    return list(getattr(parent, name))


class ProgressiveNet(Method):
    """Train the target from random initialisation beside the frozen source, which it reads through lateral adapters.

    Formula: layer l reads h + U gelu(V alpha h'), where h' is the input of the source's layer floor(l L1 / L2), with L1 layers in
    the source and L2 in the target. U starts at 0, so training starts like scratch.
    Paper: Rusu et al. 2016, section 2; adapters: section 2.1.
    Function preserving: no. The final model contains the source, so it is larger than the target.
    Defaults: alpha 0.1, one of the paper's three values (1, 0.1, 0.01). The adapter's hidden width is the source's width.
    Costs: each step also runs the source's forward pass and the adapters, charged to `train`. Inference with the
    final model runs them too.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1606.04671"
    keeps_source: ClassVar[bool] = True
    alpha: float = tunable(0.1, 0.01, 1.0)

    def phases(self, task: Task) -> Phases:
        columns = Columns(task, self.alpha)
        yield Phase(model=columns, target=columns.column, paper_step_flops=columns.paper_step_flops)
