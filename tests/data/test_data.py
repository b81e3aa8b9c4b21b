"""Data: what a batch holds is checked against the documents, read and tokenized here a second time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from growbench.config.schema import TextConfig
from growbench.data import Batch, TextData, load, sources
from growbench.data import tokens as token_cache
from growbench.data.documents import Documents
from growbench.data.tokenizer import named, train
from growbench.errors import UsageError
from tests.processes import ended, start

WORDS = [
    "the",
    "of",
    "and",
    "model",
    "grows",
    "wider",
    "deeper",
    "loss,",
    "seed",
    "step.",
    "naïve",
    "Grüße",
    "北京",
    "42",
    "head?",
]


def make_documents(count: int = 240, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"Document {number}: " + " ".join(rng.choices(WORDS, k=rng.randint(20, 120))) for number in range(count)]


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    if path.suffix == ".txt":
        path.write_text("\n\n".join(texts), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({column: texts, "number": list(range(len(texts)))}), path)
    else:
        path.write_text("\n".join(json.dumps({column: text, "number": 1}) for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GROWBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"files:{write(tmp_path_factory.mktemp('corpus') / 'corpus.jsonl', make_documents())}"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(corpus: str, **changes: Any) -> TextConfig:
    values: dict[str, Any] = {"corpus": corpus, "sequence_length": 16, "vocabulary": 400, "evaluation_batches": 2}
    return TextConfig(**{**values, **changes})


def bytes_data(corpus: str, batch: int = 4, **changes: Any) -> TextData:
    return load(config(corpus, **changes), "causal", "bytes", batch)


def masked_data(corpus: str, batch: int = 4, **changes: Any) -> TextData:
    return load(config(corpus, **changes), "masked", "wordpiece", batch)


@cache
def stream(corpus: str, kind: str, split: str) -> list[int]:
    """The token stream of a split, made anew from the documents with the cached tokenizer."""
    prepared = token_cache.prepare(config(corpus), "causal" if kind == "bytes" else "masked", kind)  # type: ignore[arg-type]
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_file))
    separator = tokenizer.token_to_id("<|endoftext|>" if kind == "bytes" else "[SEP]")
    splits = {0: "validation", 10: "test"}
    chosen = [text for index, text in enumerate(make_documents()) if splits.get(index % 20, "train") == split]
    return [token for text in chosen for token in [*tokenizer.encode(text, add_special_tokens=False).ids, separator]]


def same(first: Batch, second: Batch) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]


def message(*arguments: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- batches


@settings(deadline=None, max_examples=30)
@given(step=st.integers(0, 10**6), seed=st.integers(0, 2**32), masked=st.booleans())
def test_batch_is_a_pure_function_of_seed_and_step(corpus: str, step: int, seed: int, masked: bool) -> None:
    make = masked_data if masked else bytes_data
    data = make(corpus)
    first = data.train_batch(step, seed)
    data.train_batch(step + 1, seed + 1)
    assert same(first, make(corpus).train_batch(step, seed))
    assert not torch.equal(first.inputs, data.train_batch(step + 1, seed).inputs)
    assert not torch.equal(first.inputs, data.train_batch(step, seed + 1).inputs)


@settings(deadline=None, max_examples=15)
@given(length=st.integers(4, 40), batch=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_causal_epoch_holds_every_block_once(corpus: str, length: int, batch: int, seed: int, epoch: int) -> None:
    tokens = stream(corpus, "bytes", "train")
    blocks = [tuple(tokens[start : start + length + 1]) for start in range(0, len(tokens) - length, length)]
    data = bytes_data(corpus, batch, sequence_length=length)
    assert data.train_tokens == len(tokens)
    first, last = epoch * len(blocks), (epoch + 1) * len(blocks)
    rows = []
    for step in range(first // batch, -(-last // batch)):
        inputs, positions, labels = data.train_batch(step, seed)
        assert inputs.shape == (batch, length) and labels.shape == (batch * length,) and positions is None
        assert inputs.dtype == labels.dtype == torch.int64
        rows += [
            (*row, following[-1]) for row, following in zip(inputs.tolist(), labels.view(batch, length).tolist(), strict=True)
        ]
        assert torch.equal(inputs[:, 1:], labels.view(batch, length)[:, :-1])
    skipped = first % batch  # of the first batch, those samples belong to the epoch before
    assert sorted(rows[skipped : skipped + len(blocks)]) == sorted(blocks)


@settings(deadline=None, max_examples=25)
@given(length=st.integers(4, 40), batch=st.integers(1, 9), share=st.floats(0.01, 0.9), step=st.integers(0, 10**5))
def test_masked_batch(corpus: str, length: int, batch: int, share: float, step: int) -> None:
    data = masked_data(corpus, batch, sequence_length=length, mask_share=share)
    inputs, positions, labels = data.train_batch(step, 0)
    labelled = max(1, round(share * (length - 2)))
    assert positions is not None and positions.dtype == labels.dtype == inputs.dtype == torch.int64
    assert labels.shape == positions.shape == (batch * labelled,)
    assert torch.all(positions.diff() > 0)
    assert torch.bincount(positions // length, minlength=batch).tolist() == [labelled] * batch
    original = inputs.flatten().scatter(0, positions, labels).view(batch, length)
    assert set(original[:, 0].tolist()) == {2} and set(original[:, -1].tolist()) == {3}
    if share < 0.3:
        assert labels.min() >= 5  # the five special tokens are never masked
    tokens = stream(corpus, "wordpiece", "train")
    blocks = {tuple(tokens[start : start + length - 2]) for start in range(0, len(tokens), length - 2)}
    assert all(tuple(row[1:-1]) in blocks for row in original.tolist())


def test_masks_are_80_10_10(corpus: str) -> None:
    data = masked_data(corpus, batch=64)
    masked = random_token = kept = 0
    per_column = np.zeros(16)
    for step in range(300):
        inputs, positions, labels = data.train_batch(step, 7)
        assert positions is not None
        seen = inputs.flatten()[positions]
        masked += int((seen == 4).sum())
        kept += int((seen == labels).sum())
        random_token += int(((seen != 4) & (seen != labels)).sum())
        assert not ((seen < 5) & (seen != 4)).any()
        per_column += np.bincount(positions.numpy() % 16, minlength=16)
    total = masked + random_token + kept
    for count, share in (masked, 0.8), (random_token, 0.1), (kept, 0.1):
        assert (
            abs(count - share * total) < 5 * (total * share * (1 - share)) ** 0.5 + 0.002 * total
        )  # a random token may be right
    assert per_column[0] == per_column[-1] == 0
    assert per_column[1:-1].min() > 0.8 * per_column[1:-1].max()


@pytest.mark.parametrize("make", [bytes_data, masked_data])
def test_validation_is_fixed_and_of_other_documents(corpus: str, make: Any) -> None:
    data = make(corpus)
    batches = data.validation_batches()
    assert len(batches) == 2
    data.train_batch(3, 3)
    assert all(same(a, b) for a, b in zip(batches, make(corpus).validation_batches(), strict=True))
    kind = "bytes" if make is bytes_data else "wordpiece"
    tokens = stream(corpus, kind, "validation")
    assert (data.validation_tokens, data.train_tokens) == (len(tokens), len(stream(corpus, kind, "train")))
    width = 16 if kind == "bytes" else 14
    blocks = {tuple(tokens[start : start + width]) for start in range(0, len(tokens), width)}
    for inputs, positions, labels in batches:
        rows = inputs if positions is None else inputs.flatten().scatter(0, positions, labels).view(4, 16)[:, 1:-1]
        assert {tuple(row) for row in rows.tolist()} <= blocks
    assert len({tuple(row) for batch in batches for row in batch.inputs.tolist()}) == 8


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("make", [bytes_data, masked_data])
def test_a_held_out_split_is_read_whole(corpus: str, make: Any, split: Any) -> None:
    """Every block once, each label with its document; the last batch is smaller."""
    data = make(corpus, batch=5)
    kind = "bytes" if make is bytes_data else "wordpiece"
    tokens = stream(corpus, kind, split)
    assert getattr(data, f"{split}_tokens") == len(tokens)
    separator = data.source.vocabulary.separator
    batches = list(data.held_out_batches(split))
    assert [len(each.batch.inputs) for each in batches[:-1]] == [5] * (len(batches) - 1)
    stride = 16 if kind == "bytes" else 14
    block = 0
    for (inputs, positions, labels), documents in batches:
        assert len(documents) == len(labels)
        places = torch.arange(inputs.numel()) if positions is None else positions
        for place, label, document in zip(places.tolist(), labels.tolist(), documents.tolist(), strict=True):
            row, position = divmod(place, 16)
            at = (block + row) * stride + position + (1 if kind == "bytes" else -1)
            assert tokens[at] == label and tokens[:at].count(separator) == document
        block += len(inputs)
    assert block == (len(tokens) - 1) // 16 if kind == "bytes" else len(tokens) // 14
    again = list(make(corpus, batch=5).held_out_batches(split))
    assert all(same(a.batch, b.batch) for a, b in zip(batches, again, strict=True))


def test_parts_of_a_held_out_batch_are_the_batch(corpus: str) -> None:
    for data in bytes_data(corpus, batch=8), masked_data(corpus, batch=8):
        whole = next(data.held_out_batches("test"))
        parts = list(whole.parts(3))
        assert [len(part.batch.inputs) for part in parts] == [3, 3, 2]
        assert torch.equal(torch.cat([part.batch.inputs for part in parts]), whole.batch.inputs)
        assert torch.equal(torch.cat([part.batch.labels for part in parts]), whole.batch.labels)
        assert np.concatenate([part.documents for part in parts]).tolist() == whole.documents.tolist()
        for part in parts:
            if part.batch.positions is not None:  # of the part's own rows
                assert part.batch.positions.max() < part.batch.inputs.numel()
                assert (part.batch.inputs.flatten()[part.batch.positions] == 4).float().mean() > 0.4  # [MASK]


def test_of_a_large_split_so_many_tokens_are_read_as_the_bound_says(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growbench.data.text.MOST_HELD_OUT", 320)
    data = bytes_data(corpus, batch=8)
    batches = list(data.held_out_batches("validation"))
    assert sum(len(each.batch.inputs) for each in batches) == 20
    documents = np.concatenate([each.documents for each in batches])
    assert documents.min() == 0 and documents.max() >= data.validation_tokens // 400  # from all over the split


def test_a_source_reads_in_another_order_than_its_target(corpus: str) -> None:
    """The same blocks, and other batches at every step of every epoch, whatever the seed: no stream is a shifted other one."""
    for kind, objective in ("bytes", "causal"), ("wordpiece", "masked"):
        target, source = (load(config(corpus), objective, kind, 4, which) for which in ("target", "source"))  # type: ignore[arg-type]
        blocks = len(target.train_blocks)
        steps = range(3 * blocks // 4)
        for seed in (0, 1):
            rows = [[data.train_batch(step, seed).inputs for step in steps] for data in (target, source)]
            assert not any(torch.equal(a, b) for a, b in zip(*rows, strict=True))
        own, others = ({tuple(row) for inputs in each for row in inputs[:, 1:].tolist()} for each in rows)
        assert objective == "masked" or own == others  # after three epochs
        assert all(same(a, b) for a, b in zip(target.validation_batches(), source.validation_batches(), strict=True))


def test_short_validation_gives_fewer_batches_and_says_so(corpus: str) -> None:
    data = bytes_data(corpus, evaluation_batches=10_000)
    assert 0 < len(data.validation_batches()) < 10_000
    assert data.describe()["evaluation_batches"] == len(data.validation_batches())
    assert json.loads(json.dumps(data.describe())) == data.describe()


def test_batches_are_cheap(corpus: str) -> None:
    for data in bytes_data(corpus, 32), masked_data(corpus, 32):
        data.train_batch(0, 0)
        seconds = []
        for step in range(100):
            started = time.perf_counter()
            data.train_batch(step, 0)
            seconds.append(time.perf_counter() - started)
        assert sorted(seconds)[50] < 1e-3


# --- tokenizers


@pytest.fixture(scope="module")
def bytes_tokenizer(corpus: str) -> Tokenizer:
    return Tokenizer.from_file(str(token_cache.prepare(config(corpus), "causal", "bytes").tokenizer_file))


@settings(deadline=None)
@given(text=st.text())
def test_bytes_round_trip(bytes_tokenizer: Tokenizer, text: str) -> None:
    assert bytes_tokenizer.decode(bytes_tokenizer.encode(text).ids, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=15)
@given(kind=st.sampled_from(["wordpiece", "bytes"]), size=st.integers(258, 700), texts=st.lists(st.text(), max_size=5))
def test_trained_vocabulary_is_at_most_what_was_asked(kind: Any, size: int, texts: list[str]) -> None:
    tokenizer, vocabulary = train(kind, size, True, [*make_documents(20), *texts])
    assert vocabulary.size == tokenizer.get_vocab_size() <= size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocabulary.size))


def test_small_vocabulary_and_small_corpus(tmp_path: Path) -> None:
    _, vocabulary = train("wordpiece", 32, True, make_documents())
    assert vocabulary.size == 32
    corpus = f"files:{write(tmp_path / 'a.txt', ['a b c d e f g ' * 40] * 40)}"
    data = bytes_data(corpus, vocabulary=5000)
    assert data.vocabulary == 5000 and data.describe()["tokenizer"]["tokens"] < 5000


def _trained(kind: Any) -> str:
    return train(kind, 400, True, make_documents())[0].to_str()


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_training_a_tokenizer_is_deterministic(kind: Any) -> None:
    assert _trained(kind) == _trained(kind)


def test_special_tokens_in_a_document_are_plain_text(tmp_path: Path) -> None:
    texts = ["say [MASK] and [SEP] and <|endoftext|> " * 20] * 60
    corpus = f"files:{write(tmp_path / 'a.txt', texts)}"
    assert (token_cache.prepare(config(corpus), "causal", "bytes").train == 0).sum() == 54
    assert (token_cache.prepare(config(corpus), "masked", "wordpiece").train < 5).sum() == 54


def test_named_tokenizer_from_a_folder(corpus: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer, _ = train("wordpiece", 300, True, make_documents())
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "full")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, sep_token="[SEP]").save_pretrained(tmp_path / "no_mask")
    data = masked_data(corpus, vocabulary=0, tokenizer=str(tmp_path / "full"))
    assert data.vocabulary == 300
    original = data.train_batch(0, 0)
    assert set(original.inputs[:, 0].tolist()) == {2} and set(original.inputs[:, -1].tolist()) == {3}
    assert bytes_data(corpus, vocabulary=0, tokenizer=str(tmp_path / "no_mask")).vocabulary == 300
    with pytest.raises(UsageError, match="has no mask token"):
        named(str(tmp_path / "no_mask"), masked=True)
    with pytest.raises(UsageError, match="cannot be loaded"):
        named(str(tmp_path / "missing"), masked=True)


def test_a_changed_tokenizer_in_the_same_folder_is_noticed(corpus: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    sizes = []
    for size in (200, 300):
        tokenizer, _ = train("wordpiece", size, True, make_documents())
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, sep_token="[SEP]").save_pretrained(tmp_path)
        sizes.append(bytes_data(corpus, vocabulary=0, tokenizer=str(tmp_path)).vocabulary)
    assert sizes == [200, 300]


def test_too_small_a_vocabulary(corpus: str) -> None:
    assert (
        message(config(corpus, vocabulary=100), "causal", "bytes", 4) == "vocabulary = 100: a bytes tokenizer needs at least 258"
    )


# --- the cache


def test_unchanged_corpus_is_read_from_the_cache_and_a_changed_one_is_not(tmp_path: Path, own_cache: Path) -> None:
    path = write(tmp_path / "a.txt", make_documents())
    first = bytes_data(f"files:{path}")
    (folder,) = own_cache.iterdir()
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {file.name for file in written} == {"train.bin", "validation.bin", "test.bin", "tokenizer.json", "meta.json"}
    path.touch()
    again = bytes_data(f"files:{path}", sequence_length=8)
    assert again.fingerprint == first.fingerprint
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    write(path, make_documents(seed=1))
    changed = bytes_data(f"files:{path}")
    assert changed.fingerprint != first.fingerprint
    assert len(list(own_cache.iterdir())) == 2
    masked_data(f"files:{path}")
    assert len(list(own_cache.iterdir())) == 3


def test_prepared_tokens_are_carried_to_where_their_corpus_is_not(tmp_path: Path, own_cache: Path) -> None:
    """Batches are those of the corpus. What is damaged, or is not there, is said in one line."""
    corpus = write(tmp_path / "a.txt", make_documents())
    there, causal = masked_data(f"files:{corpus}"), bytes_data(f"files:{corpus}").source.tokenizer_file.parent
    carried = there.source.tokenizer_file.parent.rename(tmp_path / "carried")
    corpus.unlink()
    here = masked_data(f"tokens:{carried}", vocabulary=0)
    assert same(there.train_batch(3, 0), here.train_batch(3, 0))
    assert here.vocabulary == there.source.vocabulary.size
    assert here.fingerprint != there.fingerprint
    assert "no mask token" in message(config(f"tokens:{causal}"), "masked", "bytes", 4)
    assert "no prepared data" in message(config("tokens:nowhere"), "masked", "wordpiece", 4)
    with pytest.raises(UsageError, match="no documents"):
        config(f"tokens:{carried}", documents=9)
    (carried / "train.bin").write_bytes((carried / "train.bin").read_bytes()[:-2])
    assert "train.bin is damaged" in message(config(f"tokens:{carried}"), "masked", "wordpiece", 4)


def test_failed_preparation_leaves_nothing(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", make_documents())

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(token_cache, "_encode", interrupted)
        bytes_data(f"files:{path}")
    assert list(own_cache.iterdir()) == []
    assert bytes_data(f"files:{path}").train_tokens > 0


def test_concurrent_preparations(tmp_path: Path, own_cache: Path) -> None:
    corpus = f"files:{write(tmp_path / 'a.txt', make_documents())}"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: bytes_data(corpus).train_tokens, range(2)))
    assert results == [bytes_data(corpus).train_tokens] * 2
    assert len(list(own_cache.iterdir())) == 1


def test_large_corpus_is_tokenized_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = f"files:{write(tmp_path / 'a.jsonl', make_documents())}"
    monkeypatch.setattr(token_cache, "SAMPLE_CHARACTERS", 20_000)
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 3_000)
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "cache"))
    prepared = token_cache.prepare(config(corpus), "causal", "bytes")
    assert prepared.documents == 240
    assert prepared.train.tolist() == stream(corpus, "bytes", "train")


def prepared_bytes(folder: Path) -> dict[str, bytes]:
    """What a preparation left, but for the time."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def in_small_chunks(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(token_cache, "SAMPLE_CHARACTERS", 20_000)
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 3_000)
    monkeypatch.setattr(token_cache, "FEW_CHUNKS", few)


@pytest.mark.parametrize("kind", ["bytes", "wordpiece"])
def test_worker_processes_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    corpus = f"files:{write(tmp_path / 'a.jsonl', make_documents())}"
    made = []
    for name, few, cores in ("here", 1000, 2), ("workers", 4, 3), ("one core", 4, 1):
        monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / name))
        in_small_chunks(monkeypatch, few)
        monkeypatch.setattr(token_cache.processes, "cores", lambda cores=cores: cores)
        token_cache.prepare(config(corpus), "masked", kind)
        (folder,) = (tmp_path / name).iterdir()
        made.append(prepared_bytes(folder))
    assert made[0] == made[1] == made[2]


UNGUARDED = """
from growbench.config.schema import TextConfig
from growbench.data import tokens
tokens.SAMPLE_CHARACTERS, tokens.CHUNK_CHARACTERS, tokens.processes.cores = 20_000, 3_000, lambda: 2
tokens.prepare(TextConfig(corpus="files:{corpus}", sequence_length=16, vocabulary=300), "causal", "bytes")
"""


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    """Its worker processes run it again, and would wait for the lock of the process that waits for them."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(corpus=write(tmp_path / "a.jsonl", make_documents())))
    environment = {**os.environ, "GROWBENCH_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert 'outside of `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]
    assert ended.stderr.count("Traceback") == 2  # the error and its cause; none of the workers


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up after it."""


@pytest.mark.parametrize("source", ["files", "hub"])
def test_an_interrupted_preparation_goes_on_where_it_was(
    tmp_path: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    in_small_chunks(monkeypatch, 1000)
    corpus = f"hub:{hub_folder}" if source == "hub" else f"files:{write(tmp_path / 'a.parquet', make_documents())}"
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "whole"))
    whole = token_cache.prepare(config(corpus, documents=200), "causal", "bytes")
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "parts"))
    encoded, most = list[int](), list[int]()
    encode, write_json = token_cache.Encoder.__call__, token_cache._write

    def counted(self: Any, chunk: Any) -> Any:
        encoded.extend(range(chunk.first, chunk.first + len(chunk.documents)))
        return encode(self, chunk)

    def killed(file: Path, values: dict[str, Any]) -> None:
        if file.name == token_cache.PROGRESS and len(encoded) > most[-1]:
            raise Killed  # the tokens are written, but not yet that they are
        write_json(file, values)

    monkeypatch.setattr(token_cache.Encoder, "__call__", counted)
    monkeypatch.setattr(token_cache, "_write", killed)
    for stop in (40, 90, 150):
        most.append(stop)
        with pytest.raises(Killed):
            token_cache.prepare(config(corpus, documents=200), "causal", "bytes")
    monkeypatch.setattr(token_cache.tokenizers, "train", None)  # is not called again
    most.append(1000)
    (unfinished,) = (tmp_path / "parts").glob("*.preparing")
    (unfinished / "progress.json.0123abcd.part").touch()  # a draft, as a kill leaves one
    parts = token_cache.prepare(config(corpus, documents=200), "causal", "bytes")
    assert prepared_bytes(parts.tokenizer_file.parent) == prepared_bytes(whole.tokenizer_file.parent)
    assert parts.documents == 200 and len(encoded) < 200 + 3 * 20  # a chunk has about ten documents
    assert len(list((tmp_path / "parts").iterdir())) == 1


def prepare_slowly(arguments: Sequence[str]) -> int:
    """Many small chunks, so that there is a middle to be killed in."""
    folder, corpus = arguments
    os.environ["GROWBENCH_CACHE"] = folder
    token_cache.CHUNK_CHARACTERS, token_cache.SAMPLE_CHARACTERS = 3_000, 20_000
    token_cache.prepare(config(corpus), "causal", "bytes")
    return 0


def test_preparations_that_are_killed_or_run_at_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = f"files:{write(tmp_path / 'a.jsonl', make_documents(2000))}"
    arguments = [str(own_cache), corpus]
    first = start(arguments, prepare_slowly).process
    while not (found := list(own_cache.glob(f"*.preparing/{token_cache.PROGRESS}"))):
        assert first.exitcode is None
        time.sleep(0.01)
    first.kill()
    first.join()
    done = json.loads(found[0].read_text())["documents"]
    assert 0 < done < 2000
    assert ended([start(arguments, prepare_slowly) for _ in "12"]) == [("", "")] * 2
    (folder,) = own_cache.iterdir()
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "undisturbed"))
    monkeypatch.setattr(token_cache, "SAMPLE_CHARACTERS", 20_000)
    undisturbed = token_cache.prepare(config(corpus), "causal", "bytes").tokenizer_file.parent
    assert prepared_bytes(folder) == prepared_bytes(undisturbed)


@pytest.mark.parametrize("source", ["files", "hub"])
def test_the_first_documents_only(
    tmp_path: Path, hub_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    texts = make_documents()
    path = write(tmp_path / "a.jsonl", [*texts[:100], "  ", *texts[100:]])
    corpus = f"hub:{hub_folder}" if source == "hub" else f"files:{path}"
    some = bytes_data(corpus, documents=150)
    alone = bytes_data(f"files:{write(tmp_path / 'b.txt', texts[:150])}")
    assert some.documents == 150 and some.describe()["documents"] == 150
    assert np.array_equal(some.train_blocks, alone.train_blocks)
    assert np.array_equal(some.validation_blocks, alone.validation_blocks)
    whole = bytes_data(corpus)
    assert whole.documents == 240 and bytes_data(corpus, documents=1000).train_tokens == whole.train_tokens
    assert len(list(own_cache.iterdir())) == 4
    if source == "files":
        path.write_text(path.read_text() + "\nmalformed")
        assert bytes_data(corpus, documents=150).documents == 150  # nothing after them is read
        assert "malformed JSON" in message(config(corpus), "causal", "bytes", 4)


def test_the_key_of_a_whole_corpus_says_nothing_of_documents(tmp_path: Path, own_cache: Path) -> None:
    corpus = f"files:{write(tmp_path / 'a.txt', make_documents())}"
    fingerprint = bytes_data(corpus).fingerprint
    settings = f'[3, "{fingerprint}", "causal", ["bytes", 400]]'
    assert [folder.name for folder in own_cache.iterdir()] == [hashlib.sha256(settings.encode()).hexdigest()]


def test_wide_vocabulary_needs_wider_numbers(corpus: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = token_cache.prepare(config(corpus), "causal", "bytes")
    assert narrow.train.dtype == np.uint16 and not narrow.train.flags.writeable
    original = train

    def huge(*arguments: Any) -> Any:
        tokenizer, vocabulary = original(*arguments)
        return tokenizer, dataclasses.replace(vocabulary, size=65537)

    monkeypatch.setattr(token_cache.tokenizers, "train", huge)
    wide = token_cache.prepare(config(corpus, vocabulary=401), "causal", "bytes")
    assert wide.train.dtype == np.uint32


def test_cache_that_cannot_be_written(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "file"))
    assert "cannot write the cache" in message(config(corpus), "causal", "bytes", 4)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROWBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert sources.cache_folder() == Path("/somewhere/growbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert sources.cache_folder() == Path.home() / ".cache" / "growbench"


# --- documents


def test_formats_give_the_same_tokens(tmp_path: Path) -> None:
    texts = make_documents()
    streams = []
    for name in ("a.txt", "a.jsonl", "a.json", "a.parquet", "with [brackets].parquet"):
        corpus = f"files:{write(tmp_path / name, texts)}".replace("[", "[[]")
        assert list(Documents(config(corpus))) == texts
        streams.append(token_cache.prepare(config(corpus), "causal", "bytes").train.tolist())
    assert all(tokens == streams[0] for tokens in streams)


def test_globs(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er" / "b.txt", ["second"])
    write(tmp_path / "deep" / "a.txt", ["first"])
    write(tmp_path / "c.jsonl", ["", " third \n", "fourth"], column="body")
    assert list(Documents(config(f"files:{tmp_path}/deep/**"))) == ["first", "second"]
    both = config(f"files:{tmp_path}/c.jsonl, {tmp_path}/**/*.txt", text_column="body")
    assert list(Documents(both)) == ["third", "fourth", "first", "second"]


def test_text_with_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\nmore\r\n\r\n\r\ntwo\r\n")
    assert list(Documents(config(f"files:{tmp_path}/a.txt"))) == ["one\nmore", "two"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"x", "cannot read files ending in '.csv'; allowed are .txt, .jsonl, .json, .parquet"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"x\0y", "a.txt is binary"),
        ("a.txt", b"\xff\xfe\xfa", "a.txt is not UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl, line 2: malformed JSON"),
        ("a.jsonl", b'["a"]', "a.jsonl, line 1: every line must be one JSON object"),
        ("a.jsonl", b'{"body": "a", "title": "b"}', "no column text_column = 'text'; there are 'body', 'title'"),
        ("a.jsonl", b'{"text": 3}', "column 'text' holds int, not text"),
        (
            "a.jsonl",
            b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
            "a.jsonl, line 1: malformed JSON (a number is too long, or",
        ),
        ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 10**5 + b"}", "a.jsonl, line 1: malformed JSON (a number is too long, or"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\udcff"}', "a.jsonl, line 2: column 'text' holds half a character"),
        ("a.parquet", b"not parquet", "a.parquet"),
        ("a.txt", b"\n\n", "has 0 training tokens"),
        ("a.txt", b"too short", "has 0 training tokens; one batch of 4 sequences of 16 needs 65"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in message(config(f"files:{tmp_path}/{name}"), "causal", "bytes", 4)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no file matches" in message(config(f"files:{tmp_path}/*.txt"), "causal", "bytes", 4)


def test_missing_parquet_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["a"], column="body")
    assert "there are 'body', 'number'" in message(config(f"files:{tmp_path}/a.parquet"), "causal", "bytes", 4)


def test_too_small_corpus(corpus: str) -> None:
    assert "training tokens; one batch of 100000 sequences of 16 needs 1400000" in message(
        config(corpus), "masked", "wordpiece", 100_000
    )
    batch = token_cache.prepare(config(corpus), "causal", "bytes").validation.size // 16 + 1
    assert "validation tokens; one batch of" in message(config(corpus), "causal", "bytes", batch)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    (tmp_path / "set" / "data").mkdir(parents=True)
    write(tmp_path / "set" / "data" / "train.jsonl", make_documents())
    write(tmp_path / "set" / "data" / "test.jsonl", make_documents(3, seed=9))
    return tmp_path / "set"


def test_hub_layout_in_a_local_folder(hub_folder: Path, corpus: str) -> None:
    data = bytes_data(f"hub:{hub_folder}")
    assert data.documents == 240 and data.train_tokens == bytes_data(corpus).train_tokens
    write(hub_folder / "data" / "train.jsonl", make_documents(seed=1))
    assert bytes_data(f"hub:{hub_folder}").fingerprint != data.fingerprint


def test_hub_errors(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def no_network(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(HfApi, "dataset_info", no_network)
    expected = "corpus = 'hub:some/set:en': cannot be read (Name or service not known)"
    assert message(config("hub:some/set:en"), "causal", "bytes", 4) == expected
    assert "must be hub:NAME[:CONFIG]" in message(config("hub:"), "causal", "bytes", 4)
    assert "there are 'text', 'number'" in message(config(f"hub:{hub_folder}", text_column="body"), "causal", "bytes", 4)
    assert "'nope'" in message(config(f"hub:{hub_folder}:nope"), "causal", "bytes", 4)


def test_without_the_hub_the_version_that_was_read_last_is_taken(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was prepared from it is then found in the cache: a machine without network can train on it."""
    from huggingface_hub import HfApi

    from growbench.data.sources import Hub, newest_commit

    def no_network(*_: Any) -> None:
        raise ConnectionError("Name or service not known")

    answers = iter(["abc", "def"])
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_: SimpleNamespace(sha=next(answers)))
    hub = Hub.of("some/other set")
    found = hub.fingerprint("text")
    assert found == hub.fingerprint("text"), "asked once"
    monkeypatch.setattr(HfApi, "dataset_info", no_network)
    newest_commit.cache_clear()  # another process
    assert hub.fingerprint("text") == found
    assert "Name or service not known): using the version that was read last" in capsys.readouterr().err


def test_wikipedia_sample() -> None:
    pytest.importorskip("gensim")
    articles = list(Documents(config("wikipedia-sample")))
    assert len(articles) == 101
    assert sum(map(len, articles)) == 2_562_200
    assert "Anarchism" in articles[0]


def test_missing_gensim(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growbench.data.sources.find_spec", lambda _: None)
    assert 'pip install "growbench[samples]"' in message(config("wikipedia-sample"), "causal", "bytes", 4)


class PanicException(BaseException):
    """As Rust code raises it in Python."""


def test_a_tokenizer_that_gives_up_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as one whose regular expression backtracks for ever. Any other end of the program stays one."""

    def raising(error: type[BaseException]) -> None:
        def encode(documents: list[str], add_special_tokens: bool) -> None:
            raise error("retry-limit-in-match over")

        monkeypatch.setattr(token_cache, "_tokenizer", lambda file: SimpleNamespace(encode_batch_fast=encode))

    chunk, encode = token_cache.Chunk(7, ["a", "b"], None), token_cache.Encoder(tmp_path, 0, "uint16")
    raising(PanicException)
    with pytest.raises(UsageError, match=r"cannot encode documents 7 to 8 \(retry-limit-in-match over\)"):
        encode(chunk)
    raising(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        encode(chunk)
