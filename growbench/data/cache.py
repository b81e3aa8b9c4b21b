"""The cache of prepared data: a folder for each preparation, which is either complete or missing.

meta.json in a folder holds the sha256 of every file, which is compared when a process opens the folder first. What is damaged is
named and made again. A folder that an earlier version made gets its digests then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from growbench.console import say
from growbench.data import processes, sources
from growbench.errors import UsageError
from growbench.files import flush_all, make_folder, move, remove_drafts, sha256, write_text

META = "meta.json"
PROGRESS = "progress.json"  # in a folder that is being filled: an interrupted preparation resumes from it

T = TypeVar("T")
State = list[tuple[str, int, int]]  # name, size and time of change of each file
_checked: dict[Path, State] = {}  # folders whose digests this process has compared


class Damaged(Exception):
    """A folder of the cache that does not hold what was written."""


def cached(settings: list[Any], fill: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` makes of the cache's folder for `settings` (plain JSON values), filled by `fill` if it is missing or damaged.

    Raises UsageError if it cannot be written.
    """
    processes.end_if_starting()
    folder = sources.cache_folder() / hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    try:
        if folder.exists():
            try:
                return _opened(folder, read)
            except Damaged as error:
                say(f"{error}: preparing the data again")
        _build(folder, fill, read)
        return _opened(folder, read)
    except (OSError, Damaged) as error:
        raise UsageError(f"cannot write the cache {folder.parent} (environment GROWBENCH_CACHE): {error}") from error


def carried(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a folder of a cache, wherever it lies now. Raises UsageError if it is missing or damaged."""
    if not (folder / META).is_file():
        raise UsageError(f"{folder} holds no prepared data: no {META}")
    try:
        return _opened(folder, read)
    except Damaged as error:
        raise UsageError(f"prepared data: {error}") from error


def memory_map(path: Path, dtype: str) -> NDArray[Any]:
    """A read-only view of a flat file of numbers."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def _opened(folder: Path, read: Callable[[Path], T]) -> T:
    """Raises Damaged if the folder's files are not those that were written."""
    try:
        if _checked.get(folder) != _state(folder):
            _compare(folder)
            _checked[folder] = _state(folder)
        return read(folder)
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{folder} cannot be read ({' '.join(str(error).split())})") from error


def _state(folder: Path) -> State:
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]


def _compare(folder: Path) -> None:
    """Compare the files with their digests. Raises Damaged. If there are none, an earlier version made the folder: add them."""
    meta = _meta(folder)
    digests = meta.pop("sha256", None)
    if digests is None:
        with suppress(OSError):  # another user's cache
            _add_digests(folder)
        return
    for name, expected in digests.items():
        if (_digest(meta) if name == META else sha256(folder / name)) != expected:
            raise Damaged(f"{folder / name} is damaged (sha256 differs)")


def _add_digests(folder: Path) -> None:
    """Store the digests of all files, and that of the rest of meta.json, in meta.json."""
    meta = _meta(folder)
    digests = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != META}
    write_text(folder / META, json.dumps({**meta, "sha256": {**digests, META: _digest(meta)}}, indent=1))


def _meta(folder: Path) -> dict[str, Any]:
    """The content of meta.json; empty if there is none, as with images of an earlier version."""
    file = folder / META
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{META} holds no table")
    return found


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _build(folder: Path, fill: Callable[[Path], None], read: Callable[[Path], object]) -> None:
    """Fill a temporary folder, then rename it, so that `folder` is either complete or missing. Other processes wait for it.

    A damaged folder makes way, unless another process has replaced it already. If `fill` is interrupted, it finds its files again
    at the next call. After an error they are kept only if `PROGRESS` exists.
    """
    from filelock import FileLock

    make_folder(folder.parent)
    name = folder.with_suffix(".lock")
    with FileLock(name):
        try:
            if not _complete(folder, read):
                building = folder.with_suffix(".preparing")
                building.mkdir(exist_ok=True)
                remove_drafts(building)
                try:
                    fill(building)
                except BaseException:
                    if not (building / PROGRESS).exists():
                        shutil.rmtree(building)
                    raise
                _add_digests(building)
                flush_all(building)
                move(building, folder)
                _checked[folder] = _state(folder)
        finally:
            name.unlink(missing_ok=True)  # while locked: a process that then locks the unlinked file tries again


def _complete(folder: Path, read: Callable[[Path], object]) -> bool:
    """Whether the folder is there and can be used. One that is damaged is removed."""
    if not folder.exists():
        return False
    try:
        _opened(folder, read)
    except Damaged:
        away = folder.with_suffix(".damaged")
        shutil.rmtree(away, ignore_errors=True)
        move(folder, away)  # at once: no other process may open half a folder
        shutil.rmtree(away)
        return False
    return True
