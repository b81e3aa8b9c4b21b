"""Committed runs: each is made by a command of results/README.md, and by today's code unless that page says otherwise."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from growbench import arguments, registry
from growbench.analysis.standing import Standing
from growbench.config import loading
from growbench.config.schema import Experiment
from growbench.data import Data
from growbench.planning.budgets import LADDER, Budgets
from growbench.runs import store, tracks
from growbench.runs.jobs import Job, Setting
from growbench.runs.store import Run
from growbench.tools import stages
from growbench.training.parallel import Parallel

RESULTS = Path(__file__).parents[1] / "results"
PAGE = (RESULTS / "README.md").read_text(encoding="utf-8")
EARLIER = "\n## Made by earlier code\n"
TRACKS = RESULTS / tracks.FOLDER  # entries may hold runs of people's own methods
NOT_MADE_HERE = {RESULTS / "aa_test", TRACKS}  # the A/A test leaves runs beside its tables
FOLDERS = sorted(
    {
        path.parents[1].relative_to(RESULTS).as_posix()
        for path in RESULTS.rglob("run.json")
        if NOT_MADE_HERE.isdisjoint(path.parents)
    }
)


@dataclass(frozen=True)
class Command:
    """A `growbench run` of the page."""

    options: Any
    experiment: Experiment

    @property
    def folder(self) -> str:
        return (Path(self.options.results) / self.options.experiment).relative_to("results").as_posix()

    @cached_property
    def methods(self) -> set[str]:
        asked = registry.named(stages.specs_of(self.options.methods, self.experiment), {})
        return {registry.SCRATCH, registry.SOURCE, *asked}

    def makes(self, run: Run) -> bool:
        """Whether a run is one of those that it trains, whatever the code and the configuration."""
        budgets = (
            Budgets.ladder(self.experiment, self.options.budgets or LADDER) if self.options.protocol == "ladder" else Budgets()
        )
        method = run.record.method
        shares = [1.0] if method == registry.SOURCE else budgets.of(method)
        known = method in self.methods
        return known and run.record.seed in self.options.seeds and run.record.budget_share in shares

    def holds(self, run: Run) -> bool:
        """Whether it takes the run for done, on data of the run's fingerprint."""
        name, which = run.record.method, "source" if run.record.method == registry.SOURCE else "target"
        spec = f"{name}={run.record.variant_of}" if run.record.variant_of else "scratch" if which == "source" else name
        found = registry.get(spec, registry.options_of(name, spec, self.experiment.methods))
        job = Job(replace(found, name=name), run.record.seed, run.record.budget_share, which)  # type: ignore[arg-type]
        data = cast(Data, SimpleNamespace(fingerprint=run.record.config.experiment["fingerprint"]))
        setting = Setting(self.experiment, run.folder.parent, Parallel(torch.device("cpu")))
        return run.finished and setting.holds(job, data, run)


@cache
def commands() -> dict[str, Command]:
    """By the folder that each fills."""
    lines = re.findall(r"^growbench (run .*)$", PAGE, re.MULTILINE)
    asked = [arguments.parser().parse_args(shlex.split(line)) for line in lines]
    found = [Command(options, loading.load(options.experiment, options.set)) for options in asked]
    return {command.folder: command for command in found}


def made_by_earlier_code() -> set[str]:
    return set(re.findall(r"^\| `(.*?)` \|", PAGE.partition(EARLIER)[2], re.MULTILINE))


def test_the_page_names_every_folder() -> None:
    assert FOLDERS and set(FOLDERS) == set(commands()) and made_by_earlier_code() <= set(FOLDERS)
    tops = {path.name for path in RESULTS.iterdir() if path.is_dir()}
    assert tops == set(re.findall(r"^`(\w+)`: ", PAGE, re.MULTILINE))


def test_the_pages_of_earlier_code_say_so() -> None:
    pages = {folder: (RESULTS / folder / "report" / "index.html").read_text(encoding="utf-8") for folder in FOLDERS}
    assert {folder for folder, page in pages.items() if "Made by earlier code" in page} == made_by_earlier_code()


@pytest.mark.parametrize("folder", FOLDERS)
def test_committed_runs_are_made_by_todays_code_or_said_not_to_be(folder: str) -> None:
    """No folder stays listed as of earlier code once all its runs are of today's."""
    command, runs = commands()[folder], store.load_all(RESULTS / folder)
    assert [run.name for run in runs if not command.makes(run)] == []
    stale = [run.name for run in runs if not command.holds(run)]
    assert bool(stale) == (folder in made_by_earlier_code()), stale
    assert len({run.record.config.experiment["fingerprint"] for run in runs}) == 1


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in TRACKS.glob(f"*/{tracks.FILE}")), ids=lambda folder: folder.name
)
def test_committed_tracks_are_as_they_were_entered(folder: Path) -> None:
    """Their chains, their runs and their target; and the command of each entry is one that this growbench takes."""
    standing = Standing.of(tracks.load(folder))
    assert set(standing.comparison.methods) == {registry.SCRATCH, *standing.track.current}
    for entry in standing.track.current.values():
        options = arguments.parser().parse_args(shlex.split(entry.command)[1:])
        assert (
            loading.load(options.experiment, options.set).train.steps == standing.track.definition.configuration["train"]["steps"]
        )
