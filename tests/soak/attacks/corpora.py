"""Corpora that are bombs, broken, empty, or of odd shapes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.conftest import documents
from tests.soak.attacks.limits import limit_memory
from tests.soak.attempt import REFUSED, Attempt, NotKept, attack

IMAGES = """
title = "Images"
architecture = "vit"
[source]
layers = 1
width = 16
heads = 2
[target]
layers = 2
width = 32
heads = 4
[data]
corpus = "files:{folder}/*"
image_size = 8
patch = 4
classes = 2
evaluation_batches = 1
[train]
batch = 2
steps = 2
lr = 1e-3
"""


def run(attempt: Attempt, corpus: Path | str, *sets: str) -> list[object]:
    """Training scratch on a corpus for two steps."""
    own = ["train.steps=2", "train.warmup=1", f"data.corpus=files:{corpus}", *sets]
    options = [option for each in own for option in ("--set", each)]
    return ["run", attempt.experiment, "--methods", "scratch", "--results", attempt.results, *options]


def table(path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"text": column}), path)


def repeated(path: Path) -> None:
    """10^8 rows of one string of 100 characters, stored once: 10 GB of text in a file of a few KB."""
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int8)), pa.array(["x" * 100]))
    with pq.ParquetWriter(path, pa.schema({"text": rows.type})) as writer:
        for _ in range(100):
            writer.write_table(pa.table({"text": rows}), row_group_size=10**6)


def nested(path: Path) -> None:
    kind = pa.string()
    for _ in range(50):
        kind = pa.list_(kind)
    table(path, pa.array([None] * 200, kind))


TEXT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "NUL bytes in JSON lines": ("a.jsonl", lambda path: path.write_bytes(b'{"text": "a\0b"}\n' * 100)),
    "escaped lone surrogates": ("a.jsonl", lambda path: path.write_text('{"text": "\\ud800"}\n' * 1000)),
    "no object": ("a.jsonl", lambda path: path.write_text("[1]\n" * 100)),
    "a key twice": ("a.jsonl", lambda path: path.write_text('{"text": "a", "text": 7}\n' * 100)),
    "no bytes": ("a.txt", lambda path: path.write_bytes(b"")),
    "one document": ("a.txt", lambda path: path.write_text("one document " * 5000)),
    "spaces alone": ("a.txt", lambda path: path.write_text(" \n\t\n" * 5000)),
    "control characters alone": ("a.txt", lambda path: path.write_bytes(b"\x01\x02 " * 5000)),
    "UTF-16": ("a.txt", lambda path: path.write_text(documents(), encoding="utf-16")),
    "a parquet file of no rows": ("a.parquet", lambda path: table(path, pa.array([], pa.string()))),
    "a parquet file cut short": ("a.parquet", lambda path: (table(path, pa.array(["x"] * 9)), cut(path))),
    "a parquet file of lists in lists": ("a.parquet", nested),
    "a parquet file of bytes that are no text": ("a.parquet", lambda path: table(path, pa.array([b"\xff\xfe"] * 500))),
    "a parquet file of numbers": ("a.parquet", lambda path: table(path, pa.array([1.5] * 500))),
    "gzip named .txt": ("a.txt", lambda path: path.write_bytes(b"\x1f\x8b\x08\0" + zlib.compress(b"x" * 10**6))),
    "a folder named .txt": ("a.txt", lambda path: path.mkdir()),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@attack(f"corpora of {', '.join(TEXT)}", REFUSED)
def broken_text(attempt: Attempt) -> str:
    cases = []
    for number, (name, write) in enumerate(TEXT.values()):
        folder = attempt.folder / f"corpus-{number}"
        folder.mkdir()
        write(folder / name)
        cases.append(run(attempt, folder / name))
    return attempt.each_refused(cases, names=list(TEXT))


@attack("100,000 documents of one word, and 3,000 times the same document", "exit code 0; losses are finite")
def tiny_and_equal_documents(attempt: Attempt) -> str:
    for name, text in ("tiny", "\n\n".join(["word"] * 100_000)), ("equal", "\n\n".join(["one and the same document"] * 3000)):
        corpus = attempt.folder / f"{name}.txt"
        corpus.write_text(text)
        attempt.results = attempt.folder / name
        said = attempt.growbench(*run(attempt, corpus))
        assert said.code == 0 and len(attempt.losses()) == 1, said
    return "exit codes 0"


@attack("a parquet file of 10^8 equal strings, 10 GB of text in some KB, with 1 GB of memory", "1,000 documents are read")
def parquet_bomb(attempt: Attempt) -> str:
    bomb = attempt.folder / "bomb.parquet"
    repeated(bomb)
    said = attempt.growbench(*run(attempt, bomb, "data.documents=1000"), before=partial(limit_memory, 1 << 30))
    if said.code or "Traceback" in said.err:
        raise NotKept(f"exit code {said.code}: {said.err[-300:]}")
    return "exit code 0"


def png(width: int, height: int) -> bytes:
    """An image without pixels that says it has so many."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")


def picture(width: int, height: int, form: str = "png") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, form)
    return content.getvalue()


BROKEN_IMAGES = {
    "40,000 x 40,000 pixels in 1 KB (a decompression bomb)": png(40_000, 40_000),
    "12,000 x 12,000 pixels (which Pillow warns of)": png(12_000, 12_000),
    "2^31 pixels wide": png(2**31 - 1, 1),
    "cut short": picture(50, 50)[:-60],
    "no bytes": b"",
    "text": b"not an image",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "PostScript, which another program would run": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


@attack(f"images: {'; '.join(BROKEN_IMAGES)}", REFUSED)
def broken_images(attempt: Attempt) -> str:
    cases = []
    for number, content in enumerate(BROKEN_IMAGES.values()):
        folder = images(attempt.folder / f"images-{number}")
        (folder / "ant" / "0.png").write_bytes(content)
        cases.append(train_on_images(attempt, folder))
    return attempt.each_refused(cases, names=list(BROKEN_IMAGES))


@attack("parquet files whose rows name images elsewhere: a local file, file://, zip://, an address", REFUSED)
def images_elsewhere(attempt: Attempt) -> str:
    secret, cases = attempt.folder / "secret.png", []
    secret.write_bytes(picture(8, 8))
    for number, path in enumerate((str(secret), f"file://{secret}", f"zip://a.png::{secret}", "http://127.0.0.1:9/a.png")):
        folder = attempt.folder / f"parquet-{number}"
        folder.mkdir()
        rows = [{"image": {"bytes": None, "path": path}, "label": label % 2} for label in range(48)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        cases.append(train_on_images(attempt, folder))
    return attempt.each_refused(cases)


@attack("an image of 1 x 1,000,000 pixels", "exit code 0; losses are finite")
def narrow_image(attempt: Attempt) -> str:
    folder = images(attempt.folder / "images")
    (folder / "ant" / "0.png").write_bytes(picture(1, 1_000_000))
    said = attempt.growbench(*train_on_images(attempt, folder))
    assert said.code == 0 and len(attempt.losses()) == 1, said
    return "exit code 0"


def images(folder: Path) -> Path:
    """Enough images of two classes for a batch of each split."""
    for number in range(48):
        path = folder / ("ant", "bee")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(8, 8))
    return folder


def train_on_images(attempt: Attempt, folder: Path) -> list[object]:
    experiment = folder.with_suffix(".toml")
    experiment.write_text(IMAGES.format(folder=folder), encoding="utf-8")
    return ["run", experiment, "--methods", "scratch", "--results", attempt.results]
