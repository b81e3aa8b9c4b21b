"""Writes tensors as safetensors, in one file or several with an index, while they are computed row by row."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from growbench.costs import memory
from growbench.errors import UsageError
from growbench.files import write_text
from growbench.growth.lazy import Evaluation, Lazy
from growbench.runs.checkpoints import INDEX, SINGLE
from growbench.runs.direct_file import DirectFile
from growbench.runs.stored_tensors import TYPES, is_finite

SHARD = 5 * 10**9  # bytes of tensors in a file
ROWS = 1 << 21  # bytes of rows that are computed at a time
GAPS = 16  # tensors, after which memory is returned that was freed between parts of many sizes
AHEAD = 16  # such parts that may wait for disk and digest

KINDS = {dtype: kind for kind, dtype in TYPES.items()}


@dataclass(frozen=True)
class Shard:
    """The tensors of one file."""

    name: str
    tensors: Mapping[str, Lazy]


def shards(tensors: Mapping[str, Lazy], dtype: torch.dtype) -> list[Shard]:
    """The tensors in order, divided into files of at most `SHARD` bytes, or of one tensor."""
    groups: list[dict[str, Lazy]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        more = tensor.numel() * dtype.itemsize
        if groups[-1] and size + more > SHARD:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += more
    if len(groups) == 1:
        return [Shard(SINGLE, groups[0])]
    return [Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", group) for number, group in enumerate(groups, 1)]


def write(folder: Path, tensors: Mapping[str, Lazy], dtype: torch.dtype, written: Callable[[int], object]) -> dict[str, str]:
    """Write the tensors in this type. Returns the sha256 of each file.

    `written` gets the number of bytes of each part. Raises UsageError for entries that the type cannot hold, OSError if the disk
    is full.
    """
    files = shards(tensors, dtype)
    digests = {}
    for shard in files:
        with DirectFile(folder / shard.name) as file, Threads() as threads:
            digests[shard.name] = _Writer(file, threads, dtype, written).write(shard)
    if len(files) > 1:
        total = sum(tensor.numel() for tensor in tensors.values())
        index = {
            "metadata": {"total_parameters": total, "total_size": total * dtype.itemsize},
            "weight_map": {name: shard.name for shard in files for name in shard.tensors},
        }
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return digests


class Threads(ExitStack):
    """One for each kind of work beside computing, so that work of one kind is done in order."""

    def __init__(self) -> None:
        super().__init__()
        self.writing, self.reading = (self.enter_context(ThreadPoolExecutor(1)) for _ in range(2))


@dataclass
class _Writer:
    """One file. Threads write the parts, check and digest them, while the next ones are computed."""

    file: DirectFile
    threads: Threads
    dtype: torch.dtype
    written: Callable[[int], object]
    waiting: deque[tuple[Future[None], ...]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, shard: Shard) -> str:
        self._put(_header(shard.tensors, self.dtype))
        for number, (name, tensor) in enumerate(shard.tensors.items()):
            at = Evaluation(self.dtype)
            for rows in _parts(tensor, self.dtype):
                part = tensor.part({0: rows} if tensor.dim() else {}, at).to(self.dtype).contiguous()
                finite = self.threads.reading.submit(self._check_finite, name, part)
                self._put(memoryview(part.reshape(-1).view(torch.uint8).numpy()), finite)  # type: ignore[arg-type]
            if number % GAPS == 0:
                memory.return_freed()
        while self.waiting:
            self._finish_one()
        return self.digest.hexdigest()

    def _put(self, data: bytes | memoryview, *others: Future[None]) -> None:
        """Have these bytes written and digested. `others`: what else is done with them."""
        if len(self.waiting) >= AHEAD:
            self._finish_one()
        written, digested = self.threads.writing.submit(self._write, data), self.threads.reading.submit(self.digest.update, data)
        self.waiting.append((*others, written, digested))

    def _finish_one(self) -> None:
        for each in self.waiting.popleft():
            each.result()

    def _check_finite(self, name: str, part: Tensor) -> None:
        if not is_finite(part):
            raise UsageError(f"{name} grows to entries that {str(self.dtype).removeprefix('torch.')} cannot hold")

    def _write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.written(len(data))


def _parts(tensor: Tensor, dtype: torch.dtype) -> list[range]:
    """The tensor's rows in parts of at most `ROWS` bytes, or of one row."""
    if not tensor.dim():
        return [range(1)]
    number, *row = tensor.shape
    rows = max(1, ROWS // max(1, prod(row) * dtype.itemsize))
    return [range(start, min(start + rows, number)) for start in range(0, number, rows)]


def _header(tensors: Mapping[str, Lazy], dtype: torch.dtype) -> bytes:
    """The length of the description, and the description: type, shape and place of each tensor, padded to 8 bytes."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * dtype.itemsize
        table[name] = {"dtype": KINDS[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
