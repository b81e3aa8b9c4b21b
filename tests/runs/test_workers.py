"""Several runs at once: what workers give back, how they end, and that results do not depend on their number."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from threading import Thread

import pytest

from growbench import cli, display
from growbench.config.loading import load
from growbench.display import Evaluated, Moment, Overall
from growbench.errors import Interrupted, UsageError
from growbench.runs.workers import Crew, Do, Pool, Task, Tell
from growbench.tools import at_once, stages
from tests import processes  # noqa: F401 - says what the server imports


@pytest.fixture(autouse=True, scope="module")
def server() -> None:
    forkserver.ensure_running()  # the one of tests, which has imported what they need


def begin(tell: Tell, folder: Path) -> Do:
    """What a worker of these tests does with the name of a task."""

    def do(what: str) -> bool:
        (folder / what).write_text(str(os.getpid()))
        if what == "die":
            os._exit(3)
        if what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "refuse":
            raise UsageError("not like this")
        while what == "sleep":
            time.sleep(60)
        if what == "mutter":
            os.write(2, b"no end of line")
        if what == "tell":
            tell(Moment("tell", "train", 10, 5, 0, Evaluated(1.5, "", 2e6)))
        return what != "fail"

    return do


def pool(folder: Path, *tasks: Task, count: int = 2) -> Pool:
    return Pool(Crew(count, 1, begin, (folder,)), tasks, Overall({run: 10 for task in tasks for run in task.runs}))


def task(what: str, needs: str = "") -> Task:
    return Task(what, what, [what], needs)


def test_every_task_is_done_by_as_many_processes_as_were_asked_for(tmp_path: Path) -> None:
    assert pool(tmp_path, *(task(f"task-{number}") for number in range(6))).run()
    workers = {file.read_text() for file in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 6 and 1 <= len(workers) <= 2 and str(os.getpid()) not in workers


def test_a_failure_or_a_death_ends_no_other_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs it is not begun. One worker at a time, so that another must take the dead one's place."""
    tasks = task("fail"), task("needs-it", needs="fail"), task("die"), task("stop"), task("after")
    assert not pool(tmp_path, *tasks, count=1).run()
    assert {file.name for file in tmp_path.iterdir()} == {"fail", "die", "stop", "after"}
    assert capsys.readouterr().err.splitlines() == [
        "needs-it           needs fail, whose training failed",
        "die                failed: its process ended by itself, with exit code 3 before its runs were finished",
        "stop               failed: its process was interrupted before its runs were finished",
    ]


def test_a_refusal_ends_the_others_and_comes_back(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not like this"):
        pool(tmp_path, task("sleep"), task("refuse"), task("never")).run()
    assert not (tmp_path / "never").exists()


@pytest.fixture
def interrupted_once(tmp_path: Path) -> Iterator[None]:
    """SIGINT to this process, once a worker has begun to sleep."""

    def send() -> None:
        while not (tmp_path / "sleep").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=send)
    thread.start()
    yield
    thread.join()


@pytest.mark.usefixtures("interrupted_once")
def test_an_interruption_is_passed_on_and_begins_nothing_more(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        pool(tmp_path, task("sleep"), task("never"), count=1).run()
    assert not (tmp_path / "never").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "sleep").read_text()), 0)


def test_what_several_processes_say_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    overall = Overall({})
    for text in "source-seed0 is done", "scratch-seed0 is done", "source-seed0 is done":
        overall.say(text)
    assert capsys.readouterr().err.splitlines() == ["source-seed0 is done", "scratch-seed0 is done"]


def test_what_a_worker_says_last_is_printed_even_without_an_end_of_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pool(tmp_path, task("mutter")).run()
    assert capsys.readouterr().err == "no end of line\n"


def test_the_time_left_leaves_out_the_start_of_the_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the steps in 60 seconds, 100 seconds after the beginning: 60 seconds are left."""
    overall = Overall({"run": 10})
    for now, done in (100.0, 0), (160.0, 5):
        monkeypatch.setattr(display.time, "perf_counter", lambda: now)  # noqa: B023
        overall.update(Moment("run", "train", 10, done, 0, Evaluated(1.5, "", 2e6)))
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" - left") and second.endswith(" 1:00 left")


@pytest.mark.parametrize(("workers", "threads", "few"), [(2, 1, False), (1, 2, False), (3, 1, True), (2, 2, True)])
def test_more_workers_than_cores_are_said(workers: int, threads: int, few: bool) -> None:
    assert ("on 2 cores only" in at_once.division(9, workers, threads, cores=2)) == few


def test_progress_is_one_line_for_each_evaluation_with_the_whole_requests_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pool(tmp_path, task("first"), task("tell", needs="first")).run()
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("tell               train            step      5/10     loss   1.5000") and "2.00 MFLOP  1/2 runs" in line
    )


def test_results_do_not_depend_on_workers_and_their_seconds_are_marked(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many threads, bit for bit. A plugin, in a process of its own, finds the source that the others have trained."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from growbench.method import Method, Phase\n\n\nclass Mine(Method):\n    '''Mine.'''\n\n    paper = ''\n\n"
        "    def phases(self, task):\n        task.read(task.source)\n        yield Phase(model=task.build())\n"
    )
    curves = []
    for workers in "1", "2":
        given = ["run", miniature, "--methods", "./mine.py", "--seeds", "0,1", "--set", "train.steps=3", "--results", workers]
        options = cli.parser().parse_args([*map(str, given), "--workers", workers])
        assert stages.train(options, ["scratch", "./mine.py"], load(str(miniature), options.set))
        records = {path.parent.name: json.loads(path.read_text()) for path in Path(workers).glob("miniature/*/run.json")}
        assert sorted(records) == sorted(f"{name}-seed{seed}" for name in ("mine", "scratch", "source") for seed in (0, 1))
        assert {record["hardware"]["at_once"] for record in records.values()} == {int(workers)}
        rows = {run: Path(workers, "miniature", run, "curve.jsonl").read_text().splitlines() for run in records}
        curves.append({run: [json.loads(row)["val_loss"] for row in of] for run, of in rows.items()})
    assert curves[0] == curves[1]
