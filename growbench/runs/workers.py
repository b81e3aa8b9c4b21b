"""Workers: processes that do the tasks of one request side by side, one task after the other each."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

from growbench.console import lasting_streams
from growbench.data import processes
from growbench.display import Moment, Overall
from growbench.elapsed import Part, elapsed
from growbench.errors import Interrupted, UsageError
from growbench.runs.apart import GRACE, LIBRARIES, Stream, Surroundings, how_it_ended
from growbench.runs.signals import Interruption, raising

POLL = 0.2  # seconds between two looks at whether the program was asked to stop
INTERRUPTED = 130  # exit code of a worker that a signal has ended, as of the command

Do = Callable[[Any], bool]  # does a task; False: it failed
Tell = Callable[[Any], object]  # sends a message to the process that started the worker


@dataclass(frozen=True)
class Task:
    """Work that one worker does, once the task that it needs has succeeded."""

    name: str  # of the run that messages name
    what: Any  # what the worker's function takes
    runs: Sequence[str]  # those that have ended when it has
    needs: str = ""


@dataclass(frozen=True)
class Crew:
    """How many workers there are, and what each is. `begin`, of a module, takes a Tell and `arguments` and gives a Do."""

    count: int
    threads: int  # of each
    begin: Callable[..., Do]
    arguments: tuple[Any, ...]


class Pool:
    """Does tasks by a crew. A task whose worker dies has failed; another worker does the others."""

    def __init__(self, crew: Crew, tasks: Sequence[Task], overall: Overall) -> None:
        self.crew, self.waiting, self.overall = crew, list(tasks), overall
        self.workers: list[_Worker] = []
        self.succeeded: dict[str, bool] = {}  # of tasks that have ended, by name
        self.refused: UsageError | None = None  # by a worker: the others are asked to stop
        self._signals, self._deadline = 0, 0.0

    def run(self) -> bool:
        """Do all tasks. False if one failed. Raises Interrupted, and UsageError as a worker did, once all workers have ended."""
        with _Asked() as asked, _lines() as said, elapsed.part(Part.WAITING):
            while True:
                stopping = max(asked.times, int(self.refused is not None))
                if not stopping:
                    self._hand_out(said.writing)
                self._dismiss()
                if not self.workers:
                    break
                self._stop(stopping)
                self._listen(said, bool(stopping))
            for line in [*said.read(), *said.last()]:
                self.overall.say(line)
        if self.refused:
            raise self.refused
        if asked():
            raise Interrupted
        return all(self.succeeded.values())

    def _hand_out(self, said: int) -> None:
        """Give tasks that can begin to workers that are free."""
        for task in list(self.waiting):
            if task.needs and not self.succeeded.get(task.needs, True):
                self.waiting.remove(task)
                self.overall.say(f"{task.name:<18} needs {task.needs}, whose training failed")
                self._end(task, False)
            elif not task.needs or task.needs in self.succeeded:
                worker = self._free(said)
                if worker is None:
                    return
                self.waiting.remove(task)
                worker.give(task)

    def _free(self, said: int) -> _Worker | None:
        for worker in self.workers:
            if worker.free:
                return worker
        if len(self.workers) == self.crew.count:
            return None
        self.workers.append(_Worker(self.crew, said))
        return self.workers[-1]

    def _dismiss(self) -> None:
        """End workers for which nothing is left."""
        if not self.waiting:
            for worker in self.workers:
                if worker.free:
                    worker.give(None)

    def _stop(self, asked: int) -> None:
        """Pass on that the program was asked to stop. Workers that do not after the second time are killed."""
        while self._signals < min(asked, 2):
            self._signals += 1
            self._deadline = time.monotonic() + GRACE
            for worker in self.workers:
                worker.signal(signal.SIGTERM)
        if self._signals > 1 and time.monotonic() > self._deadline:
            for worker in self.workers:
                worker.signal(signal.SIGKILL)

    def _listen(self, said: _Lines, stopping: bool) -> None:
        """Heed what the workers say, for a moment."""
        connections = [worker.connection for worker in self.workers if worker.speaks]
        wait([said.reading, *connections, *(worker.process.sentinel for worker in self.workers)], POLL)
        for line in said.read():
            self.overall.say(line)
        for worker in list(self.workers):
            dead = not worker.process.is_alive()  # asked first: what it said before is still there
            for message in worker.messages():
                self._heed(worker, message)
            if dead:
                self._bury(worker, stopping)

    def _heed(self, worker: _Worker, message: Any) -> None:
        if isinstance(message, Moment):
            self.overall.update(message)
            return
        if isinstance(message, dict):
            elapsed.add(message)
            return
        task, worker.task = worker.task, None
        if isinstance(message, UsageError):
            self.refused = self.refused or message
        elif task:
            self._end(task, message)

    def _bury(self, worker: _Worker, stopping: bool) -> None:
        self.workers.remove(worker)
        worker.process.join()
        if worker.task and not stopping:
            code = worker.process.exitcode or 0
            how = "was interrupted" if code == INTERRUPTED else how_it_ended(code)
            self.overall.say(f"{worker.task.name:<18} failed: its process {how} before its runs were finished")
            self._end(worker.task, False)

    def _end(self, task: Task, succeeded: bool) -> None:
        self.succeeded[task.name] = succeeded
        for run in task.runs:
            self.overall.end(run)


class _Worker:
    """A process, and the task that it does."""

    def __init__(self, crew: Crew, said: int) -> None:
        context = processes.context(*LIBRARIES)
        self.connection, other = context.Pipe()
        here, threads = Surroundings.here(), str(crew.threads)
        environment = {**here.environment, "OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
        there = Surroundings({**here.streams, 2: Stream(said)}, environment)
        self.process = context.Process(target=_work, args=(other, there, crew))
        self.process.start()
        other.close()
        self.task: Task | None = None
        self.dismissed = False
        self.speaks = True  # until its connection is closed

    def give(self, task: Task | None) -> None:
        """None: there are no more."""
        self.task, self.dismissed = task, task is None
        with suppress(OSError):  # it is dead, which is noticed elsewhere
            self.connection.send(task)

    def messages(self) -> Iterator[Any]:
        """Those that have come."""
        try:
            while self.speaks and self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            self.speaks = False

    @property
    def free(self) -> bool:
        """Whether it waits for a task."""
        return self.task is None and not self.dismissed and self.speaks

    def signal(self, number: signal.Signals) -> None:
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)


def _work(connection: Connection, surroundings: Surroundings, crew: Crew) -> None:
    """In the worker: do tasks until there are no more. The server blocks Ctrl-C, which is passed on as another signal."""
    elapsed.begin()
    surroundings.take()
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # lines of several workers stay whole
    Thread(target=processes.end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(crew.threads)
    with lasting_streams(), raising():
        try:
            do = crew.begin(connection.send, *crew.arguments)
            while (task := connection.recv()) is not None:
                with elapsed.part(Part.OTHER):
                    succeeded = do(task.what)
                connection.send(succeeded)
            connection.send(elapsed.parts())
        except UsageError as error:
            connection.send(UsageError(str(error)))
        except OSError as error:
            if error.strerror is None:  # not of the operating system
                raise
            connection.send(UsageError(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


class _Asked(Interruption):
    """How often the program was asked to stop. Nothing is raised: the workers are told, and waited for."""

    patience = sys.maxsize

    @property
    def times(self) -> int:
        return self._asked


class _Lines:
    """What all workers print on stderr, in whole lines."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self._rest = b""

    def read(self) -> list[str]:
        """The lines that have come."""
        with suppress(BlockingIOError):
            while more := os.read(self.reading, 1 << 16):
                self._rest += more
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="backslashreplace") for line in lines]

    def last(self) -> list[str]:
        """What came after the last whole line, once all workers have ended."""
        return [self._rest.decode(errors="backslashreplace")] if self._rest else []


@contextmanager
def _lines() -> Iterator[_Lines]:
    lines = _Lines()
    try:
        yield lines
    finally:
        os.close(lines.reading)
        os.close(lines.writing)
