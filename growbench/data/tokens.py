"""Tokenized text in the cache: a flat file of token ids for each split, which is memory-mapped."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from growbench.config.schema import TextConfig
from growbench.data import documents, processes, sources
from growbench.data import tokenizer as tokenizers
from growbench.data.cache import META, PROGRESS, cached, carried, memory_map
from growbench.data.tokenizer import Kind, Vocabulary
from growbench.errors import UsageError
from growbench.files import flush, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Objective = Literal["causal", "masked"]
HeldOutSplit = Literal["validation", "test"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = "train", "validation", "test"

FORMAT = 3  # of the cached files and of how they follow from documents: raise it when either changes
CYCLE = 20  # documents or images, of which one is in the validation split, one in the test split, and all others in training
HELD_OUT: dict[int, Split] = {0: "validation", CYCLE // 2: "test"}  # by place in the cycle
SAMPLE_CHARACTERS = 20_000_000  # of documents that a tokenizer is trained on, at most
CHUNK_CHARACTERS = 1_000_000  # encoded together
FEW_CHUNKS = 4  # fewer are encoded in this process: worker processes take longer to start


@dataclass(frozen=True)
class Tokens:
    """A tokenized corpus: one stream of ids per split, with a separator after every document."""

    train: NDArray[np.unsignedinteger]
    validation: NDArray[np.unsignedinteger]
    test: NDArray[np.unsignedinteger]
    vocabulary: Vocabulary
    documents: int
    fingerprint: str  # of the documents
    tokenizer_file: Path


def split_of(index: int) -> Split:
    """The split of document or image number `index` of a corpus."""
    return HELD_OUT.get(index % CYCLE, "train")


def prepare(config: TextConfig, objective: Objective, kind: Kind) -> Tokens:
    """The corpus as tokens, from the cache if it is there. Raises UsageError if the corpus cannot be read or cached."""
    if config.prepared:
        return _carried(config, objective)
    smallest = tokenizers.SMALLEST[kind]
    if not config.tokenizer and config.vocabulary < smallest:
        raise UsageError(f"vocabulary = {config.vocabulary}: a {kind} tokenizer needs at least {smallest}")
    fingerprint = documents.fingerprint(config)
    named = Path(config.tokenizer)
    tokenizer = sources.folder_digest(named) if config.tokenizer and os.path.isdir(named) else config.tokenizer
    settings = [FORMAT, fingerprint, objective, tokenizer or [kind, config.vocabulary]]
    if config.documents:
        settings.append(config.documents)
    return cached(settings, lambda folder: _tokenize(folder, config, objective, kind), lambda folder: _open(folder, fingerprint))


def _carried(config: TextConfig, objective: Objective) -> Tokens:
    """Tokens that were prepared before, perhaps on another machine. Their fingerprint is that of their files."""
    folder = Path(config.prepared).expanduser()
    tokens = carried(folder, lambda folder: _open(folder, sources.folder_digest(folder)))
    if objective == "masked" and tokens.vocabulary.mask is None:
        raise UsageError(f"corpus = {config.corpus!r}: its tokenizer has no mask token, which a masked language model needs")
    return tokens


def _open(folder: Path, fingerprint: str) -> Tokens:
    meta = json.loads((folder / META).read_text())
    return Tokens(
        **{split: memory_map(folder / f"{split}.bin", meta["dtype"]) for split in SPLITS},
        vocabulary=Vocabulary(**meta["vocabulary"]),
        documents=meta["documents"],
        fingerprint=fingerprint,
        tokenizer_file=folder / "tokenizer.json",
    )


@dataclass(frozen=True)
class Progress:
    """How much of the corpus is in the folder. Written after every chunk."""

    documents: int = 0
    train: int = 0  # bytes
    validation: int = 0
    test: int = 0
    place: Any = None  # in the corpus, where to continue


def _tokenize(folder: Path, config: TextConfig, objective: Objective, kind: Kind) -> None:
    progress = _progress(folder)
    chunks = _chunks(documents.Documents(config, progress.place), f"preparing {config.corpus}")
    head: list[Chunk] = []
    if not (folder / META).exists():
        if config.tokenizer:
            tokenizer, vocabulary = tokenizers.named(config.tokenizer, objective == "masked")
        else:
            head = _head(chunks)  # kept, so that documents are read only once
            tokenizer, vocabulary = tokenizers.train(kind, config.vocabulary, objective == "masked", _sample(head))
        tokenizer.save(str(folder / "tokenizer.json"))
        flush(folder / "tokenizer.json")
        dtype = "uint16" if vocabulary.size <= 65536 else "uint32"
        meta = {"documents": 0, "dtype": dtype, "vocabulary": asdict(vocabulary), "corpus": config.corpus}
        _write(folder / META, meta)  # written last: with it, an interrupted preparation need not train the tokenizer again
    meta = json.loads((folder / META).read_text())
    encode = Encoder(folder / "tokenizer.json", meta["vocabulary"]["separator"], meta["dtype"])
    meta["documents"] = _encode(folder, chain(head, chunks), encode, progress)
    _write(folder / META, meta)
    (folder / PROGRESS).unlink(missing_ok=True)


def _progress(folder: Path) -> Progress:
    """How far an interrupted preparation got. One whose files cannot be read, or have lost tokens, begins anew."""
    if not (folder / PROGRESS).exists():
        return Progress()
    try:
        found = Progress(**json.loads((folder / PROGRESS).read_text()))
        whole = all((folder / f"{split}.bin").stat().st_size >= getattr(found, split) for split in SPLITS)
        if whole and json.loads((folder / META).read_text()):
            return found
    except (OSError, TypeError, ValueError):
        pass
    (folder / META).unlink(missing_ok=True)
    return Progress()


class Chunk(NamedTuple):
    first: int  # number of the first document
    documents: list[str]
    place: Any  # in the corpus, after the chunk


def _chunks(documents: documents.Documents, title: str) -> Iterator[Chunk]:
    from tqdm import tqdm

    first, chunk, characters = documents.done, list[str](), 0
    for text in tqdm(documents, title, unit=" documents", delay=2, disable=None, initial=first):
        chunk.append(text)
        characters += len(text)
        if characters >= CHUNK_CHARACTERS:
            yield Chunk(first, chunk, documents.place())
            first, chunk, characters = documents.done, [], 0
    yield Chunk(first, chunk, documents.place())


def _head(chunks: Iterator[Chunk]) -> list[Chunk]:
    """The first chunks, enough to train a tokenizer."""
    head = []
    characters = 0
    while characters < SAMPLE_CHARACTERS and (chunk := next(chunks, None)) is not None:
        head.append(chunk)
        characters += sum(map(len, chunk.documents))
    return head


def _sample(chunks: list[Chunk]) -> list[str]:
    """The training documents among the first `SAMPLE_CHARACTERS`."""
    sample = []
    characters = 0
    for index, text in enumerate(text for chunk in chunks for text in chunk.documents):
        if split_of(index) == "train":
            sample.append(text)
        characters += len(text)
        if characters >= SAMPLE_CHARACTERS:
            break
    return sample


@dataclass(frozen=True)
class Encoder:
    """Turns a chunk into tokens, in this process or in a worker."""

    tokenizer_file: Path
    separator: int
    dtype: str

    def __call__(self, chunk: Chunk) -> dict[Split, bytes]:
        """The chunk's bytes of each split's file."""
        splits: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
        try:
            encodings = _tokenizer(self.tokenizer_file).encode_batch_fast(chunk.documents, add_special_tokens=False)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust code; it is no Exception
                raise
            end = chunk.first + len(chunk.documents)
            raise UsageError(f"tokenizer: cannot encode documents {chunk.first} to {end - 1} ({error})") from None
        for index, encoding in enumerate(encodings, chunk.first):
            if encoding.ids:  # empty for a document of control characters only
                splits[split_of(index)].append(np.array([*encoding.ids, self.separator], self.dtype).tobytes())
        return {split: b"".join(parts) for split, parts in splits.items()}


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True  # "[MASK]" in a document is text, not the mask token
    return tokenizer


def _encode(folder: Path, chunks: Iterable[Chunk], encode: Encoder, progress: Progress) -> int:
    """Write the splits' files from `progress` on. Returns the number of documents."""
    done = asdict(progress)
    with ExitStack() as stack:
        files = {split: stack.enter_context((folder / f"{split}.bin").open("ab")) for split in SPLITS}
        for split, file in files.items():
            file.truncate(done[split])
        for chunk, parts in _in_order(chunks, encode):
            for split, file in files.items():
                file.write(parts[split])
                file.flush()
                os.fsync(file.fileno())
                done[split] += len(parts[split])
            done |= {"documents": chunk.first + len(chunk.documents), "place": chunk.place}
            _write(folder / PROGRESS, done)
    return done["documents"]


def _in_order(chunks: Iterable[Chunk], encode: Encoder) -> Iterator[tuple[Chunk, dict[Split, bytes]]]:
    """Every chunk with its tokens, in order. Several chunks are encoded in parallel by worker processes, unless there are few."""
    chunks = iter(chunks)
    first = list(islice(chunks, FEW_CHUNKS))
    if len(first) < FEW_CHUNKS or processes.cores() == 1:
        yield from ((chunk, encode(chunk)) for chunk in chain(first, chunks))
        return
    workers = processes.cores()
    waiting: deque[tuple[Chunk, Future[dict[Split, bytes]]]] = deque()
    with ProcessPoolExecutor(workers, processes.context("torch", "tokenizers"), processes.begin) as pool:
        try:
            for chunk in chain(first, chunks):
                waiting.append((chunk, pool.submit(encode, chunk)))
                if len(waiting) > 2 * workers:  # bounds the memory
                    chunk, tokens = waiting.popleft()
                    yield chunk, tokens.result()
            for chunk, tokens in waiting:
                yield chunk, tokens.result()
        except BrokenProcessPool as error:
            raise UsageError(
                "a worker process that prepares data has ended: memory is short, or the script that calls growbench "
                'does its work outside of `if __name__ == "__main__":`'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _write(file: Path, values: dict[str, Any]) -> None:
    """Write plain JSON values to a file atomically."""
    write_text(file, json.dumps(values, indent=1))
