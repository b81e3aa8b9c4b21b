"""Evaluation on fixed validation batches: loss, accuracy, how growth changed the outputs; duplicated units. Never charged."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.data import Data
from growbench.growth.weights import Axis, Weights
from growbench.method.loss import cross_entropy

OUTPUTS = 1024  # rows of logits that are compared


class Evaluation:
    """Evaluates the models of one run, and charges the account `evaluation`. The models' training mode is restored."""

    def __init__(
        self, data: Data, micro_batch: int, classifies: bool, costs: Costs, autocast: AbstractContextManager[None]
    ) -> None:
        """`micro_batch`: its size."""
        self.batches = [
            batch.part(number, parts).to(costs.device)
            for batch in data.validation_batches()
            for parts in [len(batch.inputs) // micro_batch]
            for number in range(parts)
        ]
        self.classifies, self.costs, self.autocast = classifies, costs, autocast
        self.flops_each = 0  # of one evaluation
        self.before: Tensor | None = None  # outputs before the next growth

    def scores(self, model: nn.Module, counted: bool) -> tuple[float, float | None]:
        """Mean loss (nats) over the batches, and for images the accuracy. `counted`: count FLOPs anew, for a new model."""

        def means() -> list[float]:
            rows = []
            for batch in self.batches:
                logits = model(batch.inputs, batch.positions)
                row = [cross_entropy(logits, batch.labels)]
                if self.classifies:
                    row.append((logits.argmax(-1) == batch.labels).float().mean())
                rows.append(torch.stack(row))
            return torch.stack(rows).mean(0).tolist()  # type: ignore[no-any-return]

        mode = model.training
        model.eval()
        with torch.no_grad(), self.autocast:
            if counted:
                before = self.costs.flops[Account.EVALUATION]
                loss, *accuracy = self.costs.charged(Account.EVALUATION, means)
                self.flops_each = self.costs.flops[Account.EVALUATION] - before
            else:
                with self.costs.clocked(Account.EVALUATION):
                    loss, *accuracy = means()
                self.costs.flops[Account.EVALUATION] += self.flops_each
        model.train(mode)
        return loss, accuracy[0] if accuracy else None

    def remember(self, model: nn.Module) -> None:
        """Keep this model's outputs, to compare those of a grown one with them."""
        self.before = self._outputs(model)

    def change(self, model: nn.Module) -> float | None:
        """Norm of the difference between the outputs and the remembered ones, divided by the norm of these; None without any."""
        if self.before is None:
            return None
        return ((self._outputs(model) - self.before).norm() / self.before.norm()).item()

    def _outputs(self, model: nn.Module) -> Tensor:
        """Logits (up to OUTPUTS, vocabulary) of the first validation batch, in evaluation mode."""
        batch, mode = self.batches[0], model.training
        with torch.no_grad(), self.autocast:
            logits = self.costs.charged(Account.EVALUATION, lambda: model.eval()(batch.inputs, batch.positions))
        model.train(mode)
        return logits[:OUTPUTS].float()


SAME = 0.99  # cosine above which two units are duplicates


def duplicates(weights: Weights) -> float:
    """The share of FFN units whose incoming weights are almost parallel to those of another unit of the same layer.

    It is near 1 after growth that copies every unit. While it stays near 1, copies are still equal, and the larger model can
    represent no more than the small one.
    """
    shares = []
    for weight in weights.values():
        if weight.role == "ffn_up" and weight.axes == (Axis.LAYER, Axis.FFN, Axis.WIDTH):
            for layer in torch.nn.functional.normalize(weight.value.float(), dim=-1):
                likeness = layer @ layer.mT
                shares.append((likeness.fill_diagonal_(0).amax(-1) > SAME).float().mean())
    return torch.stack(shares).mean().item()
