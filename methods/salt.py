"""SALT: small-model aided large-model training."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from growbench.method import Batch, Method, Phase, Phases, Task, UsageError, cross_entropy, tunable


class Salt(Method):
    """Train the large model from random initialisation, in the first part with the small model's outputs as soft labels.

    Formula: (1 - w) CE(labels) + w CE(soft labels) for the first `share` of the budget, then CE(labels) alone. The soft labels
    are the small model's distribution at the labelled positions, at temperature tau; the large model's own stays at 1.
    Selection of data (SALT-DS), with `selected` below 1: the first part trains on the sequences of each batch that are hard for
    the small model, yet learnable. Their score is the median of its loss over the labels that are among its `likeliest` tokens.
    Paper: Rawat et al. 2024, algorithm 1 and the selection of SALT-DS.
    Function preserving: nothing is grown and no weight is reused.
    Claim: 28 % less time (TPU, the teacher's forward passes included) for a student of 2.8B parameters and a teacher of 1.5B on
    the Pile; the final quality is reached in 70 % of the steps. The teacher's training is not charged.
    Defaults: share 0.2, weight 0.5 and temperature 1 are ours: the paper's values could not be confirmed. In contrast to KI the
    weight is constant, and there is no factor tau^2. The optimizer's state is kept between the parts. Nothing is selected. The
    paper selects among all its data before training, by an early checkpoint of the small model; here there is the trained one,
    and it selects within each batch (of a micro-batch, with machine.micro_batch), so that a step of the first part takes fewer
    tokens. A sequence without a label among the likeliest tokens comes last. 10 is ours too.
    Costs beyond training: one forward pass of the small model per step of the first part, charged to `teacher`: of the whole
    batch, also where a part of it is selected.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.18779"
    share: float = tunable(0.2, 0.05, 0.6)  # of the budget, with soft labels
    weight: float = tunable(0.5, 0.1, 1.0)  # of the soft labels
    temperature: float = tunable(1.0, 0.5, 2.0)  # of the soft labels
    selected: float = 1.0  # of each batch's sequences, that the first part trains on
    likeliest: int = 10  # tokens among which a label must be to be learnable

    def __post_init__(self) -> None:
        for key in ("share", "weight", "selected"):
            if not 0 < getattr(self, key) <= 1:
                raise UsageError(f"{key} = {getattr(self, key)}: must be above 0 and at most 1")
        if self.temperature <= 0:
            raise UsageError(f"temperature = {self.temperature}: must be above 0")
        if self.likeliest < 1:
            raise UsageError(f"likeliest = {self.likeliest}: must be at least 1")

    def phases(self, task: Task) -> Phases:
        def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
            with task.teacher():
                taught = task.source(batch.inputs, batch.positions).float()
                if self.selected < 1:
                    batch, taught = self.selection(batch, taught)
                soft = functional.softmax(taught / self.temperature, -1)
            logits = model(batch.inputs, batch.positions)
            own = functional.cross_entropy(logits.float(), soft)
            return (1 - self.weight) * cross_entropy(logits, batch.labels) + self.weight * own

        trained = yield Phase(model=task.build(), share=self.share, loss=loss, name="soft labels")
        yield Phase(model=trained.model, optimizer=trained.optimizer, name="labels alone")

    def selection(self, batch: Batch, taught: Tensor) -> tuple[Batch, Tensor]:
        """The selected sequences in their order, and the rows of `taught` (N, classes) at their labels."""
        scores = median_learnable_loss(taught, batch.labels, self.likeliest, len(batch.inputs))
        order = scores.sort(descending=True, stable=True).indices
        kept = order[: max(1, round(self.selected * len(scores)))].sort().values
        each = len(batch.labels) // len(scores)
        rows = (kept[:, None] * each + torch.arange(each, device=kept.device)).flatten()
        positions = batch.positions
        if positions is not None:  # of the flattened batch: each sequence moves up to its new place
            length = batch.inputs.shape[1]
            moved = (kept - torch.arange(len(kept), device=kept.device)) * length
            positions = positions[rows] - moved.repeat_interleave(each)
        return Batch(batch.inputs[kept], positions, batch.labels[rows]), taught[rows]


def median_learnable_loss(taught: Tensor, labels: Tensor, likeliest: int, sequences: int) -> Tensor:
    """(sequences,) the median loss of a sequence's labels that are among the likeliest tokens; -1 if none is.

    taught: (N, classes) logits; labels: (N,), or (N, classes) probabilities, of which the largest counts.
    """
    losses = functional.cross_entropy(taught, labels, reduction="none")
    hard = labels if labels.dim() == 1 else labels.argmax(-1)
    learnable = (taught.topk(min(likeliest, taught.shape[-1])).indices == hard[:, None]).any(-1)
    return losses.masked_fill(~learnable, torch.nan).view(sequences, -1).nanmedian(-1).values.nan_to_num(-1.0)
