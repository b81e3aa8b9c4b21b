"""Stored runs with one value of another type: each is used or left out in one line, and the others make the report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from growbench import report
from growbench.analysis.comparison import analyse
from growbench.config import plain
from growbench.config.schema import PROTOCOL
from growbench.errors import UsageError
from growbench.report import page
from growbench.runs import jobs, store
from growbench.runs.records import RunError, RunRecord
from growbench.tools import reproduce
from tests.report.results import METHODS, write_results

VALUES: list[Any] = [None, "text", -1, 0, True, 1.5, 10**400, [], {}, {"a": {"b": [1]}}, "\udcff", "\0", ["x", 1]]
DEEP = "[" * 10**5 + "]" * 10**5
RUNS = {name: METHODS[name] for name in ("scratch", "ligo")}


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a record; of a list its first item."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*place, key))


def with_value(record: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    changed = record.copy()
    changed[place[0]] = with_value(record[place[0]], place[1:], value)
    return changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of two methods, with short curves."""
    folder = write_results(tmp_path_factory.mktemp("damaged") / "one", 2, RUNS)
    for file in folder.glob("*/curve.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join([*lines[:-1:20], lines[-1]]), encoding="utf-8")
    return folder


def in_one_line(steps: Iterable[Callable[[], Any]]) -> None:
    """Each does its work, or refuses it in one line that is not too long."""
    said = io.StringIO()
    with redirect_stderr(said):
        for step in steps:
            try:
                step()
            except UsageError as error:
                said.write(f"{error}\n")
    assert all(len(line) < 1000 for line in said.getvalue().splitlines())


def page_of(folder: Path) -> str:
    return page.html(analyse(folder, None), {})


@pytest.mark.parametrize("run", ["ligo-seed1", "scratch-seed1"])
def test_every_field_with_every_type_is_read_or_refused(run: str, folder: Path) -> None:
    """When it is read, or when the experiment and the method are made of it again, as reproduce does."""
    record = json.loads((folder / run / "run.json").read_text(encoding="utf-8"))
    tried = 0
    for place in places(record):
        for value in VALUES:
            tried += 1
            try:
                found = RunRecord.read(json.dumps(with_value(record, place, value)))
            except ValueError as error:
                assert len(str(error)) < 300
                continue
            if place[:1] in (("config",), ("method",), ("hardware",)):
                in_one_line(partial(make, found) for make in (reproduce.experiment_of, reproduce.job_of))
    assert tried > 300


@pytest.mark.parametrize(
    ("run", "place", "value"),
    [
        ("scratch-seed1", ("cost", "flops"), {}),
        ("scratch-seed1", ("cost", "flops", "train"), 0),
        ("scratch-seed1", ("steps",), 0),
        ("scratch-seed1", ("phases",), []),
        ("ligo-seed1", ("seed",), 0),
        ("ligo-seed1", ("config", "experiment"), {}),
        ("ligo-seed1", ("config",), {"experiment": {}, "method": {}, "budget_share": -1}),
    ],
)
def test_a_report_is_made_in_spite_of_it(run: str, place: tuple[Any, ...], value: Any, folder: Path) -> None:
    file = folder / run / "run.json"
    text = file.read_text(encoding="utf-8")
    try:
        file.write_text(json.dumps(with_value(json.loads(text), place, value)), encoding="utf-8")
        assert "ligo" in page_of(folder)
    finally:
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "content", [DEEP, '{"status": ' + DEEP + "}", "", "{", "null", "[]", '{"status": "finished"}', "9" * 10**5]
)
def test_a_record_that_is_none_is_left_out(content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "ligo-seed1" / "run.json"
    text = file.read_text(encoding="utf-8")
    store.say_once.cache_clear()
    try:
        file.write_text(content, encoding="utf-8")
        assert {run.name for run in store.load_all(folder)} == {"scratch-seed0", "scratch-seed1", "ligo-seed0", "source-seed0"}
    finally:
        file.write_text(text, encoding="utf-8")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "ligo-seed1 is left out: run.json cannot be read" in said[0]


@pytest.mark.parametrize("key", ["step", "val_loss", "flops", "seconds", "scored", "phase", "train_loss", "lr", "tokens", "more"])
def test_a_row_with_another_type_ends_the_curve(key: str, folder: Path) -> None:
    """It is an evaluation, or it and what follows are left out; a report is made of what is left."""
    file = folder / "ligo-seed1" / "curve.jsonl"
    text = file.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    try:
        for value in (None, "\udcff", [1], 1e308):
            changed = [{**row, key: value} if index == 2 else row for index, row in enumerate(rows)]
            file.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
            in_one_line([partial(page_of, folder)])
        file.write_text(text.replace("\n", f"\n{DEEP}\n", 1), encoding="utf-8")
        assert len(store.load(folder / "ligo-seed1").curve) == 1  # type: ignore[union-attr]
    finally:
        file.write_text(text, encoding="utf-8")


def test_of_two_folders_with_one_run_one_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "one", 2, RUNS)
    copy = folder / "a-copy"
    copy.mkdir()
    for name in ("run.json", "curve.jsonl"):
        (copy / name).write_bytes((folder / "ligo-seed0" / name).read_bytes())
    report.make(folder)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{copy} is left out: it holds the same run as {folder / 'ligo-seed0'}"]


def test_an_error_that_is_not_text_can_be_stored() -> None:
    error = RunError(1, "half \udcff, NUL \0", "\udcff")
    assert plain.is_text(error.message) and plain.is_text(error.traceback)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + DEEP, "nested more than 50 deep"),
        ("[a" + ".a" * 100 + "]", "a: nested more than 50 deep"),
        ("a = " + "9" * 10**5, "a whole number has more than 18 digits"),
        ("[b]\na = " + "9" * 19, "b.a: a whole number has more than 18 digits"),
        ('a = "\\u0000"', "a = 'a\\x00'"[:3]),
    ],
)
def test_toml_in_bounds(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plain.from_toml(text)


def test_json_in_bounds() -> None:
    assert plain.from_json('{"a": [1, -2, 1.5, "ö"]}') == {"a": [1, -2, 1.5, "ö"]}
    assert plain.from_json(str(2**90 + 1)) == 2**90 + 1, "FLOPs of large models are exact"
    assert plain.from_json("1" + "0" * 30) == 1e30 and isinstance(plain.from_json("1" + "0" * 30), float)
    for wrong in (DEEP, "[" * 60 + "]" * 60):
        with pytest.raises(ValueError, match="nested more than 50 deep"):
            plain.from_json(wrong)
    for wrong in ('"\\udcff"', '{"\\u0000": 1}'):
        with pytest.raises(ValueError, match="holds characters that are not text"):
            plain.from_json(wrong)


@pytest.mark.parametrize(
    ("protocol", "origin", "said"),
    [
        (PROTOCOL, "other", "by other code of its method"),
        (PROTOCOL, "own", "with another configuration"),
        (1, "other", f"under protocol 1, and today's is {PROTOCOL}"),
        (None, "own", f"under protocol 1, and today's is {PROTOCOL}"),
    ],
)
def test_what_differs_is_said_of_a_run_that_is_made_again(protocol: int | None, origin: str, said: str) -> None:
    experiment = {} if protocol is None else {"protocol": protocol}
    run = SimpleNamespace(record=SimpleNamespace(origin=origin, config=SimpleNamespace(experiment=experiment)))
    job = SimpleNamespace(found=SimpleNamespace(origin="own"))
    assert jobs._difference(job, run) == said  # type: ignore[arg-type]
