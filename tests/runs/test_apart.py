"""Calls in processes of their own: what comes back, what does not, and how they end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path
from threading import Thread

import pytest

from growbench.errors import Interrupted, UsageError
from growbench.runs import apart as module
from growbench.runs.apart import Died, apart
from growbench.runs.signals import TOGETHER, Interruption, raising
from tests import processes  # noqa: F401 - says what the server imports


@pytest.fixture(autouse=True, scope="module")
def server() -> None:
    forkserver.ensure_running()  # the one of tests, which has imported what they need


class Own(UsageError):
    """As a plugin may have."""


def double(number: int) -> int:
    print("out of a child")
    return 2 * number


def refuse() -> None:
    raise Own("not like this")


def leave(code: int) -> None:
    os._exit(code)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def surroundings() -> tuple[str | None, str]:
    return os.environ.get("ONE_MORE"), os.getcwd()


def sleep(started: Path) -> None:
    started.touch()
    time.sleep(60)


def sleep_whatever_comes(started: Path) -> None:
    started.touch()
    while True:
        with suppress(KeyboardInterrupt):
            time.sleep(60)


def test_what_a_function_returns_and_says_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert apart(double, 21) == 42
    assert capfd.readouterr().out == "out of a child\n"


def test_a_refusal_comes_back_as_growbenchs_own() -> None:
    """Its class could be read only by importing the plugin."""
    with pytest.raises(UsageError, match="not like this") as raised:
        apart(refuse)
    assert type(raised.value) is UsageError


def test_a_process_that_ends_by_itself_is_noticed() -> None:
    with pytest.raises(Died, match=r"^ended by itself, with exit code 0$"):
        apart(leave, 0)
    with pytest.raises(Died, match=r"^was ended by SIGKILL$"):
        apart(kill)


def test_a_process_has_the_environment_and_folder_of_the_one_that_starts_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Not those of the server."""
    monkeypatch.setenv("ONE_MORE", "7")
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)
    assert apart(surroundings) == ("7", str(folder))


@contextmanager
def signals(started: Path, number: int) -> Iterator[None]:
    """So many times SIGTERM to this process, once the other one has started."""

    def send() -> None:
        while not started.exists():
            time.sleep(0.01)
        for _ in range(number):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.1 * TOGETHER)

    thread = Thread(target=send)
    with raising():
        thread.start()
        yield
        thread.join()


def test_a_signal_is_passed_on(tmp_path: Path) -> None:
    with signals(tmp_path / "started", 1), pytest.raises(Interrupted):
        apart(sleep, tmp_path / "started")


def test_a_second_signal_ends_what_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.1)
    with signals(tmp_path / "started", 2), pytest.raises(Interrupted):
        apart(sleep_whatever_comes, tmp_path / "started")


def test_signals_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does, which reaches all processes and is passed on as well. A later one raises at once."""
    clock = iter([0.0, 0.0, 0.1, 1.0, 1.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    interruption = Interruption()
    interruption._ask(signal.SIGINT, None)
    interruption._ask(signal.SIGTERM, None)
    assert interruption()
    with pytest.raises(Interrupted):
        interruption._ask(signal.SIGINT, None)
