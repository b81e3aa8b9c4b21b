"""Batches that are copied to the device ahead, while it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growbench.config.schema import ImageConfig
from growbench.data import load
from growbench.data.feed import Feed


@pytest.mark.gpu
def test_batches_copied_ahead_are_the_datas_own(tmp_path: Path) -> None:
    """Each is read behind long work on the device, by when later ones have been copied."""
    rng = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "abc"[number % 3] / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    config = ImageConfig(f"files:{tmp_path}", image_size=32, patch=4, classes=3, evaluation_batches=1, flip=0.5, crop=0.3)
    images, device = load(config, "classes", None, 2), torch.device("cuda")
    feed, matrix, read = Feed(images, 5, device, workers=2), torch.randn(8192, 8192, device=device), []
    for step in range(12):
        batch = feed.batch(step)
        matrix @ matrix
        read.append((batch.inputs.clone(), batch.labels.clone()))
        del batch
    feed.close()
    for step, (inputs, labels) in enumerate(read):
        expected = images.train_batch(step, 5)
        assert torch.equal(inputs.cpu(), expected.inputs) and torch.equal(labels.cpu(), expected.labels)
