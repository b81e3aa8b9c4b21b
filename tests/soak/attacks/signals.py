"""Signals to a run and to all that it has started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

from tests.soak.attempt import RESUMES, UNDISTURBED, Attempt, at_evaluation, attack


def send(number: int) -> None:
    """To this process."""
    os.kill(os.getpid(), number)


def in_turn(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


def stop_for_a_second() -> None:
    """SIGSTOP to this process, and SIGCONT from another one a second later."""
    child = os.fork()
    if child == 0:
        time.sleep(1)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    os.waitpid(child, 0)


@attack("SIGTERM in mid-run", RESUMES)
def sigterm(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(at_evaluation, 3, partial(send, signal.SIGTERM))))


@attack("SIGHUP in mid-run, as when a terminal is closed", RESUMES)
def sighup(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(at_evaluation, 3, partial(send, signal.SIGHUP))))


@attack("SIGPIPE in mid-run", UNDISTURBED)
def sigpipe(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(before=partial(at_evaluation, 3, partial(send, signal.SIGPIPE))))


@attack("SIGSTOP in mid-run, and SIGCONT a second later", UNDISTURBED)
def stopped(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(before=partial(at_evaluation, 3, stop_for_a_second)))


@attack("SIGHUP in mid-run to a command that was started by nohup", UNDISTURBED)
def sighup_under_nohup(attempt: Attempt) -> str:
    signals = [partial(signal.signal, signal.SIGHUP, signal.SIG_IGN), partial(send, signal.SIGHUP)]
    return attempt.finished(attempt.run(before=partial(in_turn, signals[0], partial(at_evaluation, 3, signals[1]))))
