"""Documents that are too long to be encoded at once are read in parts; a preparation that is interrupted within one continues."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growbench.config.schema import TextConfig
from growbench.data import documents, tokenizer
from growbench.data.documents import Documents, parts

LIMIT = 100  # characters, here


@pytest.fixture(autouse=True)
def lower_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST", LIMIT)


@given(st.text(alphabet="ab \n", max_size=1000))
def test_parts_are_the_text(text: str) -> None:
    found = list(parts(text))
    assert "".join(found) == text
    assert all(0 < len(part) <= LIMIT for part in found) or not text
    assert all(part[0] == " " or " " not in before[LIMIT // 2 :] for before, part in pairwise(found))


def test_a_text_that_is_not_too_long_is_one_part() -> None:
    assert list(parts("a " * (LIMIT // 2))) == ["a " * (LIMIT // 2)]


def corpus(folder: Path, ending: str, texts: list[str]) -> TextConfig:
    file = folder / f"a{ending}"
    if ending == ".txt":
        file.write_text("\n\n".join(texts), encoding="utf-8")
    elif ending == ".jsonl":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    name = f"hub:{folder}" if ending == "hub.parquet" else f"files:{file}"
    return TextConfig(corpus=name, sequence_length=8, vocabulary=300)


LONG = " ".join(f"word{number}" for number in range(200))
TEXTS = ["short", LONG, "x" * 1050, "between", LONG + "\n" + LONG, "last"]


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet", "hub.parquet"])
def test_long_documents_are_read_in_parts(ending: str, tmp_path: Path) -> None:
    """No character but the spaces at the cuts is lost, and no short document changes."""
    found = list(Documents(corpus(tmp_path, ending, TEXTS)))
    assert max(map(len, found)) <= LIMIT
    assert "".join("".join(text.split()) for text in found) == "".join("".join(text.split()) for text in TEXTS)
    assert {"short", "between", "last"} <= set(found)


@pytest.mark.parametrize("ending", [".txt", "hub.parquet"])
def test_reading_continues_within_a_long_document(ending: str, tmp_path: Path) -> None:
    """After every document, as after an interruption there."""
    config = corpus(tmp_path, ending, TEXTS)
    whole = list(Documents(config))
    for read in range(1, len(whole), 3):
        place: Any = None
        found: list[str] = []
        while len(found) < len(whole):  # interrupted again and again
            reading = Documents(config, place)
            texts: Iterator[str] = iter(reading)
            found += taken(texts, read)
            place = json.loads(json.dumps(reading.place()))
        assert found == whole


def taken(texts: Iterator[str], most: int) -> list[str]:
    found = []
    for text in texts:
        found.append(text)
        if len(found) == most:
            break
    return found


def test_memory_does_not_grow_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text file of one line is never in memory as a whole."""
    monkeypatch.setattr(documents, "LONGEST", 10_000)
    (tmp_path / "a.txt").write_text("words " * 500_000, encoding="utf-8")
    config = TextConfig(corpus=f"files:{tmp_path}/a.txt", sequence_length=8, vocabulary=300)
    tracemalloc.start()
    try:
        read = sum(len(text) for text in Documents(config))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read > 2_900_000 and peak < 1_000_000


def test_a_tokenizer_is_trained_on_words_that_are_not_too_long() -> None:
    """Training takes the square of a word's length. Texts without such words are used as they are."""
    shorter = tokenizer._with_shorter_words
    longest = tokenizer.LONGEST_WORD
    text = "a" * (2 * longest + 5) + " b " + "-" * (longest + 1) + "c"
    assert max(map(len, shorter(text).split())) == longest
    assert shorter(text).replace(" ", "") == text.replace(" ", "")
    chinese = "一二三，" * longest
    assert shorter(chinese) == chinese
    assert shorter("a" * longest) == "a" * longest
