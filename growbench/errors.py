"""Requests that cannot be carried out: errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FailedAlone(Exception):
    """A run failed in one of several processes. It must end at once, without waiting for the others, which wait for it."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop. A KeyboardInterrupt that is none was raised by a method."""


class UsageError(Exception):
    """A request that cannot be carried out. Its text is one line: what is wrong, and what is allowed."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its class if it has none. Lines that end with a colon go on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((place for place, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:end]) or type(error).__name__


LONGEST_NAME = 100  # bytes: names of folders and files are made from it, of at most 255 bytes


def check_name(what: str, name: str) -> None:
    """Raise UsageError unless a folder of results can have this name: it leads nowhere else, is printable, and not too long."""
    if name.startswith(".") or "/" in name or "\\" in name or not name.isprintable() or not name.strip():
        raise UsageError(
            f"{what} cannot be named {name!r}: it also names folders; no leading dot, no slash, only printable characters"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise UsageError(f"{what} cannot be named {name!r}: it also names folders, so at most {LONGEST_NAME} bytes are allowed")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A known name that is close, if there is one, then all known names."""
    known = sorted(known)
    return closest(name, known) + f"known: {', '.join(known) or 'none'}"


def closest(name: str, known: Iterable[str]) -> str:
    """A question that names a known name, and a space; empty if none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]}? " if close else ""
