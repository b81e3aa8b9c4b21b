"""Processes forked from a server that has imported the libraries, once: each starts in a moment instead of some seconds."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, TextIO

from growbench import cli
from tests import figures

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.preloaded"])  # found from the working folder, which is the project's


class Started(NamedTuple):
    """A command under way, and what it says."""

    process: ForkServerProcess
    out: TextIO
    err: TextIO


def start(arguments: Sequence[str], command: Callable[[Sequence[str]], int] = cli.main) -> Started:
    """Start `growbench ARGUMENTS`, or another function of them that gives an exit code."""
    readers, writers = zip(*(FORKED.Pipe(duplex=False) for _ in range(2)), strict=True)
    process = FORKED.Process(target=_carry_out, args=(command, arguments, *writers))
    process.start()
    for writer in writers:
        writer.close()
    return Started(process, *(os.fdopen(os.dup(reader.fileno()), encoding="utf-8") for reader in readers))


def _carry_out(command: Callable[[Sequence[str]], int], arguments: Sequence[str], out: Connection, err: Connection) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    figures.leave_out()
    sys.exit(command(arguments))


class Answer(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str


def answer(*arguments: object) -> Answer:
    """Run `growbench ARGUMENTS` in this process, where the libraries are imported. Processes that it starts speak here too."""
    forkserver.ensure_running()  # with what it imports for tests
    with TemporaryFile("w+", encoding="utf-8") as out, TemporaryFile("w+", encoding="utf-8") as err:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.main([str(argument) for argument in arguments])
            except SystemExit as exit:  # argparse
                assert isinstance(exit.code, int)
                code = exit.code
        out.seek(0)
        err.seek(0)
        return Answer(code, out.read(), err.read())


def work_together(work: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Call it in so many processes, with the number of each and the arguments, and wait for all."""
    import torch.multiprocessing

    torch.multiprocessing.start_processes(work, arguments, nprocs=processes, start_method="forkserver")


def ended(commands: Sequence[Started]) -> list[tuple[str, str]]:
    """What each said on stdout and stderr; each has ended with exit code 0."""
    said = []
    for process, out, err in commands:
        process.join(timeout=300)
        said.append((out.read(), err.read()))
    assert [each.process.exitcode for each in commands] == [0] * len(commands), said
    return said


CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


def mount_alone(folder: str, options: str) -> None:
    """Mount a disk in memory at a folder, which this process and its children alone see. For a process of `start`."""
    if child := os.fork():  # the system refuses a process with threads, which libraries may have started
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in ("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1"):
        Path(f"/proc/self/{name}").write_text(text)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def remount(folder: str, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
