"""Too little memory, room, files and processes."""

from __future__ import annotations

import ctypes
import resource
import subprocess
from functools import partial
from pathlib import Path

from tests.soak.attempt import ENDS_OR_RESUMES, RESUMES, Attempt, at_evaluation, attack

CLONE_NEWNS = 0x00020000  # a mount that this process alone, and its children, see


def limit(what: int, most: int) -> None:
    resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def limit_memory(more: int) -> None:
    """Allow so many bytes of address space beyond what is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more)


def mount(folder: Path, options: str) -> None:
    """Put a file system of its own in place of a folder, for this process alone. Raises OSError if that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "needs root")
    for command in ["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]:
        subprocess.run(command, check=True)


def out_of_memory() -> None:
    raise MemoryError


@attack("address space limited to 10 MB more than a process has after its imports", ENDS_OR_RESUMES)
def little_address_space(attempt: Attempt) -> str:
    return attempt.ends_or_resumes(attempt.run(before=partial(limit_memory, 10 << 20)))


@attack("MemoryError in mid-run", RESUMES)
def memory_error(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(at_evaluation, 3, out_of_memory)))


@attack("no file may be larger than 20 KB (RLIMIT_FSIZE): checkpoints and models are", RESUMES)
def small_files_alone(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(limit, resource.RLIMIT_FSIZE, 20_000)))


@attack("at most 24 open files (RLIMIT_NOFILE)", ENDS_OR_RESUMES)
def few_open_files(attempt: Attempt) -> str:
    return attempt.ends_or_resumes(attempt.run(before=partial(limit, resource.RLIMIT_NOFILE, 24)))


@attack("results on a disk of 100 KB", RESUMES)
def full_disk(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(mount, attempt.results, "size=100k")))


@attack("results on a disk of 8 KB", RESUMES)
def nearly_no_disk(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(mount, attempt.results, "size=8k")))


@attack("the cache on a disk of 8 KB", RESUMES)
def full_cache(attempt: Attempt) -> str:
    attempt.environment["GROWBENCH_CACHE"] = str(attempt.folder / "cache")
    return attempt.resumes(attempt.run(before=partial(mount, attempt.folder / "cache", "size=8k")))


@attack("results on a disk that cannot be written", RESUMES)
def read_only_results(attempt: Attempt) -> str:
    return attempt.resumes(attempt.run(before=partial(mount, attempt.results, "ro")))


@attack("the cache on a disk that cannot be written", RESUMES)
def read_only_cache(attempt: Attempt) -> str:
    attempt.environment["GROWBENCH_CACHE"] = str(attempt.folder / "cache")
    return attempt.resumes(attempt.run(before=partial(mount, attempt.folder / "cache", "ro")))


@attack("TMPDIR on a disk that cannot be written", ENDS_OR_RESUMES)
def read_only_tmpdir(attempt: Attempt) -> str:
    attempt.environment["TMPDIR"] = str(attempt.folder / "tmp")
    return attempt.ends_or_resumes(attempt.run(before=partial(mount, attempt.folder / "tmp", "ro")))
