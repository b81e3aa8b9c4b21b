"""One command a run: `growbench jobs`, `run --only`, and job arrays by submitit."""

from __future__ import annotations

import json
import random
import re
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growbench.config import loading
from growbench.errors import UsageError
from growbench.planning.budgets import Budgets
from growbench.tools import shares, slurm
from growbench.tools.job_list import Command, JobList
from tests.processes import answer

REQUEST = ("--methods", "mid=depth_map", "--set", "mid.map=middle", "--protocol", "ladder", "--budgets", "0.5,1")


def curves(folder: Path) -> dict[str, list[dict[str, object]]]:
    """Every run's curve without times, by its folder's name."""
    rows = {path.parent.name: map(json.loads, path.read_text().splitlines()) for path in folder.glob("*/curve.jsonl")}
    return {name: [{key: value for key, value in row.items() if key != "seconds"} for row in each] for name, each in rows.items()}


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("growbench run")]


def test_the_commands_together_are_the_whole_run(miniature: Path, tmp_path: Path) -> None:
    """In any order; each trains its own runs and no other, and none trains anything when it is given again."""
    request = *REQUEST, "--set", "train.steps=6"
    whole = answer("run", miniature, *request, "--results", tmp_path / "whole")
    assert whole.code == 0, whole.err
    parts = tmp_path / "parts"
    listed = answer("jobs", miniature, *request, "--results", parts, "--throughput", "1e9")
    assert listed.code == 0, listed.err
    made = commands(listed.out)
    random.Random(0).shuffle(made)
    done: set[str] = set()
    for arguments in made:
        said = answer(*arguments)
        assert said.code == 0 and f"growbench report {parts / 'miniature'}" in said.out, said.err
        new = set(curves(parts / "miniature")) - done
        assert new - {"source-seed0"} == {*arguments[arguments.index("--only") + 1].split(",")} - {"source-seed0"}
        done |= new
    assert curves(parts / "miniature") == curves(tmp_path / "whole" / "miniature")
    times = {path: path.stat().st_mtime_ns for path in parts.rglob("run.json")}
    assert answer(*made[0]).code == 0
    assert times == {path: path.stat().st_mtime_ns for path in parts.rglob("run.json")}
    last = listed.out.splitlines()[-1]
    assert answer(*shlex.split(last)[1:]).code == 0 and (parts / "miniature" / "report" / "index.html").is_file()


def test_times_are_the_dry_runs(miniature: Path, tmp_path: Path) -> None:
    """FLOPs by the speed, those that a branch shares with its trunk once."""
    listed = answer("jobs", miniature, *REQUEST, "--throughput", "1e9").out
    times = re.findall(r"  # ([\d.]+) (s|min|h)$", listed, re.MULTILINE)
    seconds = sum(float(time) * {"s": 1, "min": 60, "h": 3600}[unit] for time, unit in times)
    planned = answer("run", miniature, *REQUEST, "--dry-run", "--throughput", "1e9").out
    (spent,) = re.findall(r"in all .*?([\d.]+) ([MG])FLOP", planned)
    assert seconds == pytest.approx(float(spent[0]) * {"M": 1e6, "G": 1e9}[spent[1]] / 1e9, rel=0.02)


@given(
    st.integers(1, 7), st.integers(1, 4), st.integers(1, 9), st.sampled_from([(1.0,), (0.5, 1.0), (0.4, 0.7, 1.0)]), st.booleans()
)
def test_parts_share_out_all_runs(methods: int, seeds: int, count: int, budgets: tuple[float, ...], wsd: bool) -> None:
    """Each run is in one part; runs that branch off one another are together; parts differ by one unit at most."""
    experiment = loading.load("gpt2-mini" if wsd else "gpt2-tiny")
    assert (experiment.train.schedule == "wsd") == wsd
    names = ["scratch", *(f"m{number}" for number in range(1, methods))]
    request = shares.units(experiment, names, range(seeds), Budgets(budgets))
    parts = [shares.selected(f"{number}/{count}", request, [], False) for number in range(1, count + 1)]
    assert sum(map(len, parts)) == len(frozenset().union(*parts)) == methods * seeds * len(budgets)
    units = [sum(any(run in part for run in unit.runs) for unit in request) for part in parts]
    assert max(units) - min(units) <= 1
    assert all(len({run in part for run in unit.runs}) == 1 for unit in request for part in parts)
    assert all(len(unit.runs) == (len(budgets) if wsd else 1) for unit in request)


@pytest.mark.parametrize(
    ("only", "more", "said"),
    [
        ("0/4", (), "--only 0/4: the part must be from 1 to 4"),
        ("5/4", (), "--only 5/4: the part must be from 1 to 4"),
        ("ligo-seed0", (), "--only ligo-seed0: is no run of this request: "),
        ("stackbert-seed1", (), "is no run of this request: did you mean stackbert-seed0? known: scratch-seed0, source-seed0,"),
        (",", (), "--only ',': must be a part, such as 1/4, or names of runs, such as stackbert-seed0"),
        ("1/2", ("--protocol", "equal-cost"), "not with --protocol equal-cost, whose budgets follow from what methods cost"),
        ("1/2", ("--dry-run",), "--only: not with --dry-run"),
        ("scratch-seed0-budget0.5", (), "is no run of this request"),
    ],
)
def test_what_cannot_be_selected_is_refused(only: str, more: tuple[str, ...], said: str, miniature: Path, tmp_path: Path) -> None:
    found = answer("run", miniature, "--methods", "stackbert", "--only", only, *more, "--results", tmp_path / "results")
    assert found.code == 2 and said in found.err and len(found.err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_scratch_at_the_cost_of_a_method_is_a_command_of_its_own(miniature: Path, tmp_path: Path) -> None:
    asked = ("--methods", "bert2bert", "--protocol", "equal-cost", "--results", tmp_path)
    made = commands(answer("jobs", miniature, *asked, "--throughput", "1e9").out)
    (dearer,) = (arguments for arguments in made if any("scratch-seed0-budget" in word for word in arguments))
    assert answer(*dearer).code == 0
    assert [path.parent.name for path in tmp_path.rglob("run.json")] == [dearer[dearer.index("--only") + 1]]


def test_an_array_of_jobs_is_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By submitit's executor for this machine: the sources, and the runs."""
    import submitit

    handed: list[submitit.Job[None]] = []
    array = slurm._array
    monkeypatch.setattr(slurm, "_array", lambda *arguments: handed.extend(array(*arguments)) or handed[-len(arguments[1]) :])
    monkeypatch.chdir(Path(__file__).parents[2])
    runs = [Command(("--version",), 0.1), Command(("show", "absent"), None)]
    jobs = JobList([Command(("list", "methods"), 0.1)], runs, 1e9, "")
    said = list(slurm.submit(jobs, {"cluster": "local", "timeout_min": "2"}, tmp_path / "jobs"))
    assert [line.partition(",")[0] for line in said] == ["sources: 1 job", "runs: 2 jobs"]
    assert [job.exception() is None for job in handed] == [True, True, False]
    assert "Copy neurons and heads" in (handed[0].stdout() or "") and "unknown name 'absent'" in (handed[2].stderr() or "")


def test_an_interrupted_job_is_queued_with_the_same_command() -> None:
    work = slurm.Work(("run", "gpt2-tiny", "--only", "ligo-seed0"))
    again = work.checkpoint()
    assert again.function == work and again.args == () and again.kwargs == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cluster": "absent"}, "any executor named absent"),
        ({"cluster": "local", "timeout_min": "long"}, "'timeout_min'|\"timeout_min\" expected type"),
        ({"cluster": "slurm"}, "srun"),
    ],
)
def test_what_cannot_be_submitted_is_refused(settings: dict[str, str], said: str, tmp_path: Path) -> None:
    jobs = JobList([], [Command(("--version",), None)], 1e9, "")
    with pytest.raises(UsageError, match=said) as refused:
        list(slurm.submit(jobs, settings, tmp_path))
    assert "\n" not in str(refused.value)


def test_submitit_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"needs submitit: pip install 'growbench\[slurm\]'"):
        list(slurm.submit(JobList([], [], 1e9, ""), {}, tmp_path))
