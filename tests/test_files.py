"""Files that are written in full or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from growbench.files import replacing, write_text


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
