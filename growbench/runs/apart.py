"""Calls in processes of their own: what a method does to its process stays there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any, TextIO, TypeVar

from growbench.console import lasting_streams
from growbench.data import processes
from growbench.elapsed import Part, elapsed
from growbench.errors import FailedAlone, Interrupted, UsageError
from growbench.runs.signals import raising

T = TypeVar("T")
LIBRARIES = ("torch", "transformers.modeling_utils", "timm.data")  # imported once, by the server that the processes fork from
GRACE = 5.0  # seconds from a second signal until a process is killed


class Died(Exception):
    """A process ended before its function returned. Its text says how."""


class Stream:
    """A file descriptor that is handed to another process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(passed: Any) -> Stream:
    return Stream(passed.detach())


@dataclass(frozen=True)
class Surroundings:
    """What a new process takes over from the one that starts it. The rest is as in a process that has done nothing yet."""

    streams: Mapping[int, Stream]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @classmethod
    def here(cls) -> Surroundings:
        streams = {number: _descriptor(stream) for number, stream in ((1, sys.stdout), (2, sys.stderr))}
        return cls({number: Stream(descriptor) for number, descriptor in streams.items() if descriptor is not None})

    def take(self) -> None:
        for number, stream in self.streams.items():
            os.dup2(stream.descriptor, number)
        os.environ.clear()
        os.environ.update(self.environment)


def _descriptor(stream: TextIO) -> int | None:
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):  # not a file, as in a notebook
        return None


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What `function`, one of a module, returns when it is called in a process that has imported no method.

    An interruption is passed on to it, and it ends when this process ends. Raises UsageError, FailedAlone and Interrupted as the
    function does, and Died if its process ended in another way.
    """
    context = processes.context(*LIBRARIES)
    answer, sending = context.Pipe(duplex=False)
    process = context.Process(target=_carry_out, args=(sending, Surroundings.here(), function, arguments))
    process.start()
    sending.close()
    asked = 0
    with elapsed.part(Part.WAITING):
        while True:
            try:
                if not wait([answer, process.sentinel], timeout=GRACE if asked > 1 else None):
                    process.kill()
                break
            except Interrupted:
                asked += 1
                if process.pid:
                    os.kill(process.pid, signal.SIGTERM)
        try:
            error, value, parts = answer.recv()
        except EOFError:
            error, value, parts = Died, None, {}
        process.join()
    elapsed.add(parts)
    if error is None:
        return value  # type: ignore[no-any-return]
    if error is not Died:
        raise error(value)
    if asked:
        raise Interrupted
    raise Died(how_it_ended(process.exitcode or 0))


def how_it_ended(code: int) -> str:
    """A process with this exit code, in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself, with exit code {code}"


def _carry_out(sending: Connection, surroundings: Surroundings, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    elapsed.begin()
    surroundings.take()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the server blocks it
    Thread(target=processes.end_with_parent, daemon=True).start()
    with lasting_streams(), raising():
        try:
            answer: tuple[Any, Any] = None, function(*arguments)
        except (UsageError, FailedAlone, Interrupted) as error:
            kind = next(each for each in (UsageError, FailedAlone, Interrupted) if isinstance(error, each))
            answer = kind, str(error)  # as growbench's own class: that of a plugin could be read only by importing it
        sending.send((*answer, elapsed.parts()))
