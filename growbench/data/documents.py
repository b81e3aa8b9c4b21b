"""Where the text comes from: every corpus is a stream of documents, and a fingerprint of its content."""

from __future__ import annotations

import bz2
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape, glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from growbench.config import TextConfig, UsageError

SAMPLE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"  # 101 English articles, CC BY-SA 3.0
SAMPLE_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
SHORTEST_PARAGRAPH = 100  # characters; what is shorter is headings, captions and table cells


class Corpus(Protocol):
    def fingerprint(self) -> str: ...
    def documents(self) -> Iterator[str]: ...


def documents(config: TextConfig) -> Iterator[str]:
    """The documents of the corpus in its own order, stripped, without blank ones. Raises UsageError if one cannot be read."""
    return (text for text in map(str.strip, _corpus(config).documents()) if text)


def fingerprint(config: TextConfig) -> str:
    """A sha256, or the commit of a dataset on the hub: it changes when the content does. Raises UsageError for no corpus."""
    return _corpus(config).fingerprint()


def _corpus(config: TextConfig) -> Corpus:
    kind, _, rest = config.corpus.partition(":")
    if kind == "files":
        return Files(rest, config.text_column)
    if kind == "hub":
        name, _, configuration = rest.partition(":")
        if not name:
            raise UsageError(f"corpus = {config.corpus!r}: must be hub:NAME[:CONFIG], as in hub:wikimedia/wikipedia:20231101.en")
        return Hub(name, configuration or None, config.text_column)
    return WikipediaSample()


@dataclass(frozen=True)
class WikipediaSample:
    """The prose of 101 English Wikipedia articles, 2.56 million characters, that gensim carries as test data."""

    def fingerprint(self) -> str:
        return SAMPLE_SHA256

    def documents(self) -> Iterator[str]:
        dump = self._dump()
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki

        with bz2.open(dump) as pages:
            for _, markup, _ in extract_pages(pages, filter_namespaces=("0",)):
                if not markup.lower().startswith("#redirect"):
                    yield _prose(filter_wiki(markup))

    def _dump(self) -> Path:
        spec = find_spec("gensim")
        if spec is None or spec.origin is None:
            raise UsageError('corpus = wikipedia-sample needs gensim: pip install "growbench[samples]"')
        dump = Path(spec.origin).parent / "test" / "test_data" / SAMPLE
        if not dump.is_file() or hashlib.sha256(dump.read_bytes()).hexdigest() != SAMPLE_SHA256:
            raise UsageError(f'{dump} is not the expected sample (gensim 4.4 has it): pip install "growbench[samples]"')
        return dump


def _prose(article: str) -> str:
    """The running text of an article, one paragraph a line: no headings, lists, tables, bold or italic marks."""
    lines = (line.strip() for line in re.sub("''+", "", article).split("\n"))
    return "\n".join(line for line in lines if len(line) >= SHORTEST_PARAGRAPH and not line.startswith(("*", "#")))


@dataclass(frozen=True)
class Files:
    """Files that match comma-separated globs, in the order of their names."""

    globs: str
    text_column: str

    def fingerprint(self) -> str:
        return _digest(self.text_column, ((path.suffix, path) for path in self._paths()))

    def documents(self) -> Iterator[str]:
        for path in self._paths():
            yield from READERS[path.suffix](path, self.text_column)

    def _paths(self) -> list[Path]:
        paths = sorted({path for pattern in self.globs.split(",") for path in _matches(pattern.strip())})
        for path in paths:
            if path.suffix not in READERS:
                raise UsageError(f"{path}: cannot read files ending in {path.suffix!r}; allowed are {', '.join(READERS)}")
            if path.stat().st_size == 0:
                raise UsageError(f"{path} is empty")
        return paths


def _matches(pattern: str) -> list[Path]:
    found = [path for path in map(Path, glob(str(Path(pattern).expanduser()), recursive=True)) if path.is_file()]
    if not found:
        raise UsageError(f"corpus = 'files:{pattern}': no file matches")
    return found


def _read_text(path: Path, _: str) -> Iterator[str]:
    """Paragraphs separated by an empty line."""
    paragraph: list[str] = []
    for line in _lines(path):
        if line.strip():
            paragraph.append(line)
        else:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _read_json_lines(path: Path, text_column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"{where}: malformed JSON ({error.msg}); every line must be one object") from None
            if not isinstance(row, dict):
                raise UsageError(f"{where}: every line must be one JSON object, as in {{{json.dumps(text_column)}: ...}}")
            yield _cell(row, text_column, where)


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    from datasets import load_dataset

    with _one_line_errors(str(path)):
        rows = load_dataset("parquet", data_files=escape(str(path)), split="train", streaming=True)
        yield from _column(rows, text_column, str(path))


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}


@dataclass(frozen=True)
class Hub:
    """The `train` split of a dataset on the Hugging Face hub, or of a local folder in the same layout, read as a stream."""

    name: str
    configuration: str | None
    text_column: str

    def fingerprint(self) -> str:
        if Path(self.name).is_dir():
            return folder_digest(Path(self.name), f"{self.configuration} {self.text_column}")
        return f"{self._commit()}:{self.configuration or 'default'}:{self.text_column}"

    def documents(self) -> Iterator[str]:
        from datasets import load_dataset

        commit = None if Path(self.name).is_dir() else self._commit()
        with _one_line_errors(self._label()):
            rows = load_dataset(self.name, self.configuration, split="train", streaming=True, revision=commit)
            yield from _column(rows, self.text_column, self._label())

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        with _one_line_errors(self._label()):
            return str(HfApi().dataset_info(self.name).sha)

    def _label(self) -> str:
        return f"corpus = 'hub:{self.name}{f':{self.configuration}' if self.configuration else ''}'"


def folder_digest(folder: Path, options: str = "") -> str:
    """sha256 over the names and the content of all files below a folder."""
    return _digest(options, ((str(path.relative_to(folder)), path) for path in sorted(folder.rglob("*")) if path.is_file()))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if "\0" in line:
                    raise UsageError(f"{path} is binary, not text: it has NUL bytes")
                yield line
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _column(rows: Iterable[dict[str, Any]], text_column: str, where: str) -> Iterator[str]:
    return (_cell(row, text_column, where) for row in rows)


def _cell(row: dict[str, Any], text_column: str, where: str) -> str:
    if text_column not in row:
        raise UsageError(f"{where}: no column text_column = {text_column!r}; there are {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(row[text_column], str | None):
        raise UsageError(f"{where}: column {text_column!r} holds {type(row[text_column]).__name__}, not text")
    return row[text_column] or ""


@contextmanager
def _one_line_errors(where: str) -> Iterator[None]:
    """Whatever a library raises in here (no network, no such dataset, a broken file) as one line that says where."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where}: cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)})") from error


def _digest(options: str, files: Iterable[tuple[str, Path]]) -> str:
    """sha256 over reading options, and label and content of every file."""
    digest = hashlib.sha256(options.encode())
    for label, path in files:
        try:
            with path.open("rb") as file:
                digest.update(f"\0{label}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()
