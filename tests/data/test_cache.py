"""The cache finds its own damage: every byte of it is compared with a digest, and what differs is named and made again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from growbench.config.schema import TextConfig
from growbench.data import cache, tokens
from growbench.data.cache import cached
from growbench.errors import UsageError

CONTENT = {"train.bin": bytes(range(256)) * 40, "test.bin": b"\1\0\2\0", "empty.bin": b"", "tokenizer.json": b"{}"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Prepared:
    """Counts how often the data were prepared."""

    def __init__(self) -> None:
        self.times = 0

    def fill(self, folder: Path) -> None:
        self.times += 1
        for name, content in CONTENT.items():
            (folder / name).write_bytes(content)
        (folder / "meta.json").write_text(json.dumps({"dtype": "uint16", "documents": 7}))

    def open(self) -> dict[str, bytes]:
        """As a new process does."""
        cache._checked.clear()
        return cached(["settings"], self.fill, lambda folder: {name: (folder / name).read_bytes() for name in CONTENT})


def folder_of(own_cache: Path) -> Path:
    (folder,) = (path for path in own_cache.iterdir() if path.is_dir())
    return folder


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 4]) + file.read_bytes()[1:]),
    "half of it overwritten": lambda file: file.write_bytes(b"\0" * (file.stat().st_size // 2) + CONTENT[file.name][5120:]),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-2]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "missing": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_made_again(own_cache: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    prepared = Prepared()
    assert prepared.open() == CONTENT and prepared.open() == CONTENT and prepared.times == 1
    DAMAGES[damage](folder_of(own_cache) / "train.bin")
    assert prepared.open() == CONTENT and prepared.times == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder_of(own_cache)) in line and line.endswith(": preparing the data again")
    assert "(sha256 differs)" in line or damage in ("missing", "a folder")
    assert prepared.open() == CONTENT and prepared.times == 2
    assert list(own_cache.iterdir()) == [folder_of(own_cache)]


def test_whatever_is_done_to_its_metadata(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """40 damaged meta.json: each is found, but for those that say the same in other bytes."""
    prepared, rng = Prepared(), random.Random(0)
    prepared.open()
    file = folder_of(own_cache) / "meta.json"
    whole = file.read_bytes()
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])])
        before = prepared.times
        assert prepared.open() == CONTENT
        try:
            same = json.loads(file.read_bytes()) == json.loads(damaged)
        except ValueError:
            same = False
        assert prepared.times == before + (not same)
        assert json.loads(file.read_bytes())["dtype"] == "uint16"
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_gets_its_digests_when_it_is_opened(
    own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts as whole then: nothing says what it held before. Images had no meta.json at all."""
    prepared = Prepared()
    prepared.open()
    file = folder_of(own_cache) / "meta.json"
    sealed = json.loads(file.read_text())
    for earlier in ({key: value for key, value in sealed.items() if key != "sha256"}, None):
        file.unlink() if earlier is None else file.write_text(json.dumps(earlier))
        assert prepared.open() == CONTENT and prepared.times == 1
        assert json.loads(file.read_text())["sha256"].keys() == {*CONTENT, "meta.json"}
    assert capsys.readouterr().err == ""
    (folder_of(own_cache) / "train.bin").write_bytes(b"other")
    assert prepared.open() == CONTENT and prepared.times == 2


def test_a_process_compares_a_folder_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again if a file has changed since."""
    prepared = Prepared()
    prepared.open()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "sha256", None)
        assert cached(["settings"], prepared.fill, lambda folder: folder.name) == folder_of(own_cache).name
    (folder_of(own_cache) / "test.bin").write_bytes(b"\1\0\2\1")
    cached(["settings"], prepared.fill, lambda folder: folder.name)
    assert prepared.times == 2


def test_data_that_cannot_be_read_even_when_new_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"cannot write the cache .* cannot be read \('dtype'\)"):
        cached(["settings"], Prepared().fill, lambda folder: {}["dtype"])  # type: ignore[var-annotated]


def test_tokens_that_were_damaged_are_prepared_again(corpus: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a run would train on others, under the fingerprint of the same documents."""
    config = TextConfig(corpus=f"files:{corpus}", sequence_length=16, vocabulary=300)
    whole = tokens.prepare(config, "causal", "bytes").train.tolist()
    file = folder_of(own_cache) / "train.bin"
    file.write_bytes(file.read_bytes()[: len(whole)])
    cache._checked.clear()
    assert tokens.prepare(config, "causal", "bytes").train.tolist() == whole
    assert f"{file} is damaged (sha256 differs): preparing the data again" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["progress", "tokens", "meta"])
def test_an_interrupted_preparation_whose_files_are_damaged_begins_anew(
    corpus: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    config = TextConfig(corpus=f"files:{corpus}", sequence_length=16, vocabulary=300)
    whole = tokens.prepare(config, "causal", "bytes").train.tolist()
    shutil.rmtree(folder_of(own_cache))
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 3000)
    write = tokens._write

    def interrupted(file: Path, values: dict[str, object]) -> None:
        write(file, values)
        if file.name == cache.PROGRESS and int(str(values["documents"])) > 60:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokens, "_write", interrupted)
        tokens.prepare(config, "causal", "bytes")
    file = folder_of(own_cache) / {"progress": cache.PROGRESS, "tokens": "train.bin", "meta": "meta.json"}[damage]
    file.write_bytes(file.read_bytes()[:40])
    assert tokens.prepare(config, "causal", "bytes").train.tolist() == whole
