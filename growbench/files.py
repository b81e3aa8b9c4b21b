"""Files that are written in full or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from growbench.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write inside; then it takes the place of `path`. After an error it is removed, and `path` is as before."""
    draft = path.with_name(f"{path.name}.part")
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file. Raises OSError if it cannot be written."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Raise UsageError if the results folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have removed it
    except OSError as error:
        raise UsageError(f"cannot write results to {folder}: {error.strerror}; choose another folder with --results") from error
