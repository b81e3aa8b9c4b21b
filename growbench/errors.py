"""What a person asked for and cannot have: errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """What a person asked for cannot be done. Its text is one line: what is wrong, and what is allowed."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'did you mean X? ' if a known name is close, then the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(known) or 'none'}"
