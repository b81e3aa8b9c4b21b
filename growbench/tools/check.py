"""Checks that a method keeps the promises of the plugin interface, in the real loop on miniatures of every architecture.

Data are random numbers drawn from (seed, step); nothing is read from a disk or a network.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from growbench import architectures
from growbench.errors import UsageError
from growbench.formatting import counted
from growbench.method import Method
from growbench.planning.plan import plan
from growbench.registry import Found
from growbench.tools import miniatures
from growbench.tools.miniatures import SEED, VOCABULARY, Cell
from growbench.tools.watcher import LIMITS, Run, Sparing

ACCEPTED = 'declare settings that it accepts, as miniature = {"target.width": 32} in the class, or give them by --set'


@dataclass
class Verdict:
    """The result of checking a method in one cell."""

    cell: Cell
    phases: list[str] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)  # of the outputs by each growth, relative
    broken: list[str] = field(default_factory=list)  # promises, one line each
    warnings: list[str] = field(default_factory=list)
    refused: str = ""  # the method's own reason for refusing this cell

    def lines(self) -> list[str]:
        """The result as lines of text."""
        if self.broken:
            return [f"{self.cell}: BROKEN: {line}" for line in self.broken]
        if self.refused:
            return [f"{self.cell}: refused: {self.refused}"]
        grown = f"; growth changes the outputs by {', '.join(f'{each:.2g}' for each in self.changes)}" if self.changes else ""
        return [f"{self.cell}: kept, {counted(len(self.phases), 'phase')}: {', '.join(self.phases)}{grown}"]


def cells_of(only: str | None, settings: Mapping[str, Any]) -> list[Cell]:
    """The miniatures of the architectures in `only`, or of all, at these settings. Raises UsageError for an unknown one."""
    asked = architectures.names() if only is None else [name.strip() for name in only.split(",")]
    for name in asked:
        architectures.get(name)
    return [cell.at(settings) for cell in miniatures.cells() if cell.architecture in asked]


def report(found: Found, cells: Sequence[Cell]) -> int:
    """Print a line for each cell or broken promise, then a summary. 0 if at least one cell was checked and no promise broken."""
    torch.set_num_threads(1)  # more are slower at this size
    verdicts = []
    warnings = card_warnings(found.method)
    said: Counter[str] = Counter()  # in how many cells each promise was broken
    for cell in cells:
        seen = verdict(found.method, cell)
        verdicts.append(seen)
        for line in seen.lines():
            if not said[line.partition(": BROKEN: ")[2]]:
                print(line, flush=True)
        said.update(seen.broken)
        warnings += [line for line in seen.warnings if line not in warnings]
    for line, times in said.items():
        if times > 1:
            print(f"in {times} miniatures: {line}")
    for line in warnings:
        print(f"warning: {line}")
    broken = sum(bool(seen.broken) for seen in verdicts)
    refused = sum(bool(seen.refused) for seen in verdicts)
    rest = f", refuses {refused}" if refused else ""
    if broken:
        print(f"{found.name} breaks promises in {broken} of {len(verdicts)} miniatures{rest}")
    elif refused == len(verdicts):
        print(f"{found.name} refuses {refused} of {len(verdicts)} miniatures, so nothing was checked: {ACCEPTED}")
    else:
        print(f"{found.name} keeps every promise in {len(verdicts) - refused} of {len(verdicts)} miniatures{rest}")
    return 0 if refused < len(verdicts) and not broken else 1


def broken_promises(method: Method, cell: Cell, compares: bool = True) -> list[str]:
    """One line for each promise that the method breaks in this cell. A refusal counts as one. `compares`: as in `verdict`."""
    seen = verdict(method, cell, compares)
    return seen.broken + [f"refused: {seen.refused}"] * bool(seen.refused)


def verdict(method: Method, cell: Cell, compares: bool = True) -> Verdict:
    """Run the method in this cell, at the settings that it declares and the cell does not have.

    In one cell of each architecture, if `compares`, also count every step's FLOPs and compare the run with its plan and with a
    second run. Raises UsageError for settings that are wrong.
    """
    cell, compares = cell.at(method.miniature), compares and cell.plain
    seen, source = Verdict(cell), copy.deepcopy(_source(cell))
    run = Run(method, cell, source, Sparing(counts=compares), compares)
    seen.phases = [str(phase.name) for phase in run.trainer.outcome.phases]
    seen.changes = [phase.output_change for phase in run.trainer.outcome.phases if phase.output_change is not None]
    seen.refused, seen.warnings = run.refusal, run.watcher.warnings + run.steps.warnings
    if seen.refused:
        return seen
    seen.broken = run.broken()
    if seen.broken or not compares:
        return seen
    seen.broken = run.against(Run(method, cell, source, Sparing(counts=False), compares))
    try:
        seen.broken += run.against_plan(plan(cell.experiment, Found("it", method, ""), VOCABULARY, limits=LIMITS))
    except UsageError as error:
        seen.warnings.append(str(error))
    return seen


def card_warnings(method: Method) -> list[str]:
    """What is missing in the method's description: a first sentence, a URL of the paper."""
    cls = type(method)
    card = (inspect.getdoc(cls) or "").partition("\n")[0] if cls.__doc__ else ""
    warnings = [] if card.endswith(".") else [f"the docstring of {cls.__name__} should begin with a sentence, on one line"]
    if not str(getattr(cls, "paper", "")).startswith(("https://", "http://")):
        warnings.append(f"{cls.__name__}.paper should be a URL")
    return warnings


@cache
def _source(cell: Cell) -> nn.Module:
    """A small model whose weights all differ from their initial values, as after training."""
    torch.manual_seed(SEED + 1)
    source = architectures.get(cell.architecture).build(cell.experiment.sizes("source", VOCABULARY))
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    return source.requires_grad_(False).eval()
