"""The names of experiments and methods become folders of results: none of them leads out of `--results`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from growbench import cli, registry
from growbench.config import loading
from growbench.errors import UsageError, check_name

NAMES = [
    ".",
    "..",
    ".hidden",
    "a/b",
    "a\\b",
    "../up",
    "a\nb",
    "a\0b",
    "\x1b[2J",
    "\udcff",
    "\u202e",
    " ",
    "",
    "a" * 101,
    "é" * 51,
]
REFUSED = "cannot be named"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=REFUSED) as refused:
        check_name("an experiment", name)
    str(refused.value).encode()  # printable anywhere


@pytest.mark.parametrize("name", ["mine", "mine-2", "größe", "日本", "a b", "a..b", "v1.2", "-x", "a" * 100])
def test_other_names_are_allowed(name: str) -> None:
    check_name("an experiment", name)


@pytest.mark.parametrize(
    "file", ["...toml", "..toml", ".toml", "report.toml", "tuning.toml", "replaced.toml", "\udcff.toml", "a\nb.toml"]
)
def test_an_experiment_file_with_a_bad_name_writes_nothing(
    file: str, write_miniature: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`...toml` would be the experiment `..`, whose results lie above the folder of results."""
    (tmp_path / "in").mkdir()
    path = write_miniature(tmp_path).rename(tmp_path / "in" / file)
    before = sorted(tmp_path.rglob("*"))
    for command in ("run", "tune", "bench"):
        assert cli.main([command, str(path), "--methods", "scratch", "--results", str(tmp_path / "in" / "results")]) == 2
        said = capsys.readouterr().err
        assert REFUSED in said and len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_cannot_rename_its_experiment(miniature: Path) -> None:
    miniature.write_text('name = "../elsewhere"\n' + miniature.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UsageError, match="unknown key name"):
        loading.load(str(miniature))
    with pytest.raises(UsageError, match="unknown key name"):
        loading.load("gpt2-tiny", ["name=../elsewhere"])


@pytest.mark.parametrize("name", ["...py", "a\nb.py", f"{'a' * 101}.py"])
def test_a_method_file_with_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("from growbench.method import Method\nclass Mine(Method):\n    def phases(self, task): yield\n")
    with pytest.raises(UsageError, match=REFUSED):
        registry.get(str(tmp_path / name))
