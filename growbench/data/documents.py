"""Corpora of text. Each is a stream of documents with a fingerprint of its content."""

from __future__ import annotations

import bz2
import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from growbench.config.schema import TextConfig
from growbench.data.sources import Hub, cell, digest, matching_files, one_line_errors, parquet_rows, sample_file
from growbench.errors import UsageError

SAMPLE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"  # 101 English articles, CC BY-SA 3.0
SAMPLE_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
LONGEST = 1_000_000  # characters of a document: a longer one is read as several, because encoding takes 200 bytes a character
SHORTEST_PARAGRAPH = 100  # characters; shorter lines are headings, captions and table cells


class Reading(Protocol):
    """An iterator over documents that can tell where to continue."""

    def __iter__(self) -> Iterator[str]: ...
    def place(self) -> Any: ...  # plain JSON values: where to continue after the documents read so far


class Corpus(Protocol):
    def fingerprint(self) -> str: ...
    def read(self, place: Any = None) -> Reading: ...  # None: from the start


class Documents:
    """The first `config.documents` documents (0: all) of the corpus in order, stripped. Blank ones are left out.

    `place` continues an earlier reading. Raises UsageError if a document cannot be read.
    """

    def __init__(self, config: TextConfig, place: Any = None) -> None:
        self.done: int = place[0] if place else 0
        self._most = config.documents
        self._reading = _corpus(config).read(place[1] if place else None)

    def __iter__(self) -> Iterator[str]:
        texts = (text for text in map(str.strip, self._reading) if text)
        for text in islice(texts, self._most - self.done if self._most else None):
            self.done += 1
            yield text

    def place(self) -> Any:
        return self.done, self._reading.place()


class FromStart:
    """A reading of documents that cannot be continued: those that were read before are read again and dropped."""

    def __init__(self, texts: Iterator[str], done: int | None) -> None:
        self._texts, self._done = texts, done or 0

    def __iter__(self) -> Iterator[str]:
        for text in islice(self._texts, self._done, None):
            self._done += 1
            yield text

    def place(self) -> int:
        return self._done


def fingerprint(config: TextConfig) -> str:
    """The sha256 of the corpus, or the commit of a hub dataset. Raises UsageError if there is no such corpus."""
    return _corpus(config).fingerprint()


def _corpus(config: TextConfig) -> Corpus:
    kind, _, rest = config.corpus.partition(":")
    if kind == "files":
        return Files(rest, config.text_column)
    if kind == "hub":
        return HubText(Hub.of(rest), config.text_column)
    return WikipediaSample()


@dataclass(frozen=True)
class WikipediaSample:
    """The prose of 101 English Wikipedia articles, 2.56 million characters, which are test data of gensim."""

    def fingerprint(self) -> str:
        return SAMPLE_SHA256

    def read(self, place: Any = None) -> Reading:
        return FromStart(self._articles(), place)

    def _articles(self) -> Iterator[str]:
        dump = sample_file("wikipedia-sample", "gensim", f"test/test_data/{SAMPLE}", SAMPLE_SHA256)
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki

        with bz2.open(dump) as pages:
            for _, markup, _ in extract_pages(pages, filter_namespaces=("0",)):
                if not markup.lower().startswith("#redirect"):
                    yield _prose(filter_wiki(markup))


def _prose(article: str) -> str:
    """The prose of an article, one paragraph per line: no headings, lists, tables, bold or italic marks."""
    lines = (line.strip() for line in re.sub("''+", "", article).split("\n"))
    return "\n".join(line for line in lines if len(line) >= SHORTEST_PARAGRAPH and not line.startswith(("*", "#")))


@dataclass(frozen=True)
class Files:
    """Files that match comma-separated globs, sorted by name."""

    globs: str
    text_column: str

    def fingerprint(self) -> str:
        return digest(self.text_column, ((path.suffix, path) for path in self._paths()))

    def read(self, place: Any = None) -> Reading:
        readers = ((READERS[path.suffix.lower()], path) for path in self._paths())
        return FromStart(
            (part for reader, path in readers for text in reader(path, self.text_column) for part in parts(text)), place
        )

    def _paths(self) -> list[Path]:
        return matching_files(self.globs, READERS)


def _read_text(path: Path, _: str) -> Iterator[str]:
    """One document per paragraph. Paragraphs are separated by blank lines; one that is too long is read in parts."""
    paragraph: list[str] = []
    length = 0
    for line in _lines(path, LONGEST):
        if not line.strip():
            yield "".join(paragraph)
            paragraph, length = [], 0
            continue
        paragraph.append(line)
        length += len(line)
        if length > LONGEST:
            *whole, rest = parts("".join(paragraph))
            yield from whole
            paragraph, length = [rest], len(rest)
    yield "".join(paragraph)


def _read_json_lines(path: Path, text_column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"{where}: malformed JSON ({error.msg}); every line must be one object") from None
            except (ValueError, RecursionError):  # of numbers and nesting: see growbench.config.plain
                raise UsageError(f"{where}: malformed JSON (a number is too long, or lists are nested too deeply)") from None
            if not isinstance(row, dict):
                raise UsageError(f"{where}: every line must be one JSON object, as in {{{json.dumps(text_column)}: ...}}")
            text = _cell(row, text_column, where)
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UsageError(f"{where}: column {text_column!r} holds half a character (a lone surrogate)") from None
            yield text


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    with one_line_errors(str(path)):
        yield from _column(parquet_rows(path), text_column, str(path))


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}


@dataclass(frozen=True)
class HubText:
    """A text column of a dataset on the hub."""

    hub: Hub
    text_column: str

    def fingerprint(self) -> str:
        return self.hub.fingerprint(self.text_column)

    def read(self, place: Any = None) -> Reading:
        return HubReading(self.hub, self.text_column, place)


class HubReading:
    """A reading of a hub dataset. The dataset keeps its own state, so it continues without reading rows again, or only a few.

    A place is the dataset's state between two rows, and the number of documents read after it.
    """

    def __init__(self, hub: Hub, text_column: str, place: tuple[dict[str, Any], int] | None) -> None:
        self._label, self._text_column = hub.label(), text_column
        with one_line_errors(self._label):
            self._rows = hub.rows()
            if place:
                self._rows.load_state_dict(place[0])
            self._state = place[0] if place else copy.deepcopy(self._rows.state_dict())  # it changes with the reading
        self._skipped = place[1] if place else 0
        self._read, self._left = 0, 0  # documents after the state; of the present row, those that are still to be read

    def __iter__(self) -> Iterator[str]:
        with one_line_errors(self._label):
            for text in _column(self._rows, self._text_column, self._label):
                documents = list(parts(text))
                self._left = len(documents)
                for document in documents:
                    self._read, self._left = self._read + 1, self._left - 1
                    if self._read > self._skipped:
                        yield document

    def place(self) -> tuple[dict[str, Any], int]:
        if not self._left and self._read > self._skipped:  # the dataset's own state is that after the present row
            self._state, self._read, self._skipped = copy.deepcopy(self._rows.state_dict()), 0, 0
        return self._state, max(self._read, self._skipped)


def _column(rows: Iterable[dict[str, Any]], text_column: str, where: str) -> Iterator[str]:
    return (_cell(row, text_column, where) for row in rows)


def _cell(row: dict[str, Any], text_column: str, where: str) -> str:
    text = cell(row, "text_column", text_column, where)
    if not isinstance(text, str | None):
        raise UsageError(f"{where}: column {text_column!r} holds {type(text).__name__}, not text")
    return text or ""


def parts(text: str) -> Iterator[str]:
    """A document of more than `LONGEST` characters as several, cut before a space where there is one."""
    start = 0
    while len(text) - start > LONGEST:
        space = text.rfind(" ", start + LONGEST // 2, start + LONGEST)
        end = space if space > 0 else start + LONGEST
        yield text[start:end]
        start = end
    yield text[start:]


def _lines(path: Path, longest: int = -1) -> Iterator[str]:
    """The lines of a text file; of one with more than `longest` characters the parts."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(longest):
                if "\0" in line:
                    raise UsageError(f"{path} is binary, not text: it has NUL bytes")
                yield line
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
