"""Power loss, simulated: all that a disk may hold if the power fails at any moment of what is done below a folder.

The content of a file is safe once the file was flushed, a name once its folder was. Of what was not flushed, a disk may hold
nothing, or the names without the content, or all: the last is what a killed process leaves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

Entries = dict[str, int]  # names in a folder, and what they stand for: numbers of inodes
CHANGES = ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")


@dataclass(frozen=True)
class State:
    """What a disk may hold."""

    moment: str  # the call before or after which the power failed, and how much of what was not flushed is there
    mark: Any  # the last one before it
    files: dict[str, bytes | None]  # by path; None: a folder

    def write(self, folder: Path) -> None:
        """Lay it out in an empty folder."""
        for name, content in sorted(self.files.items()):
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)


@dataclass
class Disk:
    """What is below a folder, and what of it is safe. All that is there at first is."""

    folder: Path
    mark: Any = None  # to be set by what is recorded: it tells states apart
    states: list[State] = field(default_factory=list)  # each only once for each mark
    _names: dict[int, Entries] = field(default_factory=dict)  # that are safe, by folder
    _contents: dict[int, bytes] = field(default_factory=dict)  # that are safe
    _held: dict[int, int] = field(default_factory=dict)  # open, so that no number of an inode is given to another file

    def __post_init__(self) -> None:
        self._names, self._contents = self._present()

    def flushed(self, number: int) -> None:
        """A file or folder of this inode was flushed."""
        names, contents = self._present()
        if number in names:
            self._names[number] = names[number]
        elif number in contents:
            self._contents[number] = contents[number]

    def look(self, moment: str) -> None:
        """Note what may be on disk now."""
        names, contents = self._present()
        self._note(f"{moment}, nothing else", self._names, self._contents)
        self._note(f"{moment}, names alone", names, self._contents)
        self._note(f"{moment}, all", names, contents)

    def close(self) -> None:
        for held in self._held.values():
            os.close(held)

    def _present(self) -> tuple[dict[int, Entries], dict[int, bytes]]:
        names: dict[int, Entries] = {}
        contents: dict[int, bytes] = {}
        for folder in [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]:
            names[self._number(folder)] = {path.name: self._number(path) for path in folder.iterdir()}
            contents |= {self._number(path): path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return names, contents

    def _number(self, path: Path) -> int:
        number = path.stat().st_ino
        if number not in self._held:
            self._held[number] = os.open(path, os.O_RDONLY)
        return number

    def _note(self, moment: str, names: dict[int, Entries], contents: dict[int, bytes]) -> None:
        found = State(moment, self.mark, dict(self._tree("", self._number(self.folder), names, contents)))
        if all((found.mark, found.files) != (state.mark, state.files) for state in self.states):
            self.states.append(found)

    def _tree(
        self, at: str, folder: int, names: dict[int, Entries], contents: dict[int, bytes]
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, number in names.get(folder, {}).items():
            is_folder = os.path.isdir(f"/proc/self/fd/{self._held[number]}")
            yield f"{at}{name}", None if is_folder else contents.get(number, b"")
            if is_folder:
                yield from self._tree(f"{at}{name}/", number, names, contents)


@contextmanager
def recorded(folder: Path) -> Iterator[Disk]:
    """Inside, the disk's states before and after each flush, renaming and removal are noted."""
    disk = Disk(folder)

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def carried_out(first: Any, *rest: Any, **options: Any) -> Any:
            what = f"{name} {Path(os.readlink(f'/proc/self/fd/{first}') if name == 'fsync' else os.fspath(first)).name}"
            disk.look(f"before {what}")
            result = call(first, *rest, **options)
            if name == "fsync":
                disk.flushed(os.fstat(first).st_ino)
            disk.look(f"after {what}")
            return result

        return carried_out

    patches = [mock.patch.object(os, name, noted(name, getattr(os, name))) for name in CHANGES]
    try:
        for patch in patches:
            patch.start()
        yield disk
        disk.look("at the end")
    finally:
        for patch in patches:
            patch.stop()
        disk.close()
