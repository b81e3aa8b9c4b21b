"""Files that are written in full or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from growbench.files import BLOCK, make_folder, move, no_room, remove_drafts, replacing, sha256, write_text
from tests.power_loss import recorded


@pytest.mark.parametrize("size", [0, 1, BLOCK, 2 * BLOCK + 1])
def test_the_digest_is_that_of_the_whole_content(tmp_path: Path, size: int) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_is_replaced_in_full_or_stays_as_it_was(tmp_path: Path) -> None:
    """Whatever breaks the writing off, no draft is left."""
    file = tmp_path / "table.csv"
    write_text(file, "früher\n")
    with pytest.raises(KeyboardInterrupt), replacing(file) as draft:
        draft.write_text("half")
        assert file.read_bytes() == "früher\n".encode()
        raise KeyboardInterrupt
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert file.read_bytes() == "früher\n".encode()
    write_text(file, "später\n")
    assert file.read_bytes() == "später\n".encode()


def test_two_writers_at_once_have_drafts_of_their_own(tmp_path: Path) -> None:
    """Nobody's file is mixed with another's, and the last one decides."""
    file = tmp_path / "table.csv"
    with replacing(file) as first:
        first.write_text("first")
        with replacing(file) as second:
            assert second != first
            second.write_text("second")
        assert file.read_text() == "second"
    assert file.read_text() == "first" and os.listdir(tmp_path) == ["table.csv"]


def test_only_drafts_are_removed(tmp_path: Path) -> None:
    for name in ("run.json.0123abcd.part", "film.part", "run.json.part", "0123abcd.part"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["0123abcd.part", "film.part", "run.json.part"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO, errno.ENOSPC])
def test_a_flush_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file system that cannot flush folders is taken as it is."""
    file = tmp_path / "run.json"
    file.write_text("old")
    flushes = 0

    def failing(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    folders = False
    with pytest.raises(OSError, match=os.strerror(number)):
        write_text(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["run.json"] and flushes == 1
    folders = True
    if number in (errno.EINVAL, errno.ENOTSUP):
        write_text(file, "new")
        assert file.read_text() == "new"
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            write_text(file, "new")


def test_folders_and_names_are_on_disk_too(tmp_path: Path) -> None:
    with recorded(tmp_path) as disk:
        make_folder(tmp_path / "a" / "b")
        write_text(tmp_path / "a" / "b" / "file", "text")
        disk.mark = "moved"
        move(tmp_path / "a", tmp_path / "c")
    for state in disk.states:
        assert state.mark is None or {name.partition("/")[2] for name in state.files} >= {"b", "b/file"}, state.moment
    assert disk.states[-1].files == {"c": None, "c/b": None, "c/b/file": b"text"}


def test_a_full_disk_is_known_by_its_number_or_its_text() -> None:
    assert no_room(OSError(errno.ENOSPC, "")) and no_room(OSError(errno.EDQUOT, ""))
    assert no_room(ValueError("I/O error: No space left on device (os error 28)"))
    assert not no_room(OSError(errno.EIO, "")) and not no_room(ValueError("(os error 5)"))


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file").startswith("ba7816bf 8f01cfea 414140de".replace(" ", ""))
