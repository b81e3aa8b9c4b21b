"""LiGO: a learned linear growth operator."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import one_hot

from growbench.method import (
    WIDTHS,
    Axis,
    Extend,
    Maps,
    Method,
    Phase,
    Phases,
    Task,
    UsageError,
    Weight,
    Weights,
    axis_length,
    constant,
    deepen,
    interleave,
    ligo_paper_construction,
    ligo_paper_step,
    stack,
    tunable,
    widen,
)


class Operator(nn.Module):
    """The large model, with weights that are a learned linear map of the small model's.

    `width`: operators M, (N-n, n) or (L, N-n, n), with B = [I; M]. `depth`: an (L2, L1) mixing matrix for each weight that
    repeats in every layer. `forward` builds all large weights first, with one product per weight and side.
    Shape legend: L layers (L1 old, L2 new), N new size of an axis, n old size.
    """

    def __init__(self, task: Task, settings: "Ligo") -> None:
        super().__init__()
        self.settings, self.architecture = settings, task.architecture
        self.sizes, self.source_sizes = task.target_config, task.source_config
        self.source = task.read(task.source)  # constants
        self.large = task.build().requires_grad_(False)
        for parameter in self.large.parameters():
            parameter.data = parameter.new_empty(0)  # frees the memory: forward builds the weights in every step
        self.names: dict[tuple[Axis, str], str] = {}  # of the operator for each axis and role
        self.width, self.depth = nn.ParameterDict(), nn.ParameterDict()
        for weight in self.source.values():
            for axis in weight.axes:
                if axis in WIDTHS and axis_length(axis, self.sizes) > axis_length(axis, self.source_sizes):
                    self._add_width(axis, weight, task)
        if self.source_sizes.layers < self.sizes.layers:
            for name, weight in self.source.items():
                if Axis.LAYER in weight.axes:
                    rows = settings.depth_rows(self.source_sizes.layers, self.sizes.layers, task.rng)
                    self.depth[_key(name)] = nn.Parameter(rows.to(task.device))

    def _add_width(self, axis: Axis, weight: Weight, task: Task) -> None:
        name = self.names[axis, weight.role] = self._operator(axis, weight.role)
        if name not in self.width:
            old, new = axis_length(axis, self.source_sizes), axis_length(axis, self.sizes)
            rows = self.settings.width_rows((*self._layers(axis, weight), new - old, old), task.rng)
            self.width[name] = nn.Parameter(rows.to(task.device))

    def _operator(self, axis: Axis, role: str) -> str:
        """The operator's name. An output and the input that it feeds share one; layers of class attention have their own."""
        prefix = "class_" if role.startswith("class_") else ""
        if axis in (Axis.HEADS, Axis.KV_HEADS):
            grouped = any(sizes.key_value_heads < sizes.heads for sizes in (self.source_sizes, self.sizes))
            return f"{prefix}value" if role.endswith("attention_out") and not grouped else role
        return f"{prefix}ffn" if axis is Axis.FFN else axis.value

    def _layers(self, axis: Axis, weight: Weight) -> tuple[int, ...]:
        """The leading dimension (L,) of an operator with one map per layer, as many as there are when it is applied; else ()."""
        if self.settings.sharing == "all" or axis is Axis.WIDTH:
            return ()
        if weight.axes[0] is Axis.LAYER:
            return ((self.sizes if self.settings.order == "depth_first" else self.source_sizes).layers,)
        return weight.value.shape[:1] if weight.axes[0] is Axis.CLASS_LAYER else ()

    def grown(self) -> Weights:
        """The large model's canonical weights: W_i = B_i (sum_j w_ij W_j) A_i^T; width_first: B and A are inside the sum."""
        maps: Maps = {key: Extend(self.width[name], self.settings.divided) for key, name in self.names.items()}

        def mixed(name: str, weight: Weight) -> Tensor:
            return torch.tensordot(self.depth[_key(name)], weight.value, 1) if self.depth else weight.value

        if self.settings.order == "depth_first":
            return widen(deepen(self.source, mixed), maps)
        return deepen(widen(self.source, maps), mixed)

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        weights = self.architecture.native(self.grown(), self.sizes)
        logits: Tensor = functional_call(self.large, weights, (inputs, positions))
        return logits

    def materialise(self) -> nn.Module:
        """The large model with the grown weights, all trainable and independent of the operator."""
        with torch.no_grad():
            weights = self.grown()
        with next(iter(self.source.values())).value.device:
            return self.architecture.write(weights, self.architecture.build(self.sizes))

    def paper_step_flops(self, batch: int, sequence_length: int) -> int:
        """FLOPs of an operator step as LiGO's paper counts them: the weights are built once per sequence."""
        plain = ligo_paper_step(self.sizes, batch, sequence_length)
        return plain + 2 * batch * ligo_paper_construction(self.source_sizes, self.sizes)  # forward and backward


def _key(name: str) -> str:
    return name.replace(".", "-")  # a parameter's name may not contain a dot


class Ligo(Method):
    """Learn a linear map from the small model's weights to the large model's, grow once, then train the large model.

    Formula: W_i = B_i (sum_j w_ij W_j) A_i^T with B = [I; M]: old units stay, and new units are learned averages of them. There
    is one M for the residual axis, and one per layer for query, key, value and FFN. The input of the output projection uses the
    value's M; the input of the second FFN matrix uses the first matrix's M. Every weight has its own depth mixing w. Tied
    embeddings stay tied. Number and size of heads may change, because the map ignores heads. With grouped heads, the output
    projection has its own M; so have talking heads and the layers of class attention. If only width or only depth grows, there
    is only that operator.
    Paper: Wang et al., ICLR 2023, section 3 and appendix B.1. B = [I; M], depth before width and the initialisation follow the
    authors' code (VITA-Group/LiGO), because the paper does not specify them. order = "width_first" is as in the paper.
    Function preserving: no. width = "selection" with divided = true and no depth noise is Net2Net's map with stacking.
    Defaults: 100 operator steps, as in the paper for all models. AdamW without weight decay and without warm-up, at a learning
    rate of its own, because the released warm-up of 10,000 steps leaves the operator at its initialisation. New units start as
    random averages of all old ones ("average") or as copies of one ("selection"). sharing = "all" uses one M for all layers.
    operator_steps = 0 grows by the initial operator. After growth, the optimizer's state is new, and the learning rate follows
    the run's schedule from its start.
    Costs beyond training: operator_steps training steps of the large model, including the construction of its weights, charged
    to `operator`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2303.00980"
    operator_steps: int = 100  # not tuned: operator steps are outside the budget, so more are always better
    operator_lr: float = tunable(3e-3, 3e-4, 3e-2)
    order: Literal["depth_first", "width_first"] = "depth_first"
    sharing: Literal["layer", "all"] = "layer"
    width: Literal["average", "selection"] = "average"
    depth: Literal["stack", "interleave"] = "stack"
    depth_noise: float = 0.03
    divided: bool = False  # consumers are divided by the column sums of B

    def __post_init__(self) -> None:
        for key in ("operator_steps", "depth_noise"):
            if getattr(self, key) < 0:
                raise UsageError(f"{key} = {getattr(self, key)}: must be at least 0")
        if self.operator_lr <= 0:
            raise UsageError(f"operator_lr = {self.operator_lr}: must be above 0")

    def phases(self, task: Task) -> Phases:
        operator = Operator(task, self)
        if self.operator_steps and (operator.width or operator.depth):
            yield Phase(
                model=operator,
                steps=self.operator_steps,
                optimizer=task.optimizer(operator, lr=self.operator_lr, weight_decay=0.0),
                schedule=constant,
                account="operator",
                name="learn operator",
                paper_step_flops=operator.paper_step_flops,
            )
        yield Phase(model=operator.materialise())

    def width_rows(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """The initial M: rows u / sum(u) with u ~ U(0, 1) (`rand` in the authors' code), or one-hot rows (`sel`)."""
        if self.width == "selection":
            chosen = torch.randint(shape[-1], shape[:-1], generator=rng)
            return one_hot(chosen, shape[-1]).to(torch.get_default_dtype())
        rows = torch.rand(shape, generator=rng)
        return rows / rows.sum(-1, keepdim=True)

    def depth_rows(self, old: int, new: int, rng: torch.Generator) -> Tensor:
        """The initial w, (new, old): 1 for the copied layer, U(0, noise) elsewhere, divided by the sum of the row."""
        rows = torch.rand(new, old, generator=rng) * self.depth_noise
        rows[torch.arange(new), {"stack": stack, "interleave": interleave}[self.depth](old, new)] = 1
        return rows / rows.sum(-1, keepdim=True)
