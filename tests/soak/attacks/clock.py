"""Clocks that jump, and files of the future."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

from tests.soak.attacks.signals import send
from tests.soak.attempt import RESUMES, UNDISTURBED, Attempt, at_evaluation, attack

YEAR = 365.25 * 24 * 3600  # seconds


ahead = [0.0]  # seconds, of the clock of this process


def set_clock(seconds: float) -> None:
    ahead[0] = seconds


def clock_jumps(seconds: float, evaluation: int = 0) -> None:
    """Have the clock of this process show another time, from so many evaluations on. Time that only passes is not changed."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + ahead[0]  # type: ignore[assignment]
    time.time_ns = lambda: now_ns() + int(ahead[0] * 1e9)  # type: ignore[assignment]
    if evaluation:
        at_evaluation(evaluation, partial(set_clock, seconds))
    else:
        set_clock(seconds)


@attack("the clock is set back by a year in mid-run", UNDISTURBED)
def clock_back(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(before=partial(clock_jumps, -YEAR, 3)))


@attack("the clock is set forward by a year in mid-run", UNDISTURBED)
def clock_forward(attempt: Attempt) -> str:
    return attempt.finished(attempt.run(before=partial(clock_jumps, YEAR, 3)))


@attack("a run is interrupted, its files are dated a year ahead, and the clock is a year behind when it resumes", RESUMES)
def files_of_the_future(attempt: Attempt) -> str:
    first = attempt.run(before=partial(at_evaluation, 3, partial(send, signal.SIGINT)))
    for path in attempt.folder.rglob("*"):
        os.utime(path, (time.time() + YEAR, time.time() + YEAR))
    assert first.code == 130, first
    return f"exit code 130; again: {attempt.finished(attempt.run(before=partial(clock_jumps, -YEAR)))}"
