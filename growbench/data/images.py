"""Batches of images with DeiT's augmentation. Each batch is a pure function of (seed, step)."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growbench.config.schema import ImageConfig
from growbench.data.cache import cached, memory_map
from growbench.data.records import Corpus, Record, corpus_of
from growbench.data.text import AUGMENTATION, STREAMS, Batch, HeldOut, Which, evenly_spread, rows_of_batch
from growbench.data.tokens import SPLITS, HeldOutSplit, split_of
from growbench.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 2  # of the cache, and of everything between a corpus and the bytes in it: raise it when either changes
POLICIES = "rand-m9-mstd0.5-inc1 and the like, augmix-m5-w4-d2 and the like, original, originalr, v0, v0r, 3a"
CHUNK = 256  # images that are prepared together


# --- batches


class Images:
    """One split in the cache: its images, concatenated."""

    content: NDArray[np.uint8]  # memory-mapped: (3, S, S) pixels per image; if training crops, the original files
    index: NDArray[np.int64]  # (N, 2): label of each image, and the end of its bytes

    def __init__(self, folder: Path, split: str) -> None:
        self.content = memory_map(folder / f"{split}.images", "uint8")
        self.index = memory_map(folder / f"{split}.index", "int64").reshape(-1, 2)
        self._opened = folder, split

    def __reduce__(self) -> tuple[Any, ...]:
        return Images, self._opened  # a worker process maps the files again

    def __len__(self) -> int:
        return len(self.index)

    def labels(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.index[rows, 0])

    def pixels(self, rows: NDArray[np.int64], size: int) -> Tensor:
        """(B, 3, S, S) uint8"""
        return torch.from_numpy(self.content.reshape(-1, 3, size, size)[rows])

    def files(self, rows: NDArray[np.int64]) -> list[bytes]:
        return [self.content[self.index[row - 1, 1] if row else 0 : self.index[row, 1]].tobytes() for row in rows]


@dataclass(frozen=True)
class ImageData:
    """Images and their classes, as training needs them (see Data)."""

    config: ImageConfig
    fingerprint: str  # of the corpus
    batch: int  # images
    evaluation_batches: int
    training: Images
    validation: Images
    test: Images
    stream: int  # of random numbers: see STREAMS
    augment: Callable[[Image], Tensor] | None  # crop and policy: one image -> (3, S, S) uint8
    erase: Callable[[Tensor], Tensor] | None  # (B, 3, S, S), normalised
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None  # inputs, labels -> inputs, soft labels
    costly = True

    @property
    def name(self) -> str:
        return self.config.corpus

    @property
    def vocabulary(self) -> int:
        return self.config.classes

    @property
    def tokens_per_batch(self) -> int:
        return self.batch * self.config.positions

    def train_batch(self, step: int, seed: int) -> Batch:
        """Batch number `step` of an endless sequence of epochs, each a permutation of all images. `seed` and `step` >= 0."""
        rows = rows_of_batch(len(self.training), self.batch, step, (self.stream, seed))
        labels = self.training.labels(rows)
        with _seeded(AUGMENTATION, self.stream, seed, step):
            pixels = self._augmented(rows)
            flipped = torch.rand(self.batch) < self.config.flip
            pixels[flipped] = pixels[flipped].flip(-1)
            inputs = normalised(pixels)
            if self.erase:
                inputs = self.erase(inputs)
            if self.mix:
                inputs, labels = self.mix(inputs, labels)
        return Batch(inputs, None, labels)

    def validation_batches(self) -> list[Batch]:
        """Fixed batches without augmentation, spread evenly over the validation images."""
        groups = evenly_spread(len(self.validation), self.evaluation_batches, self.batch)
        return [self._plain(self.validation, rows) for rows in groups]

    def held_out_batches(self, split: HeldOutSplit) -> Iterator[HeldOut]:
        """The whole split without augmentation, batch by batch; the last one may be smaller."""
        images = self.validation if split == "validation" else self.test
        for first in range(0, len(images), self.batch):
            rows = np.arange(first, min(first + self.batch, len(images)))
            yield HeldOut(self._plain(images, rows), rows)

    def describe(self) -> dict[str, Any]:
        """What a run records of its data, as plain JSON values."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train_images": len(self.training),
            "validation_images": len(self.validation),
            "test_images": len(self.test),
            "evaluation_batches": self.evaluation_batches,
            "classes": self.config.classes,
        }

    def _plain(self, images: Images, rows: NDArray[np.int64]) -> Batch:
        return Batch(normalised(images.pixels(rows, self.config.image_size)), None, images.labels(rows))

    def _augmented(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, 3, S, S) uint8"""
        if self.config.crop < 1:
            images = map(_decode, self.training.files(rows))
        else:
            pixels = self.training.pixels(rows, self.config.image_size)
            if self.augment is None:
                return pixels
            from torchvision.transforms.functional import to_pil_image

            images = map(to_pil_image, pixels)
        assert self.augment is not None
        return torch.stack([self.augment(image) for image in images])


def load(config: ImageConfig, batch: int, which: Which = "target") -> ImageData:
    """An experiment's images in batches of `batch`. Prepared on first use, then read from the cache.

    `which`: the model that they are for. Raises UsageError if the corpus cannot be read or is too small for one batch of
    training, validation or test, for an unknown augmentation policy, and for an odd batch with mixup or cutmix.
    """
    if batch % 2 and (config.mixup or config.cutmix):
        raise UsageError(f"batch = {batch}: must be even, because mixup and cutmix mix the images of a batch in pairs")
    augment, erase, mix = _augment(config), _erase(config), _mix(config)
    corpus = corpus_of(config)
    settings = ["images", FORMAT, corpus.fingerprint, config.image_size, config.classes, config.crop < 1]
    training, validation, test = cached(settings, lambda empty: _prepare(empty, config, corpus), _open)
    for split, images in ("training", training), ("validation", validation), ("test", test):
        if len(images) < batch:
            raise UsageError(f"corpus {config.corpus} has {len(images)} {split} images; one batch needs {batch}")
    evaluation_batches = min(config.evaluation_batches, len(validation) // batch)
    return ImageData(
        config=config,
        fingerprint=corpus.fingerprint,
        batch=batch,
        evaluation_batches=evaluation_batches,
        training=training,
        validation=validation,
        test=test,
        stream=STREAMS[which],
        augment=augment,
        erase=erase,
        mix=mix,
    )


def normalised(pixels: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 -> float32, by ImageNet's mean and standard deviation."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, deviation = (torch.tensor(values).view(3, 1, 1) * 255 for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return pixels.to(torch.float32).sub_(mean).div_(deviation)


# --- DeiT's augmentation (https://arxiv.org/abs/2012.12877, table 9), as timm implements it


def _augment(config: ImageConfig) -> Callable[[Image], Tensor] | None:
    if config.crop == 1 and not config.auto_augment:
        return None
    from timm.data import create_transform

    try:
        transform = create_transform(
            config.image_size,
            is_training=True,
            scale=(config.crop, 1),
            hflip=0,
            color_jitter=None,  # type: ignore[arg-type]
            auto_augment=config.auto_augment or None,
            interpolation="bicubic",
            normalize=False,
        )
    except Exception as error:  # timm raises AssertionError
        raise UsageError(f"auto_augment = {config.auto_augment!r}: not a policy of timm; allowed are {POLICIES}") from error
    if config.crop == 1:
        transform.transforms = transform.transforms[1:]  # all but the random crop
    return transform


def _erase(config: ImageConfig) -> Callable[[Tensor], Tensor] | None:
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(config.erase, mode="pixel", device="cpu") if config.erase else None


def _mix(config: ImageConfig) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    from timm.data.mixup import Mixup

    if config.mixup or config.cutmix:
        return Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=config.classes)
    if config.smoothing:
        return partial(_smooth, config)
    return None


def _smooth(config: ImageConfig, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    from timm.data.mixup import mixup_target

    return inputs, mixup_target(labels, config.classes, smoothing=config.smoothing)


@contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU) inside, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    numbers = np.random.SeedSequence(seed).generate_state(3).tolist()
    random.seed(numbers[0])
    np.random.seed(numbers[1])
    torch.default_generator.manual_seed(numbers[2])  # torch.manual_seed would seed CUDA too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


# --- the cache


def _open(folder: Path) -> list[Images]:
    return [Images(folder, split) for split in SPLITS]


def _prepare(folder: Path, config: ImageConfig, corpus: Corpus) -> None:
    """Write the splits. Every image is decoded, so that a broken one is found before training."""
    from PIL.Image import DecompressionBombWarning
    from timm.data import create_transform
    from tqdm import tqdm

    warnings.filterwarnings("ignore", category=DecompressionBombWarning)  # large images are read; Pillow refuses huge ones
    resize = create_transform(config.image_size, crop_pct=1, interpolation="bicubic", normalize=False)

    def convert(record: Record, split: str) -> bytes:
        if not isinstance(record.label, int) or not 0 <= record.label < config.classes:
            allowed = f"allowed are 0 to {config.classes - 1} (classes = {config.classes})"
            raise UsageError(f"{record.where}: label {record.label!r}; {allowed}")
        try:
            image = _decode(record.file)
        except Exception as error:  # Pillow's plugins raise errors of any type
            raise UsageError(f"{record.where}: broken, or not an image that Pillow can read") from error
        return record.file if split == "train" and config.crop < 1 else resize(image).numpy().tobytes()

    records = iter(tqdm(corpus.records(), desc=f"preparing {config.corpus}", unit=" images", delay=2, disable=None))
    numbered = ((record, split_of(number)) for number, record in enumerate(records))
    with ExitStack() as stack:
        names = [f"{split}.{part}" for split in SPLITS for part in ("images", "index")]
        files = {name: stack.enter_context((folder / name).open("wb")) for name in names}
        while chunk := list(islice(numbered, CHUNK)):
            for (record, split), content in zip(chunk, _pool().map(convert, *zip(*chunk, strict=True)), strict=True):
                files[f"{split}.images"].write(content)
                np.array([record.label, files[f"{split}.images"].tell()], np.int64).tofile(files[f"{split}.index"])


def _decode(file: bytes) -> Image:
    from PIL import Image

    return Image.open(BytesIO(file)).convert("RGB")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), "images")
