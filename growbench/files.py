"""Files that are written in full or not at all, and survive a power loss; and the digests by which damaged ones are found."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from growbench.errors import UsageError

DRAFT = re.compile(r".+\.[0-9a-f]{8}\.part")  # the name of a draft

BLOCK = 1 << 22  # bytes that are digested at a time: after each, a thread may have to wait for Python's lock

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

# of folders, on file systems that cannot flush them
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write inside; then it takes the place of `path`, on disk too. After an error it is removed.

    Each call has a draft of its own, so that of several writers the last one decides.
    """
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield draft
        flush(draft)  # before it takes the place: a power loss must not leave the new name with half of the content
        os.replace(draft, path)
        flush(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file. Raises OSError if it cannot be written."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Return when the file's content is on disk, or the names of the files in the folder."""
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH or not path.is_dir():
            raise


def flush_all(folder: Path) -> None:
    """Return when all below the folder is on disk."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in, on disk too."""
    if not folder.is_dir():
        make_folder(folder.parent)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        folder.mkdir(exist_ok=True)  # another process may have made it
        flush(folder.parent)


def move(path: Path, target: Path) -> None:
    """Rename, on disk too. After a power loss it has the old name or the new one."""
    os.replace(path, target)
    flush(target.parent)
    if target.parent != path.parent:
        flush(path.parent)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes have left of the files that they were replacing. None may be writing there."""
    for path in folder.iterdir():
        if DRAFT.fullmatch(path.name) and path.is_file():
            path.unlink()


def no_room(error: Exception) -> bool:
    """Whether an error says that the disk is full, or the user's share of it. Libraries may give the number as text alone."""
    number = error.errno if isinstance(error, OSError) else None
    return number in NO_ROOM or any(f"(os error {each})" in str(error) for each in NO_ROOM)


def sha256(path: Path) -> str:
    """Of a file's content. Raises OSError if it cannot be read."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def check_folder(folder: Path) -> None:
    """Raise UsageError if the results folder cannot be written."""
    try:
        make_folder(folder)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have removed it
    except OSError as error:
        raise UsageError(f"cannot write results to {folder}: {error.strerror}; choose another folder with --results") from error


def small_file(path: Path, largest: int) -> bytes:
    """The content of a file that others may have made. Raises UsageError for a link, what is no plain file, and a larger one."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path}: must be a plain file, and no link")
        if found.st_size > largest:
            raise UsageError(f"{path}: is larger than {largest:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
