"""Folders that are moved, removed or replaced while growbench works, or are not folders."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from tests.soak.attempt import ENDS_OR_RESUMES, RESUMES, UNDISTURBED, Attempt, NotKept, at_evaluation, attack, brief, no_traceback

KEPT = "it ends without a traceback, and leaves what stands there"


def replace_by_link(folder: Path, target: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(target)


def in_removed_folder(folder: Path) -> None:
    """Work in a folder that is no longer there."""
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


@attack("the cache is removed in mid-run", UNDISTURBED)
def cache_removed(attempt: Attempt) -> str:
    attempt.environment["GROWBENCH_CACHE"] = str(attempt.folder / "cache")
    return attempt.finished(attempt.run(before=partial(at_evaluation, 3, partial(shutil.rmtree, attempt.folder / "cache"))))


@attack("the results folder is removed in mid-run", RESUMES)
def results_removed(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(at_evaluation, 3, partial(shutil.rmtree, attempt.results))))


@attack("the results folder is renamed in mid-run", RESUMES)
def results_renamed(attempt: Attempt) -> str:
    return attempt.resumes(
        attempt.run(before=partial(at_evaluation, 3, partial(os.rename, attempt.results, f"{attempt.results}2")))
    )


@attack("a run's folder is replaced by a link to nowhere in mid-run", RESUMES)
def run_dangling(attempt: Attempt) -> str:
    run = attempt.results / "miniature" / "scratch-seed0"
    said = attempt.run(before=partial(at_evaluation, 3, partial(replace_by_link, run, attempt.folder / "absent")))
    run.unlink()
    return attempt.resumes(said)


@attack("a run's folder is a link: to nowhere, to a file, to itself, to another folder with a file of the user's", KEPT)
def run_is_a_link(attempt: Attempt) -> str:
    run, own = attempt.results / "miniature" / "scratch-seed0", attempt.folder / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("years of work")
    run.parent.mkdir(parents=True)
    codes = []
    for target in attempt.folder / "absent", attempt.experiment, run, own:
        run.unlink(missing_ok=True)
        run.symlink_to(target)
        said = attempt.run("--methods", "scratch")
        no_traceback(said)
        codes.append(f"{said.code} ({brief(said)})")
    assert (own / "thesis.txt").read_text() == "years of work"
    return f"exit codes {', '.join(codes)}; the files that were there are kept"


@attack("files in place of folders: of results, of the experiment, of a run, of checkpoints, of locks, of the report", KEPT)
def files_for_folders(attempt: Attempt) -> str:
    experiment = attempt.results / "miniature"
    said = []
    run = experiment / "scratch-seed0"
    for place in attempt.results, experiment, run, run / "checkpoints", experiment / ".locks", experiment / "report":
        shutil.rmtree(attempt.results, ignore_errors=True)
        attempt.results.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("mine")
        ended = attempt.run("--methods", "scratch")
        no_traceback(ended)
        assert place.read_text() == "mine", f"{place.name} was replaced"
        if ended.code not in (1, 2) or not ended.lines():
            raise NotKept(f"{place.name}: exit code {ended.code}: {brief(ended)}")
        said.append(f"{place.name}: exit code {ended.code}")
    return "; ".join(said)


@attack("umask 777: what is made cannot be read by anybody but root", UNDISTURBED)
def umask(attempt: Attempt) -> str:
    return attempt.finished(attempt.run("--methods", "scratch", before=partial(os.umask, 0o777)), "--methods", "scratch")


@attack("a command in a working folder that has been removed", ENDS_OR_RESUMES)
def no_working_folder(attempt: Attempt) -> str:
    return attempt.ends_or_resumes(attempt.run(before=partial(in_removed_folder, attempt.folder / "gone")))


@attack("HOME is not set, nor any folder of caches", UNDISTURBED)
def no_home(attempt: Attempt) -> str:
    attempt.environment |= {"HOME": None, "XDG_CACHE_HOME": None}
    return attempt.finished(attempt.run())


@attack("two experiments whose names differ in upper and lower case", "each has its results")
def upper_and_lower_case(attempt: Attempt) -> str:
    first = attempt.run("--methods", "scratch")
    attempt.experiment = attempt.write("Miniature.toml")
    second = attempt.run("--methods", "scratch")
    names = sorted(path.name for path in attempt.results.iterdir())
    assert (first.code, second.code, names) == (0, 0, ["Miniature", "miniature"]), (first, second, names)
    return f"exit codes 0; folders {', '.join(names)}"
