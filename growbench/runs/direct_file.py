"""A file that is written to the disk without a copy in the system's memory, where the file system can do so."""

from __future__ import annotations

import errno
import fcntl
import os
from mmap import mmap
from pathlib import Path
from typing import Self

BLOCK = 1 << 22  # bytes that are written at a time; a multiple of every disk's own blocks
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
DIRECT = getattr(os, "O_DIRECT", 0)  # Linux alone has it


class DirectFile:
    """A new file, whole once the `with` block ends without an error. Raises OSError.

    The system's memory would hold a copy that nobody reads soon, and may take longer to fill than the disk takes to write.
    """

    def __init__(self, path: Path) -> None:
        self._direct = DIRECT != 0
        try:
            self._file = os.open(path, FLAGS | DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file, self._direct = os.open(path, FLAGS, 0o666), False  # a file system in memory
        self._buffer, self._filled = memoryview(mmap(-1, BLOCK)), 0  # aligned, as direct writing demands

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._write_through_memory()  # the rest, which is no whole block
                self._empty()
        finally:
            os.close(self._file)

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            part = left[: BLOCK - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            left = left[len(part) :]
            if self._filled == BLOCK:
                self._empty()

    def _empty(self) -> None:
        left = self._buffer[: self._filled]
        while left:
            try:
                left = left[os.write(self._file, left) :]
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._write_through_memory()  # after a part of a block, or where blocks are larger
        self._filled = 0

    def _write_through_memory(self) -> None:
        if self._direct:
            fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) & ~DIRECT)
            self._direct = False
