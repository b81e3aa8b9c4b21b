"""`growbench grow`: a checkpoint of one's own, grown tensor by tensor by a method that needs no data."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from growbench import registry
from growbench.architectures.library import CONFIG
from growbench.config import loading
from growbench.config.schema import ModelConfig
from growbench.console import byte_bar
from growbench.errors import UsageError
from growbench.files import flush_all, make_folder, move, sha256, write_text
from growbench.formatting import quantity
from growbench.growth.lazy import Lazy
from growbench.method.streaming import StreamingTask, grown
from growbench.registry import Found
from growbench.runs import sharded, stored_tensors
from growbench.runs.checkpoints import CARD, COMPANIONS, MODEL_CARD, folder_of
from growbench.runs.stored_tensors import Checkpoint
from growbench.tools import grow_card, grow_sizes

SLACK = 1 << 20  # bytes beside the tensors: configuration, tokenizer, cards


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    source: str  # a folder, or an id on the hub
    to: str
    method: str
    settings: list[str]  # of the method, as on the command line
    seed: int


@dataclass(frozen=True)
class Destination:
    """The folder that the grown checkpoint is written to, and the command that does it.

    Raises UsageError if the folder exists.
    """

    out: Path
    command: str

    def __post_init__(self) -> None:
        if os.path.lexists(self.out):
            raise UsageError(f"--out {self.out}: exists already; choose another folder")

    def check_room(self, size: int) -> None:
        """Raise UsageError if a checkpoint of so many bytes does not fit there."""
        folder = next(each for each in self.out.absolute().parents if each.is_dir())
        if (free := shutil.disk_usage(folder).free) < size + SLACK:
            raise UsageError(f"--out {self.out}: needs {quantity(size, 'B')}, and {quantity(free, 'B')} are free there")


@dataclass(frozen=True)
class Growth:
    """A checkpoint and what it grows to; no tensor has been computed yet."""

    request: Request
    checkpoint: Checkpoint
    found: Found
    target: ModelConfig
    tensors: Mapping[str, Lazy]
    settings: Mapping[str, float]

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values()) * self.checkpoint.dtype.itemsize

    def config(self) -> dict[str, object]:
        """The source's config.json with the new sizes, and the settings that the method changed."""
        library = self.checkpoint.architecture.library
        return {**library.config_json(self.target), **library.settings_json(self.settings)}


def planned(request: Request, to: Destination | None = None) -> Growth:
    """Read the headers of the source, and follow the method up to its first training.

    Raises UsageError for a wrong request, and if there is no room at `to`.
    """
    sizes = grow_sizes.asked(request.to)
    found = _method(request)
    checkpoint = stored_tensors.opened(folder_of(request.source, f"SOURCE = {request.source!r}"))
    target = grow_sizes.target(checkpoint.sizes, sizes, checkpoint.architecture)
    if to is not None:
        shapes = {name: place.shape for name, place in checkpoint.places.items()}
        entries = grow_sizes.entries(shapes, checkpoint.sizes, target, checkpoint.architecture)
        to.check_room(entries * checkpoint.dtype.itemsize)
    task = StreamingTask.growing(checkpoint.architecture, checkpoint.sizes, target, checkpoint.tensors(), request.seed)
    result = grown(found.name, found.method, task)
    return Growth(request, checkpoint, found, target, result.tensors, result.settings)


def _method(request: Request) -> Found:
    (name,) = registry.named([request.method], {})
    for override in request.settings:
        if not override.startswith(f"{name}.") or override.startswith(f"{name}.train."):
            raise UsageError(f"--set {override}: grow takes hyperparameters of its method, as {name}.KEY=VALUE")
    options = loading.load("gpt2-tiny", request.settings).methods if request.settings else {}
    (found,) = registry.get_all([request.method], options)
    return found


def grow(growth: Growth, to: Destination) -> str:
    """Write the grown checkpoint. Returns what was done, in two lines, or three if tensors were left out.

    Raises UsageError for a source that turns out to be damaged, and for a disk that fills; nothing is left then.
    """
    out, source = to.out, growth.checkpoint.folder
    begin = time.perf_counter()
    with _draft(out) as draft:
        for path in sorted({path for pattern in COMPANIONS for path in source.glob(pattern) if path.is_file()}):
            shutil.copyfile(path, draft / path.name)
        write_text(draft / CONFIG, json.dumps(growth.config(), indent=2) + "\n")
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # others write and digest
        with ThreadPoolExecutor(1) as thread, byte_bar(f"growing {out.name}", growth.bytes) as written:
            digests: Future[dict[str, str]] = thread.submit(growth.checkpoint.digests)
            weights = sharded.write(draft, growth.tensors, growth.checkpoint.dtype, written)
            growth.checkpoint.check_rest()
        about = grow_card.about(growth, to.command, digests.result())
        growth.checkpoint.check_unchanged()
        write_text(draft / MODEL_CARD, grow_card.readme(growth, to, about))
        files = {path.name: sha256(path) for path in draft.iterdir() if path.name not in weights}
        write_text(draft / CARD, json.dumps(about | {"sha256": dict(sorted({**weights, **files}.items()))}, indent=1) + "\n")
        flush_all(draft)
    seconds = time.perf_counter() - begin
    others = sorted(growth.checkpoint.left_out)
    others[4:] = [f"and {len(others) - 4} others"] if len(others) > 4 else []
    return (
        f"grown: {out}: {quantity(growth.bytes, 'B')} in {seconds:.1f} s, {quantity(growth.bytes / seconds, 'B')} a second\n"
        + (f"left out, as {growth.checkpoint.architecture.name} has no use for them: {', '.join(others)}\n" if others else "")
        + f"next: growbench verify {out} {growth.request.source}"
    )


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """A folder beside `out` to fill inside, which then becomes `out`. After an error it is removed, with those made for it."""
    absent = [folder for folder in out.parents if not folder.exists()]
    draft = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        make_folder(out.parent)
        draft.mkdir()
        yield draft
        if out.exists():
            raise UsageError(f"--out {out}: was made by somebody else meanwhile")
        move(draft, out)
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""  # also one of the source
        raise UsageError(f"--out {out}: {file}{error.strerror or error}: nothing was kept") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):  # they are not empty
            for folder in absent:
                folder.rmdir()
