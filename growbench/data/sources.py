"""The places that text and images are read from: samples in Python packages, files, and datasets of the hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from glob import escape, glob
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growbench.console import say
from growbench.errors import UsageError, reason
from growbench.files import write_text

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True)
class Hub:
    """The `train` split of a dataset on the Hugging Face hub, or in a local folder of the same layout, read as a stream."""

    name: str
    configuration: str | None

    @classmethod
    def of(cls, text: str) -> Hub:
        """From the text after `hub:` in the name of a corpus."""
        name, _, configuration = text.partition(":")
        if not name:
            raise UsageError(f"corpus = 'hub:{text}': must be hub:NAME[:CONFIG], as in hub:wikimedia/wikipedia:20231101.en")
        return cls(name, configuration or None)

    def fingerprint(self, columns: str) -> str:
        """The dataset's commit (of a folder: the sha256 of its content), with the configuration and columns that are read."""
        if Path(self.name).is_dir():
            return folder_digest(Path(self.name), f"{self.configuration} {columns}")
        return f"{self._commit()}:{self.configuration or 'default'}:{columns}"

    def rows(self) -> IterableDataset:
        commit = None if Path(self.name).is_dir() else self._commit()
        return _streamed(self.name, self.configuration, revision=commit)

    def holds(self, path: str) -> bool:
        """Whether a path in a row names a file of this dataset, or one in a zip archive of it. No other file is read."""
        archived, _, file = path.rpartition("::")
        if archived and (not archived.startswith("zip://") or "::" in archived):
            return False
        if Path(self.name).is_dir():
            return "://" not in file and Path(os.path.abspath(file)).is_relative_to(os.path.abspath(self.name))
        return file.lower().startswith(f"hf://datasets/{self.name}@".lower()) and ".." not in file.split("/")

    def label(self) -> str:
        return f"corpus = 'hub:{self.name}{f':{self.configuration}' if self.configuration else ''}'"

    def _commit(self) -> str:
        """The dataset's newest commit. If the hub cannot be reached, the commit of the last reading."""
        remembered = cache_folder() / "hub" / f"{hashlib.sha256(self.name.encode()).hexdigest()}.txt"
        try:
            commit = newest_commit(self.name, self.label())
        except UsageError as error:
            if not remembered.is_file():
                raise
            say(f"{error}: using the version that was read last")
            return remembered.read_text(encoding="utf-8")
        with suppress(OSError):  # an unwritable cache is reported when data is prepared
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_text(remembered, commit)
        return commit


@cache
def newest_commit(dataset: str, label: str) -> str:
    """The hub is asked once per process, so that a run reads a single version."""
    from huggingface_hub import HfApi

    with one_line_errors(label):
        return str(HfApi().dataset_info(dataset).sha)


def cache_folder() -> Path:
    """$GROWBENCH_CACHE, else growbench in $XDG_CACHE_HOME, else ~/.cache/growbench."""
    if own := os.environ.get("GROWBENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "growbench"


def sample_file(corpus: str, package: str, path: str, sha256: str) -> Path:
    """The file at `path` in an installed package. Raises UsageError if it is missing or has other content."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f'corpus = {corpus} needs {package}: pip install "growbench[samples]"')
    file = Path(spec.origin).parent / path
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise UsageError(
            f'{file} is not the expected sample: pip install "growbench[samples]" installs the right version of {package}'
        )
    return file


def matching_files(globs: str, allowed: Collection[str], folders: bool = False) -> list[Path]:
    """The files that match comma-separated globs, sorted. With `folders`, also all allowed files below a matching folder.

    `allowed`: endings in lower case. Raises UsageError if a glob matches no file, and for another ending or an empty file.
    """
    found = set()
    for pattern in map(str.strip, globs.split(",")):
        matches = [Path(path) for path in glob(str(Path(pattern).expanduser()), recursive=True)]
        files = {path for path in matches if path.is_file()}
        if folders:
            below = (path for folder in matches if folder.is_dir() for path in folder.rglob("*"))
            files.update(path for path in below if path.suffix.lower() in allowed and path.is_file())
        if not files:
            raise UsageError(f"corpus = 'files:{pattern}': no file matches")
        found |= files
    for path in found:
        if path.suffix.lower() not in allowed:
            raise UsageError(f"{path}: cannot read files ending in {path.suffix!r}; allowed are {', '.join(allowed)}")
        if path.stat().st_size == 0:
            raise UsageError(f"{path} is empty")
    return sorted(found)


def parquet_rows(path: Path) -> IterableDataset:
    return _streamed("parquet", data_files=escape(str(path)))


def _streamed(*names: str | None, **options: Any) -> IterableDataset:
    """The rows of a dataset. What the library finds wrong it raises; that it prints it as well is turned off."""
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets.load_dataset(*names, split="train", streaming=True, trust_remote_code=False, **options)


def cell(row: dict[str, Any], key: str, column: str, where: str) -> Any:
    """The row's value in `column`. Raises UsageError if there is no such column; `key` is the setting that names it."""
    if column not in row:
        raise UsageError(f"{where}: no column {key} = {column!r}; there are {', '.join(map(repr, row)) or 'none'}")
    return row[column]


def folder_digest(folder: Path, options: str = "") -> str:
    """The sha256 of names and contents of all files below a folder."""
    return digest(options, ((str(path.relative_to(folder)), path) for path in sorted(folder.rglob("*")) if path.is_file()))


@contextmanager
def one_line_errors(where: str) -> Iterator[None]:
    """Turn any error of a library inside (no network, no such dataset, a broken file) into a UsageError of one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where}: cannot be read ({reason(error)})") from error


def digest(options: str, files: Iterable[tuple[str, Path]]) -> str:
    """The sha256 of the reading options and of every file's label and content."""
    digest = hashlib.sha256(options.encode())
    for label, path in files:
        try:
            with path.open("rb") as file:
                digest.update(f"\0{label}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()
