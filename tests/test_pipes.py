"""Whoever reads a command's output may stop reading, as `| head` does: the work is finished all the same."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from growbench import cli, commands
from growbench.console import lasting_streams, say
from tests.processes import start
from tests.report.results import write_results


def exit_code(*arguments: object, messages: int = 0) -> int | None:
    """Of a command in a process of its own. Both pipes are closed by their readers, after so many lines of stderr."""
    process, out, err = start([str(argument) for argument in arguments])
    for _ in range(messages):
        assert " left" in err.readline()
    out.close()
    err.close()
    process.join(timeout=300)
    return process.exitcode


def test_a_run_goes_on_when_nobody_reads(miniature: Path, tmp_path: Path) -> None:
    """Every method is trained, and the report is made."""
    results = tmp_path / "results"
    assert exit_code("run", miniature, "--methods", "stackbert", "--results", results, messages=1) == 0
    done = results / "miniature"
    assert {path.parent.name for path in done.glob("*/run.json")} == {"scratch-seed0", "stackbert-seed0"}
    assert all('"finished"' in path.read_text(encoding="utf-8") for path in done.glob("*/run.json"))
    assert (done / "report" / "index.html").is_file()


def test_a_report_is_made_when_nobody_reads(tmp_path: Path) -> None:
    assert exit_code("report", write_results(tmp_path / "one", 2)) == 0
    assert (tmp_path / "one" / "report" / "index.html").is_file()


def test_a_wrong_request_keeps_its_exit_code(tmp_path: Path) -> None:
    assert exit_code("report", tmp_path / "absent") == 2


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Puts a function in the place of `growbench list`."""
    return lambda function: monkeypatch.setattr(commands, "list_known", lambda options: function())


def test_the_exit_code_is_the_works_and_not_the_readers(
    command: Callable[[Callable[[], int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both streams are closed while it works: it ends as it would have, and neither raises later, when Python flushes them."""

    def work() -> int:
        for _ in range(3):
            print("a result", flush=True)
            say("a message")
        return 1

    readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)
    for reader in readers:
        os.close(reader)
    with os.fdopen(writers[0], "w", encoding="utf-8") as out, os.fdopen(writers[1], "w", encoding="utf-8") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        command(work)
        assert cli.main(["list"]) == 1
        assert (sys.stdout, sys.stderr) == (out, err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_output_that_cannot_be_written_is_said(
    command: Callable[[Callable[[], int]], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        print("a result")
        return 0

    command(work)
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == "growbench: cannot write to stdout: No space left on device\n"


def test_streams_that_are_closed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by `growbench run >&- 2>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with lasting_streams() as out:
        print("a result")
        say("a message")
        assert out.lost is None


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_streams():
        print("results/\udcff")
    assert stream.buffer.getvalue() == b"results/\\udcff\n"
