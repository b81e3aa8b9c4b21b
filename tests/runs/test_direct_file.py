"""Files that are written past the system's memory hold what was written, whatever the file system allows."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growbench.runs import direct_file
from growbench.runs.direct_file import DIRECT, DirectFile

BLOCK = 1 << 12

Write = Callable[[int, memoryview], int]


def is_direct(file: int) -> bool:
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & DIRECT)


def refuse() -> None:
    raise OSError(errno.EINVAL, "not in this file system")


def opened_only_otherwise(patch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def open_unless_direct(path: Path, flags: int, mode: int) -> int:
        if flags & DIRECT:
            refuse()
        return opened(path, flags, mode)

    patch.setattr(os, "open", open_unless_direct)


def of_larger_blocks(patch: pytest.MonkeyPatch) -> None:
    written: Write = os.write
    patch.setattr(os, "write", lambda file, data: refuse() if is_direct(file) else written(file, data))


def of_parts_of_blocks(patch: pytest.MonkeyPatch) -> None:
    """Each write writes but a part; what follows is then not at a block's beginning."""
    written: Write = os.write
    patch.setattr(os, "write", lambda file, data: written(file, bytes(data[: max(1, len(data) // 3)])))


def as_it_is(patch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize("system", [as_it_is, opened_only_otherwise, of_larger_blocks, of_parts_of_blocks])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 3 * BLOCK), max_size=6))
def test_a_file_holds_what_was_written(tmp_path: Path, system: Callable[[pytest.MonkeyPatch], None], sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]
    path = tmp_path / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_file, "BLOCK", BLOCK)
        system(patch)
        with DirectFile(path) as file:
            for part in parts:
                file.write(memoryview(part))
    assert path.read_bytes() == b"".join(parts)


def test_whole_blocks_are_written_past_the_systems_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder's file system can do so; the rest is not."""
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary folder does not write directly")
    how, written = [], os.write
    monkeypatch.setattr(direct_file, "BLOCK", BLOCK)
    monkeypatch.setattr(os, "write", lambda file, data: (how.append((is_direct(file), len(data))), written(file, data))[1])
    with DirectFile(tmp_path / "file") as file:
        file.write(bytes(2 * BLOCK + 7))
    assert how == [(True, BLOCK), (True, BLOCK), (False, 7)]


def test_an_error_is_raised_and_closes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    closed: list[int] = []
    close = os.close
    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "close", lambda number: (closed.append(number), close(number))[1])
    with pytest.raises(OSError, match="No space left"), DirectFile(tmp_path / "file") as file:
        file.write(b"a part")
    assert len(closed) == 1
