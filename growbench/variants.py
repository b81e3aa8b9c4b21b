"""Variants: `mid=depth_map` is a method under another name, with hyperparameters of its own. Several go into one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import NamedTuple

from growbench.config.loading import File
from growbench.errors import UsageError, check_name

SECTIONS = frozenset(field.name for field in dataclasses.fields(File))  # --set train.steps=1 is no hyperparameter of a variant


class Spec(NamedTuple):
    """A method as a person asks for it: `depth_map`, `./mine.py:Mine`, or a variant of one, `mid=depth_map`."""

    variant: str  # empty: the method goes by its own name
    method: str

    @classmethod
    def of(cls, text: str) -> Spec:
        variant, equals, method = (part.strip() for part in text.partition("="))
        if not variant or not equals or "/" in variant:  # ./a=b.py is a file
            return cls("", text)
        return cls("" if variant == method else variant, method)

    def refuse_taken(self, taken: Container[str]) -> None:
        """Raise UsageError for a variant's name that is another method's (in `taken`), or that --set and folders cannot have."""
        if not self.variant:
            return
        check_name("a variant", self.variant)
        if self.variant in taken:
            raise UsageError(
                f"{self.variant}={self.method}: {self.variant!r} is the name of another method; choose one of your own"
            )
        if "." in self.variant or self.variant in SECTIONS:
            raise UsageError(
                f"{self.variant}={self.method}: --set {self.variant}.KEY=VALUE would not mean it; choose another name"
            )


def refuse_twin(name: str, spec: str, found: Mapping[str, str]) -> None:
    """Raise UsageError if a spec's name is one in `found`, whose folder it would share; some disks ignore case."""
    if name in found:
        raise UsageError(f"two methods are named {name!r}: {found[name]} and {spec}; give one of them another name")
    if alike := next((each for each in found if each.casefold() == name.casefold()), None):
        raise UsageError(f"{alike!r} and {name!r} differ by case alone, and name folders: give one of them another name")
