"""The task's own optimizers: AdamW, or Muon for the matrices within layers beside AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from growbench.architectures import Architecture
from growbench.config.schema import ModelConfig, Training
from growbench.errors import UsageError

# of Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, https://arxiv.org/abs/2502.16982
MOMENTUM = 0.95


class CombinedOptimizer(Optimizer):
    """Several optimizers as one. Each steps on parameters of its own; state and param groups are those of all, in order."""

    def __init__(self, *members: Optimizer) -> None:
        """Takes over the members' state. Raises ValueError if two of them hold the same parameter."""
        super().__init__([group for member in members for group in member.param_groups], {})
        for member in members:
            self.state.update(member.state)
        self.members = members
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each member."""
        for member in self.members:
            member.step()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "members": self.members}  # torch's own leaves attributes out of copies

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch calls it for a copy and by `load_state_dict`, with other dictionaries, which the members must then hold."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for member in self.members:
            member.param_groups = [next(groups) for _ in member.param_groups]
            member.state = self.state


def members_of(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """The optimizers that an optimizer combines: itself, if it is not a CombinedOptimizer."""
    return optimizer.members if isinstance(optimizer, CombinedOptimizer) else (optimizer,)


def of(
    model: nn.Module,
    architecture: Architecture,
    training: Training,
    device: torch.device,
    lr: float | None = None,
    weight_decay: float | None = None,
) -> Optimizer:
    """The optimizer that `training` names, over a model's trainable parameters.

    `lr` and `weight_decay` are those of `training` unless they are given. Raises UsageError for an unknown optimizer.
    """
    lr = training.lr if lr is None else lr
    decay = training.weight_decay if weight_decay is None else weight_decay
    if training.optimizer == "adamw":
        return _adamw(_groups(model, decay, frozenset()), training, device, lr)
    if training.optimizer != "muon":
        raise UsageError(f"optimizer = {training.optimizer!r}: must be 'adamw' or 'muon'")
    hidden = [parameter for parameter in _hidden(model, architecture) if parameter.requires_grad]
    members: list[Optimizer] = []
    if rest := _groups(model, decay, frozenset(hidden)):
        members.append(_adamw(rest, training, device, lr))
    if hidden:  # its steps are as large as AdamW's (Liu et al., section 2.2), so that rate and weight decay are the same
        members.append(Muon(hidden, lr=lr, weight_decay=decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))
    return members[0] if len(members) == 1 else CombinedOptimizer(*members)


def _adamw(groups: list[dict[str, Any]], training: Training, device: torch.device, lr: float) -> AdamW:
    return AdamW(groups, lr=lr, betas=training.betas, eps=training.eps, fused=device.type in ("cpu", "cuda"))


def _groups(model: nn.Module, weight_decay: float, left_out: frozenset[nn.Parameter]) -> list[dict[str, Any]]:
    """Param groups of a model's trainable parameters: matrices and embeddings with weight decay, norms and biases without.

    A model can exempt more parameters by a method `no_weight_decay`: timm's image models exempt positions and class token.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    parameters = [
        (p, p.dim() > 1 and name not in exempt) for name, p in model.named_parameters() if p.requires_grad and p not in left_out
    ]
    groups = [
        {"params": [p for p, decays in parameters if decays], "weight_decay": weight_decay},
        {"params": [p for p, decays in parameters if not decays], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _hidden(model: nn.Module, architecture: Architecture) -> list[nn.Parameter]:
    """The hidden matrices of every model of the architecture that `model` is or contains. A growth operator has none."""
    parts = [part for part in model.modules() if isinstance(getattr(part, "sizes", None), ModelConfig)]
    return list(dict.fromkeys(matrix for part in parts for matrix in architecture.hidden_matrices(part)))


def refuse_foreign_state(optimizer: Optimizer) -> None:
    """Raise UsageError if a parameter of AdamW has the state that Muon keeps, or the other way round."""
    keys: dict[type[Optimizer], str] = {AdamW: "exp_avg", Muon: "momentum_buffer"}
    for member in members_of(optimizer):
        key = keys.get(type(member))
        for parameter in (each for group in member.param_groups for each in group["params"]):
            if key and optimizer.state.get(parameter) and key not in optimizer.state[parameter]:
                raise UsageError(
                    f"{type(member).__name__} cannot start with the state of another optimizer: train the source with the same "
                    "one, or grow weights alone"
                )


def step_flops(optimizer: Optimizer, steps_on: Callable[[nn.Parameter], bool]) -> int:
    """FLOPs of the matrix products in a step: those of torch's Muon. AdamW has none.

    `steps_on`: whether a parameter has a gradient. The products of an optimizer of a method's own are not known here;
    `growbench check` measures them.
    """
    return sum(
        newton_schulz_flops(parameter.shape, group["ns_steps"])
        for member in members_of(optimizer)
        if isinstance(member, Muon)
        for group in member.param_groups
        for parameter in group["params"]
        if steps_on(parameter)
    )


def newton_schulz_flops(shape: Sequence[int], iterations: int) -> int:
    """FLOPs of making a matrix orthogonal: X X^T, its square, and its product with X, where X has fewer rows than columns."""
    short, long = sorted(shape)
    return iterations * (4 * short * short * long + 2 * short**3)
