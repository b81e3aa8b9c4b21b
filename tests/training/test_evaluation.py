"""Final losses on whole splits, against a plain loop over all blocks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from growbench import architectures
from growbench.config.loading import load
from growbench.costs.accounts import Account
from growbench.costs.ledger import Costs
from growbench.data import load as load_data
from growbench.training.evaluation import Evaluation
from tests.conftest import WriteMiniature


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("architecture", "rows"), [("gpt2", 4), ("gpt2", 3), ("bert", 1), ("bert", 4)])
def test_a_final_loss_is_that_of_all_labels_of_a_split(
    architecture: str, rows: int, split: str, write_miniature: WriteMiniature, tmp_path: Path
) -> None:
    experiment = load(str(write_miniature(tmp_path, architecture)))
    family = architectures.of(experiment)
    data = load_data(experiment.data, family.objective, family.tokenizer, 4)
    torch.manual_seed(0)
    model = family.build(experiment.sizes("target", data.vocabulary)).train()
    costs = Costs(torch.device("cpu"))
    evaluation = Evaluation(data, 2 if rows == 1 else 4, False, costs, nullcontext())
    evaluation.micro_batch = rows
    evaluation.scores(model, counted=True)
    before = costs.flops[Account.EVALUATION]
    found = evaluation.held_out(model, split)  # type: ignore[arg-type]
    assert model.training and found.accuracy is None

    losses, documents, blocks = [], [], 0
    model.eval()
    for batch, numbers in data.held_out_batches(split):  # type: ignore[arg-type]
        with torch.no_grad():
            logits = model(batch.inputs, batch.positions)
        losses += nn.functional.cross_entropy(logits, batch.labels, reduction="none").tolist()
        documents += numbers.tolist()
        blocks += len(batch.inputs)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    for place, document in enumerate(sorted(set(documents))):
        own = [loss for loss, number in zip(losses, documents, strict=True) if number == document]
        assert found.labels[place] == len(own) and found.losses[place] == pytest.approx(np.mean(own), rel=1e-5)
    assert len(found.labels) == len(set(documents)) > 1
    assert costs.flops[Account.EVALUATION] - before == before * blocks // 4, "FLOPs are in proportion to the rows"
