"""The cache: what is prepared once, then memory-mapped. Of a text, two flat files of token ids."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from growbench.config import TextConfig, UsageError
from growbench.data import documents as corpora
from growbench.data import tokenizer as tokenizers
from growbench.data.tokenizer import Kind, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Objective = Literal["causal", "masked"]
FORMAT = 1  # of the cache, and of everything between documents and tokens: raise it when either changes
VALIDATION_EVERY = 20  # every 20th document is validation
SAMPLE_CHARACTERS = 20_000_000  # what a tokenizer is trained on, at most
CHUNK_CHARACTERS = 1_000_000  # what is encoded at once


@dataclass(frozen=True)
class Tokens:
    """A tokenized corpus: one stream of ids a split, a separator after every document."""

    train: NDArray[np.unsignedinteger]
    validation: NDArray[np.unsignedinteger]
    vocabulary: Vocabulary
    documents: int
    fingerprint: str  # of the documents
    tokenizer_file: Path


def prepare(config: TextConfig, objective: Objective, kind: Kind) -> Tokens:
    """The corpus as tokens, from the cache if it was tokenized before. Raises UsageError if it cannot be read or cached."""
    smallest = tokenizers.SMALLEST[kind]
    if not config.tokenizer and config.vocabulary < smallest:
        raise UsageError(f"vocabulary = {config.vocabulary}: a {kind} tokenizer needs at least {smallest}")
    fingerprint = corpora.fingerprint(config)
    named = Path(config.tokenizer)
    tokenizer = corpora.folder_digest(named) if config.tokenizer and named.is_dir() else config.tokenizer
    settings = [FORMAT, fingerprint, objective, tokenizer or [kind, config.vocabulary]]
    folder = cached(settings, lambda empty: _tokenize(empty, config, objective, kind))
    return _open(folder, fingerprint)


def cached(settings: list[Any], fill: Callable[[Path], None]) -> Path:
    """The folder of the cache that belongs to `settings` (plain JSON values), filled by `fill` if it was not there.

    Raises UsageError if it cannot be written.
    """
    folder = cache_folder() / hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    try:
        if not folder.exists():
            _build(folder, fill)
    except OSError as error:
        raise UsageError(f"cannot write the cache {folder.parent} (environment GROWBENCH_CACHE): {error}") from error
    return folder


def cache_folder() -> Path:
    """$GROWBENCH_CACHE, else growbench in $XDG_CACHE_HOME, else ~/.cache/growbench."""
    if own := os.environ.get("GROWBENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "growbench"


def _open(folder: Path, fingerprint: str) -> Tokens:
    meta = json.loads((folder / "meta.json").read_text())
    return Tokens(
        train=memory_map(folder / "train.bin", meta["dtype"]),
        validation=memory_map(folder / "validation.bin", meta["dtype"]),
        vocabulary=Vocabulary(**meta["vocabulary"]),
        documents=meta["documents"],
        fingerprint=fingerprint,
        tokenizer_file=folder / "tokenizer.json",
    )


def memory_map(path: Path, dtype: str) -> NDArray[Any]:
    """A flat file of numbers, read only."""
    if path.stat().st_size == 0:  # cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def _build(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder, then rename it: whoever looks sees all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="preparing-", dir=folder.parent) as temporary:
        building = Path(temporary) / "content"
        building.mkdir()
        fill(building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():  # else somebody else was faster, with the same result
                raise


def _tokenize(folder: Path, config: TextConfig, objective: Objective, kind: Kind) -> None:
    from tqdm import tqdm

    stream = iter(tqdm(corpora.documents(config), desc=f"preparing {config.corpus}", unit=" documents", delay=2, disable=None))
    if config.tokenizer:
        head: list[str] = []
        tokenizer, vocabulary = tokenizers.named(config.tokenizer, objective == "masked")
    else:
        head = _head(stream)  # kept, so that the documents are read once
        sample = [text for index, text in enumerate(head) if index % VALIDATION_EVERY]
        tokenizer, vocabulary = tokenizers.train(kind, config.vocabulary, objective == "masked", sample)
    tokenizer.encode_special_tokens = True  # a document that says "[MASK]" means the word
    tokenizer.save(str(folder / "tokenizer.json"))
    dtype = "uint16" if vocabulary.size <= 65536 else "uint32"
    documents = _encode(folder, chain(head, stream), tokenizer, vocabulary.separator, dtype)
    meta = {"documents": documents, "dtype": dtype, "vocabulary": asdict(vocabulary), "corpus": config.corpus}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _head(documents: Iterator[str]) -> list[str]:
    head = []
    characters = 0
    while characters < SAMPLE_CHARACTERS and (text := next(documents, None)) is not None:
        head.append(text)
        characters += len(text)
    return head


def _encode(folder: Path, documents: Iterable[str], tokenizer: Tokenizer, separator: int, dtype: str) -> int:
    """Write train.bin and validation.bin; the number of documents."""
    index = 0
    with (folder / "train.bin").open("wb") as train, (folder / "validation.bin").open("wb") as validation:
        for chunk in _chunks(documents):
            for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                if encoding.ids:  # nothing is left of a document of control characters
                    tokens = np.array([*encoding.ids, separator], dtype)
                    tokens.tofile(train if index % VALIDATION_EVERY else validation)
                index += 1
    return index


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in documents:
        chunk.append(text)
        characters += len(text)
        if characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    yield chunk
