"""What `growbench verify` prints: rows and tables of at most 80 columns, as soon as they are known."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from growbench.architectures.new_parts import Gradients
from growbench.architectures.symmetry import Symmetric
from growbench.formatting import counted

WIDTH, INDENT = 80, 16  # columns


@dataclass
class Report:
    """Prints what is found, and keeps the first thing that is wrong."""

    wrong: str = ""

    def row(self, name: str, text: str) -> None:
        """A line, or several, with a name in front."""
        first, further = f"{name:<{INDENT}}", " " * INDENT
        print(textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False), flush=True)

    def table(self, lines: Sequence[str]) -> None:
        print("\n".join(["", *lines]), flush=True)

    def fault(self, text: str) -> None:
        """Something is wrong with the grown model."""
        self.row("WRONG", text)
        self.wrong = self.wrong or text


def symmetry_table(found: Iterable[Symmetric]) -> list[str]:
    """Symmetric pairs, a line for all layers that have as many."""
    layers: dict[tuple[str, str, int, int], list[int]] = {}
    for each in found:
        where = layers.setdefault((each.place.kind, each.place.group, each.units, each.pairs), [])
        where += [] if each.place.layer is None else [each.place.layer]
    lines = [f"{'symmetric pairs':<30}{'layers':>20}{'units':>10}{'pairs':>10}{'in all':>10}"]
    for (kind, group, units, pairs), numbers in layers.items():
        name = f"  {kind}{', class layers' * (group == 'class_layers')}"
        every = pairs * (len(numbers) or 1)
        lines.append(f"{name:<30}{_ranges(numbers) or 'all':>20}{units:>10,}{pairs:>10,}{every:>10,}")
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 5 as 1-3, 5; the end of a long list is left out."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return textwrap.shorten(", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs), 18, placeholder=" ...")


def gradient_table(found: Gradients, compared: bool) -> list[str]:
    """The norm of the gradient of each canonical weight. `compared`: of a source's entries and of new ones."""
    columns = ("of old entries", "of new entries")[: 1 + compared] if compared else ("",)
    name = f"norm of the gradient on {counted(found.inputs, 'input')}"
    lines = [f"{name:<48}{''.join(f'{column:>16}' for column in columns)}".rstrip()]
    for name, norms in found.norms.items():
        lines.append(f"  {name:<46}{''.join(f'{_norm(norm):>16}' for norm in norms[: len(columns)])}")
    return lines


def _norm(norm: float | None) -> str:
    return "" if norm is None else f"{norm:.2e}" if norm else "0"
