"""The card of an experiment: what is grown into what, on which data, how it is trained, and what a paper says about it."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from growbench.config import loading
from growbench.config.schema import Experiment, ModelConfig, Published
from growbench.formatting import percent, settings
from growbench.tools.listing import COLUMNS, duration

DERIVED = ("configuration", "vocabulary", "positions", "patch")  # of a model's sizes: they follow from data and checkpoint


def card(name: str) -> str:
    """The card of a shipped experiment, or of a TOML file. Raises UsageError as `loading.load` does."""
    experiment = loading.load(name)
    lines = {
        "takes": duration(loading.available().get(name, Path(name))),
        "source": f"{experiment.source_architecture}: {_source(experiment)}".removeprefix(": "),
        "target": f"{experiment.architecture}: {_model(experiment.target)}",
        "data": settings(_own(experiment.data)),
        "training": settings(_own(experiment.train)),
        "machine": settings(_own(experiment.machine)) if _own(experiment.machine) else "",
        **{f"methods.{method}": settings(own) for method, own in experiment.methods.items()},
        **{f"published {method}": _saving(each) for method, each in experiment.published.items()},
        "plan": f"growbench run {name} --dry-run",
        "run": f"growbench run {name}",
    }
    margin = 4 + max(map(len, lines))
    shown = [_wrapped(f"  {key:<{margin - 2}}", line, margin) for key, line in lines.items() if line]
    return "\n".join([experiment.name, *textwrap.wrap(experiment.title, COLUMNS - 2, initial_indent="  "), *shown])


def _source(experiment: Experiment) -> str:
    if pretrained := experiment.pretrained:
        known = settings({key: value for key, value in _own(pretrained).items() if key != "stated"})
        return f"{known}; {_model(experiment.source)}" if pretrained.stated else known
    trained, usual = (dataclasses.asdict(each) for each in (experiment.source_train, experiment.train))
    other = {key: value for key, value in trained.items() if value != usual[key]}
    return _model(experiment.source) + (f"; trained with {settings(other)}" if other else "")


def _model(sizes: ModelConfig) -> str:
    return settings({key: value for key, value in _own(sizes).items() if key not in DERIVED})


def _own(section: Any) -> dict[str, Any]:
    """The fields of a section that are not at their defaults."""
    return {f.name: value for f in dataclasses.fields(section) if (value := getattr(section, f.name)) != f.default}


def _saving(published: Published) -> str:
    stated = {"of FLOPs": published.flops, "of time": published.seconds}
    return ", ".join(f"{percent(value / 100)} {what}" for what, value in stated.items() if value is not None)


def _wrapped(first: str, line: str, margin: int) -> str:
    """The line behind `first`, with a name and its value on one line."""
    whole = line.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    filled = textwrap.fill(whole, COLUMNS, initial_indent=first, subsequent_indent=" " * margin, break_on_hyphens=False)
    return filled.replace("\N{NO-BREAK SPACE}", " ")
