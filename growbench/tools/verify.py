"""`growbench verify`: whether a grown checkpoint is whole, and what growth has kept of its source.

The two models are loaded one after the other, never both at once. The larger one in float32, and its gradient, must fit in memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growbench.architectures.library import Loaded
from growbench.architectures.new_parts import NewParts, gradients
from growbench.architectures.symmetry import symmetric
from growbench.errors import UsageError
from growbench.formatting import counted
from growbench.formatting import settings as listed
from growbench.runs import checkpoints
from growbench.runs.checkpoints import SAME, Checkpoint
from growbench.tools import probe
from growbench.tools.probe import Outputs, Probe
from growbench.tools.verify_report import Report, gradient_table, symmetry_table

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
ROUNDINGS = 2  # a function that is preserved may change by so much of what rounding alone changes: both models are rounded
EXACT = "exact"  # growbench.json of a grown model: its method preserves the function
SIZES = ("layers", "width", "heads", "key_value_heads", "ffn")  # that grow


@dataclass(frozen=True)
class Request:
    """What to verify."""

    grown: str  # a folder, or an id on the hub
    source: str | None  # None: the one that growbench.json of the grown model names, if it is there
    text: Path | None  # None: the English sample
    device: torch.device


class Broken(Exception):
    """What is wrong with the grown model, where nothing that follows can be examined."""


def verify(request: Request) -> str:
    """Print what is found. Returns the first thing that is wrong with the grown model; empty if nothing is.

    Raises UsageError if a checkpoint cannot be read, if its family is not known, or if the two are no source and its grown model.
    """
    grown = checkpoints.opened(request.grown, f"GROWN = {request.grown!r}")
    source = _source(request.source, grown)
    if source is not None:
        _refuse_unrelated(grown, source)
    report = Report()
    try:
        _Verification(request, grown, source, report).run()
    except Broken as broken:
        report.broken(str(broken))
    report.end()
    return report.wrong


def _source(asked: str | None, grown: Checkpoint) -> Checkpoint | None:
    if asked is not None:
        return checkpoints.opened(asked, f"SOURCE = {asked!r}")
    named = grown.card.get("grown", {}).get("from", {}).get("source")
    return checkpoints.opened(named, f"SOURCE = {named!r}") if named and Path(named).is_dir() else None


def _refuse_unrelated(grown: Checkpoint, source: Checkpoint) -> None:
    if grown.architecture is not source.architecture:
        raise UsageError(f"GROWN is of the family {grown.architecture.name}, SOURCE of {source.architecture.name}: must be the same")
    for key in SIZES:
        new, old = getattr(grown.sizes, key), getattr(source.sizes, key)
        if new < old:
            raise UsageError(f"GROWN has {key} = {new}, SOURCE {old}: a model only grows; the order is GROWN SOURCE")


@dataclass(frozen=True)
class _Verification:
    request: Request
    grown: Checkpoint
    source: Checkpoint | None
    report: Report

    def run(self) -> None:
        """Raises Broken."""
        report, grown, source = self.report, self.grown, self.source
        report.row("GROWN", f"{grown.name}: {_sizes(grown)}")
        if source is not None:
            report.row("SOURCE", f"{source.name}: {_sizes(source)}")
        report.row("method", _method(grown.card))
        dtype = self._dtype()
        loaded = self._loaded(dtype)
        self._structure(loaded)
        folders = [each.folder for each in (grown, source) if each is not None]
        tried = probe.of(grown.architecture, grown.sizes, folders, self.request.text)
        report.row("tried on", tried.what)
        own, exact = self._outputs(loaded.model, tried), None
        del loaded
        if source is not None:
            exact = self._function(source, tried, dtype, own)
        model = self._loaded(torch.float32).model.to(self.request.device)
        ...
