"""CSV files and Markdown from hostile names hold no formula, link or cell of their own, and all of it comes back."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growbench import report
from growbench.console import lasting_streams
from growbench.report import sheets
from growbench.report.parts import markdown_table
from tests.report.results import METHODS, write_results

FORMULAS = [
    '=HYPERLINK("http://example.org";"a")', "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1+1)", "\t=1+1", "\r=1+1", "=1",
    "-a", "--1", "-1-1", "=-1", "'=1", "''-a", "+1+1",
]  # fmt: skip
PLAIN = ["ligo", "=", "-", "", "a=b", "'a", "-0.5", "+1e-3", "-1", "1", "−12 %", "-inf", "0x10"]


def cells(text: str) -> list[list[str]]:
    """As any reader of CSV has them."""
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("value", FORMULAS)
def test_a_text_is_no_formula(value: str) -> None:
    safe = "'" + value.replace("\r", "\n")
    assert cells(sheets.text(pd.DataFrame({value: [value]}))) == [[safe], [safe]]


@pytest.mark.parametrize("value", PLAIN)
def test_other_texts_and_numbers_stay_as_they_are(value: str) -> None:
    assert cells(sheets.text(pd.DataFrame({"a": [value, "x"]})))[1] == [value]


def test_numbers_are_those_of_pandas() -> None:
    columns = {"a": [-1.5, 2.25, math.nan], "b": [-1, 2, 3], "c": [-1, None, "x"], "d": [True, False, True]}
    table = pd.DataFrame({**columns, "e": pd.Series([-1, None, 2], dtype=object)})
    assert sheets.text(table) == table.to_csv(index=False)
    assert sheets.text(table, float_format="%.5f") == table.to_csv(index=False, float_format="%.5f")


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r")) | st.sampled_from(
    [text for text in FORMULAS + PLAIN if "\r" not in text]
)


@settings(max_examples=40)
@given(st.lists(texts, min_size=1, max_size=4), texts)
def test_every_text_comes_back(values: list[str], head: str) -> None:
    table = pd.DataFrame({f"x{head}": values, "b": ["b"] * len(values)})
    back = sheets.restored(sheets.text(table))
    assert back.values.tolist() == table.values.tolist() and list(back) == list(table)


def test_a_reports_files_hold_no_formula(tmp_path: Path) -> None:
    """With a hostile method, phase and hardware, in every CSV file."""
    folder = write_results(tmp_path / "one", 2)
    for path in folder.glob("stackbert-*/run.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for phase in record["phases"]:
            phase["name"] = "=1+1"
        path.write_text(json.dumps(record | {"method": "@SUM(A1)"}), encoding="utf-8")
    for path in folder.glob("stackbert-*/curve.jsonl"):
        rows = [json.loads(line) | {"phase": "=1+1"} for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report.make(folder)
    files = list((folder / "report").glob("*.csv"))
    found = {cell for file in files for row in cells(file.read_text(encoding="utf-8")) for cell in row}
    assert {"'=1+1", "'@SUM(A1)"} <= found
    assert not {cell for cell in found if cell[:1] in "=@+" and len(cell) > 1}


def test_a_damaged_file_of_trials_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "one", 2)
    (folder / "tuning").mkdir()
    for content in (b"\xff\xfe", b"method,trial,seeds,status,loss,flops\nligo,0,0,finished,x,1\n"):
        (folder / "tuning" / "trials.csv").write_bytes(content)
        report.make(folder)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and "trials.csv cannot be read, and is left out" in said[0]


def test_a_name_in_markdown_is_a_name() -> None:
    name = "<script>alert(1)</script> ![x](http://example.org/x.png) a|b\nc"
    head, _, row = markdown_table([name, "b"], [[name, "< 40 %"]]).splitlines()
    safe = "&lt;script>alert(1)&lt;/script> ![x]\\(http://example.org/x.png) a\\|b c"
    assert head == f"| {safe} | b |" and row == f"| {safe} | < 40 % |"


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has a report of its own; the board leaves it out by name."""
    methods = {name: METHODS[name] for name in ("scratch", "ligo")}
    folder = write_results(tmp_path / os.fsdecode(b"caf\xe9"), 2, methods)
    write_results(tmp_path / "two", 2, methods)
    assert report.make(folder).is_file()
    with lasting_streams():
        pages = report.make_all(tmp_path)
    assert pages == [tmp_path / "two" / "report" / "index.html", tmp_path / "report" / "index.html"]
    said = capsys.readouterr().err
    assert "its name is not UTF-8: rename the folder" in said and said.count("\n") == 1
