"""The chain of a track's files: a line for each in the order in which they came, its digest one of all files up to it.

A file that was changed, or put between others, breaks the chain from its line on. What was added last stands at the end.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from growbench.errors import UsageError
from growbench.files import small_file

FILE = "chain.txt"
LARGEST = 2**20  # bytes of each of a track's own texts
NAMES = re.compile(r"track\.toml|entries/[^/\\]+@[1-9]\d*\.toml")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a track by name, in the order in which they came. Raises UsageError for one that is not as it was written."""
    found: dict[str, bytes] = {}
    last = ""
    for number, line in enumerate(_text(folder).splitlines(), start=1):
        digest, _, name = line.partition("  ")
        if not NAMES.fullmatch(name) or name in found or (number == 1) != (name == "track.toml"):
            raise UsageError(f"{folder / FILE}, line {number}: must be a digest and the name of a file of the track, each once")
        found[name] = small_file(folder / name, LARGEST)
        last, known = digest, _digest(last, name, found[name])
        if digest != known:
            raise UsageError(
                f"{folder / name} is not as it was when {FILE} recorded it: a track's files are never edited, and an entry is "
                "superseded by a new one (growbench submit)"
            )
    if not found:
        raise UsageError(f"{folder / FILE}: names no file")
    for path in sorted((folder / "entries").glob("*.toml")):
        if f"entries/{path.name}" not in found:
            raise UsageError(f"{path} is not in {FILE}: growbench submit adds entries")
    return found


def extended(folder: Path, name: str, content: bytes) -> str:
    """The text of the chain with one more file. `folder`: of a track, or one that is still to be made."""
    lines = _text(folder).splitlines() if (folder / FILE).exists() else []
    last = lines[-1].partition("  ")[0] if lines else ""
    return "".join(f"{line}\n" for line in [*lines, f"{_digest(last, name, content)}  {name}"])


def head(folder: Path) -> str:
    """The digest that the chain ends with: it names all that the track holds."""
    return _text(folder).splitlines()[-1].partition("  ")[0]


def _text(folder: Path) -> str:
    try:
        return small_file(folder / FILE, LARGEST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{folder / FILE}: is not UTF-8") from error


def _digest(last: str, name: str, content: bytes) -> str:
    return hashlib.sha256(f"{last} {name} {hashlib.sha256(content).hexdigest()}".encode()).hexdigest()
