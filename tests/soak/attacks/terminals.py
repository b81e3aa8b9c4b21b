"""Narrow and dumb terminals, narrow encodings, and streams that are closed."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from functools import partial
from threading import Thread

from tests.soak.attempt import UNDISTURBED, Attempt, Said, attack

SCRATCH = ("--methods", "scratch")
PLAIN = {
    "TERM": "dumb", "NO_COLOR": "1", "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "1",
}  # fmt: skip


def on_a_terminal(environment: dict[str, str]) -> None:
    """Have stdout and stderr of this process be a terminal, with another environment. What is shown there is not read."""
    os.environ |= environment
    reader, writer = pty.openpty()
    Thread(target=_read_all, args=[reader], daemon=True).start()
    for number in 1, 2:
        os.dup2(writer, number)


def _read_all(terminal: int) -> None:
    while os.read(terminal, 4096):
        pass


def close(*numbers: int) -> None:
    """Close streams of this process, as a shell's `>&-` does."""
    for number in numbers:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


@attack("a terminal of one column", UNDISTURBED)
def one_column(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(*SCRATCH, before=partial(on_a_terminal, {"COLUMNS": "1", "LINES": "1"})), *SCRATCH)


@attack("a terminal of 20 columns that can move no cursor (TERM=dumb, NO_COLOR)", UNDISTURBED)
def dumb_terminal(attempt: Attempt) -> str:
    narrow = {"COLUMNS": "20", "TERM": "dumb", "NO_COLOR": "1"}
    return attempt.finished(attempt.run(*SCRATCH, before=partial(on_a_terminal, narrow)), *SCRATCH)


@attack("a process of its own with LANG=C, ASCII alone on both streams, TERM=dumb and COLUMNS=1", UNDISTURBED)
def ascii_alone(attempt: Attempt) -> str:
    command = [sys.executable, "-m", "growbench", "run", str(attempt.experiment), *SCRATCH, "--results", str(attempt.results)]
    environment = {**os.environ, **PLAIN, "GROWBENCH_CACHE": str(attempt.environment["GROWBENCH_CACHE"])}
    ended = subprocess.run(command, env=environment, capture_output=True)
    said = Said(ended.returncode, ended.stdout.decode("ascii"), ended.stderr.decode("ascii"))
    return attempt.finished(said, *SCRATCH)


@attack("stdin is closed", UNDISTURBED)
def stdin_closed(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(*SCRATCH, before=partial(close, 0)), *SCRATCH)


@attack("stdout is closed from the start", UNDISTURBED)
def stdout_closed(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(*SCRATCH, before=partial(close, 1)), *SCRATCH)


@attack("stdin, stdout and stderr are closed from the start", UNDISTURBED)
def all_closed(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(*SCRATCH, before=partial(close, 0, 1, 2)), *SCRATCH)
