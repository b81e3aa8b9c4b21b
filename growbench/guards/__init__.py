"""What a method must leave as it is: the settings of the process, and the code of growbench and of the libraries below it.

A guard is no wall against malice: a method's code can reach files, the network, and this package.
"""

from __future__ import annotations

from functools import cache

from growbench.guards.code import Code
from growbench.guards.settings import Settings

__all__ = ["Guard"]


class Guard:
    """Tells what code that runs after the guard is made, or after `begin`, changes in this process, and puts it back."""

    def __init__(self) -> None:
        self.code = _code()
        self.code.begin()
        self.begin()

    def begin(self) -> None:
        """Settings are as they should be now."""
        self.settings = Settings()

    def changes(self) -> str:
        """What has changed, in words, such as "changed torch's default dtype from ... to ..."; empty if nothing has.

        It is put back where that is possible.
        """
        found = self.settings.changes() or self.code.changes()
        if found:
            self.restore()
        return found

    def random_changes(self) -> str:
        """Which generators have been seeded or drawn from that growth must leave; empty if none have."""
        return self.settings.random_changes()

    def restore(self) -> None:
        """Put back what can be put back."""
        self.settings.restore()
        self.code.restore()


@cache
def _code() -> Code:
    """One for all guards: to look at all code takes longer than to look for changes."""
    return Code()
