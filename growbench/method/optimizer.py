"""The task's own optimizer."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW

from growbench.config.schema import Training


def adamw(
    model: nn.Module, training: Training, device: torch.device, lr: float | None = None, weight_decay: float | None = None
) -> AdamW:
    """AdamW over a model's trainable parameters, with `lr` and `weight_decay` of `training` unless they are given.

    Weight decay applies to matrices and embeddings, not to norms and biases. A model can exempt more parameters by a method
    `no_weight_decay`: timm's image models exempt positions and class token.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    parameters = [(p, p.dim() > 1 and name not in exempt) for name, p in model.named_parameters() if p.requires_grad]
    decay = training.weight_decay if weight_decay is None else weight_decay
    groups = [
        {"params": [p for p, decays in parameters if decays], "weight_decay": decay},
        {"params": [p for p, decays in parameters if not decays], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=training.lr if lr is None else lr,
        betas=training.betas,
        eps=training.eps,
        fused=device.type in ("cpu", "cuda"),
    )
