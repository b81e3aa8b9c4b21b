"""LiGO: a learned linear growth operator."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from growbench.config import UsageError
from growbench.cost import ligo_paper_construction, ligo_paper_step
from growbench.method import (
    Axis,
    Extend,
    Maps,
    Method,
    Phase,
    Phases,
    Task,
    Weight,
    Weights,
    constant,
    deepen,
    widen,
)

# Which learned width operator each (axis, role) goes through: an output and the input it feeds share one.
OPERATORS: dict[Axis | tuple[Axis, str], str] = {
    Axis.WIDTH: "residual",
    (Axis.HEADS, "query"): "query",
    (Axis.HEADS, "key"): "key",
    (Axis.HEADS, "value"): "value",
    (Axis.HEADS, "attention_out"): "value",
    Axis.FFN: "ffn",
    Axis.HEAD_TRANSFORM: "head",
}


class Operator(nn.Module):
    """The large model whose weights are a learned linear map of the small model's. Legend: L layers, N new size, n old.

    width: for each operator M, (N-n, n) or (L, N-n, n), with B = [I; M]; depth: for each weight that repeats layer by
    layer, its own (L2, L1) mixing matrix. Forward builds the large weights once, in one product per weight and side.
    """

    def __init__(self, task: Task, depth_first: bool, depth_noise: float) -> None:
        super().__init__()
        small, large = task.source_sizes, task.target
        self.sizes = large
        self.source_sizes = small
        self.depth_first = depth_first
        self.architecture = task.architecture
        self.source = task.read(task.source)  # constants
        self.large = task.build().requires_grad_(False)
        layers = large.layers if depth_first else small.layers
        shapes = {
            "residual": (large.width - small.width, small.width),
            "query": (layers, large.width - small.width, small.width),
            "key": (layers, large.width - small.width, small.width),
            "value": (layers, large.width - small.width, small.width),
            "ffn": (layers, large.ffn - small.ffn, small.ffn),
            "head": (large.width - small.width, small.width),
        }
        axes = {axis for weight in self.source.values() for axis in weight.axes}
        used = {name for key, name in OPERATORS.items() if (key[0] if isinstance(key, tuple) else key) in axes}
        self.width = nn.ParameterDict(
            {
                name: random_averages(shapes[name], task.rng).to(task.device)
                for name in shapes
                if name in used and shapes[name][-2]
            }
        )
        self.depth = nn.ParameterDict(
            {
                _key(name): noisy_stack(small.layers, large.layers, depth_noise, task.rng).to(task.device)
                for name, weight in self.source.items()
                if Axis.LAYER in weight.axes
            }
        )

    def grown(self) -> Weights:
        """The large model's canonical weights: W_i = B_i (sum_j w_ij W_j) A_i^T, or B and A inside the sum."""
        maps: Maps = {key: Extend(self.width[name]) for key, name in OPERATORS.items() if name in self.width}

        def mixed(name: str, weight: Weight) -> Tensor:
            return torch.tensordot(self.depth[_key(name)], weight.value, 1)

        if self.depth_first:
            return widen(deepen(self.source, mixed), maps)
        return deepen(widen(self.source, maps), mixed)

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        weights = self.architecture.native(self.grown(), self.sizes)
        logits: Tensor = functional_call(self.large, weights, (inputs, positions))
        return logits

    def materialise(self) -> nn.Module:
        """The large model, holding the grown weights, all of them trainable. The operator is done with."""
        with torch.no_grad():
            return self.architecture.write(self.grown(), self.large).requires_grad_(True)

    def paper_step_flops(self, batch: int, sequence: int) -> int:
        """An operator step in LiGO's own counter, which charges the construction once per sequence."""
        plain = ligo_paper_step(self.sizes, batch, sequence)
        return plain + 2 * batch * ligo_paper_construction(self.source_sizes, self.sizes)  # forward and backward


def _key(name: str) -> str:
    return name.replace(".", "-")  # a parameter's name holds no dot


def random_averages(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Rows u / sum(u), u ~ U(0, 1): each new unit starts as a random convex average of all the old (`rand` in the code)."""
    rows = torch.rand(shape, generator=rng)
    return rows / rows.sum(-1, keepdim=True)


def noisy_stack(old: int, new: int, noise: float, rng: torch.Generator) -> Tensor:
    """(new, old) rows: 1 on layer i mod old, U(0, noise) elsewhere, divided by the row's sum (`stackbert_noisy`)."""
    rows = torch.rand(new, old, generator=rng) * noise
    rows[torch.arange(new), torch.arange(new) % old] = 1
    return rows / rows.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Ligo(Method):
    """Learn a linear map from the small model's weights to the large one's, grow once, then train the large model.

    Formula: W_i = B_i (sum_j w_ij W_j) A_i^T, B = [I; M]: the old units stay, the new ones are learned averages of them.
    One M for the residual axis, one a layer for query, key, value and FFN; the output projection's input uses the
    value's, the second FFN matrix's the first's; every weight has its own depth mixing w. Tied embeddings stay tied:
    the decoder grows with the residual map.
    Paper: Wang et al., ICLR 2023, section 3 and appendix B.1; B = [I; M], depth before width and the initialisation follow
    the authors' code (VITA-Group/LiGO), on which the paper is silent.
    Function preserving: no.
    Defaults: 100 operator steps (the paper's number for all models); AdamW without weight decay and without warm-up at
    a learning rate of its own: as released, warm-up over 10,000 steps leaves the operator at its initialisation.
    operator_steps = 0 grows from the initialisation. Then a new optimizer and the run's learning rate from its start.
    Costs beyond training: operator_steps steps of the large model with the weights' construction, charged to `operator`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2303.00980"
    operator_steps: int = 100
    operator_lr: float = 3e-3
    order: Literal["depth_first", "width_first"] = "depth_first"
    depth_noise: float = 0.03

    def __post_init__(self) -> None:
        for key in ("operator_steps", "depth_noise"):
            if getattr(self, key) < 0:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 0")
        if self.operator_lr <= 0:
            raise UsageError(f"operator_lr = {self.operator_lr}: must be above 0")

    def phases(self, task: Task) -> Phases:
        operator = Operator(task, self.order == "depth_first", self.depth_noise)
        if self.operator_steps:
            yield Phase(
                model=operator,
                steps=self.operator_steps,
                optimizer=task.optimizer(operator, lr=self.operator_lr, weight_decay=0.0),
                schedule=constant,
                scored=False,
                name="learn operator",
            )
        yield Phase(model=operator.materialise())
