"""Evaluation on held-out data: loss, accuracy, how growth changed the outputs; duplicated units. Never charged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.data import Data, HeldOutSplit
from growbench.errors import UsageError
from growbench.growth.weights import Axis, Weights
from growbench.method.loss import cross_entropy, each_cross_entropy
from growbench.training.graphs import CapturedValue
from growbench.training.records import HeldOutLoss

OUTPUTS = 1024  # rows of logits that are compared


class Evaluation:
    """Evaluates the models of one run, and charges the account `evaluation`. The models' training mode is restored.

    Curves are measured on a fixed part of the validation split, which stays on the device; final losses on whole splits, of
    which one micro-batch at a time is on the device.
    """

    def __init__(
        self, data: Data, micro_batch: int, classifies: bool, costs: Costs, autocast: AbstractContextManager[None]
    ) -> None:
        """`micro_batch`: its size."""
        self.data, self.micro_batch = data, micro_batch
        self.batches = [
            batch.part(number, parts).to(costs.device)
            for batch in data.validation_batches()
            for parts in [len(batch.inputs) // micro_batch]
            for number in range(parts)
        ]
        self.classifies, self.costs, self.autocast = classifies, costs, autocast
        self.flops_each = 0  # of one evaluation
        self.before: Tensor | None = None  # outputs before the next growth
        self._captured: CapturedValue | None = None  # what `_means` returns of the model in training
        self._agreed = False  # whether it was found to be that

    def scores(self, model: nn.Module, counted: bool) -> tuple[float, float | None]:
        """Mean loss (nats) over the fixed part of validation, and for images the accuracy.

        `counted`: count FLOPs anew, for a new model.
        """

        with self._evaluating(model):
            if counted:
                before = self.costs.flops[Account.EVALUATION]
                loss, *accuracy = self.costs.charged(Account.EVALUATION, lambda: self._means(model).tolist())
                self.flops_each = self.costs.flops[Account.EVALUATION] - before
            else:
                with self.costs.clocked(Account.EVALUATION):
                    loss, *accuracy = (self._by_graph(model) if self._captured else self._means(model)).tolist()
                self.costs.flops[Account.EVALUATION] += self.flops_each
        return loss, accuracy[0] if accuracy else None

    def _means(self, model: nn.Module) -> Tensor:
        """(1,) or (2,): the mean loss, and for images the accuracy."""
        rows = []
        for batch in self.batches:
            logits = model(batch.inputs, batch.positions)
            row = [cross_entropy(logits, batch.labels)]
            if self.classifies:
                row.append((logits.argmax(-1) == batch.labels).float().mean())
            rows.append(torch.stack(row))
        return torch.stack(rows).mean(0)

    @contextmanager
    def _evaluating(self, model: nn.Module) -> Iterator[None]:
        mode = model.training
        model.eval()
        with torch.no_grad(), self.autocast:
            yield
        model.train(mode)

    def capture(self, model: nn.Module) -> None:
        """Have a CUDA graph compute the scores of the model in training, unless they are to be counted, until `forget`."""

        def means() -> Tensor:
            with self._evaluating(model):  # within: autocast keeps copies of weights until it ends, which graphs must make anew
                return self._means(model)

        self._captured, self._agreed = CapturedValue.of(means, self.costs.device), False

    def _by_graph(self, model: nn.Module) -> Tensor:
        """`_means` by the graph. The first time, when weights have changed since it was captured, the model itself is asked too.

        Raises UsageError if it says something else: a graph that reads old memory would spoil results unseen.
        """
        assert self._captured is not None
        means = self._captured()
        if not self._agreed:
            own = self._means(model)
            if not torch.allclose(means, own, rtol=1e-5):
                both = f"{means.tolist()}, the model itself {own.tolist()}"
                raise UsageError(f"an evaluation by a CUDA graph gives {both}; set machine.graphs = false")
            self._agreed = True
        return means

    def forget(self) -> None:
        """Another model is trained from now on."""
        self._captured = None

    def held_out(self, model: nn.Module, split: HeldOutSplit) -> HeldOutLoss:
        """The loss on the whole of a split. FLOPs are those of `scores`, in proportion to the rows."""
        losses, right, documents, rows = [], 0, [], 0
        with self._evaluating(model), self.costs.clocked(Account.EVALUATION):
            for whole in self.data.held_out_batches(split):
                for part in whole.parts(self.micro_batch):
                    batch = part.batch.to(self.costs.device)
                    logits = model(batch.inputs, batch.positions)
                    losses.append(each_cross_entropy(logits, batch.labels).cpu().numpy())
                    documents.append(part.documents)
                    rows += len(batch.inputs)
                    if self.classifies:
                        right += int((logits.argmax(-1) == batch.labels).sum())
        self.costs.flops[Account.EVALUATION] += self.flops_each * rows // sum(len(batch.inputs) for batch in self.batches)
        _, of_label, labels = np.unique(np.concatenate(documents), return_inverse=True, return_counts=True)
        sums = np.bincount(of_label, np.concatenate(losses).astype(np.float64))
        return HeldOutLoss(sums / labels, labels, right / rows if self.classifies else None)

    def remember(self, model: nn.Module) -> None:
        """Keep this model's outputs, to compare those of a grown one with them."""
        self.before = self._outputs(model)

    def change(self, model: nn.Module) -> float | None:
        """Norm of the difference between the outputs and the remembered ones, divided by the norm of these; None without any."""
        if self.before is None:
            return None
        return ((self._outputs(model) - self.before).norm() / self.before.norm()).item()

    def _outputs(self, model: nn.Module) -> Tensor:
        """Logits (up to OUTPUTS, vocabulary) of the first validation batch, in evaluation mode, not in half precision."""
        batch, mode = self.batches[0], model.training
        with torch.no_grad():
            logits = self.costs.charged(Account.EVALUATION, lambda: model.eval()(batch.inputs, batch.positions))
        model.train(mode)
        return logits[:OUTPUTS].float()


SAME = 0.99  # cosine above which two units are duplicates


def duplicates(weights: Weights) -> float | None:
    """The share of FFN units whose incoming weights are almost parallel to those of another unit of the same layer; None of none.

    It is near 1 after growth that copies every unit. While it stays near 1, copies are still equal, and the larger model can
    represent no more than the small one.
    """
    shares = []
    for weight in weights.values():
        if weight.role == "ffn_up" and weight.axes == (Axis.LAYER, Axis.FFN, Axis.WIDTH):
            for layer in torch.nn.functional.normalize(weight.value.float(), dim=-1):
                likeness = layer @ layer.mT
                shares.append((likeness.fill_diagonal_(0).amax(-1) > SAME).float().mean())
    return torch.stack(shares).mean().item() if shares else None
