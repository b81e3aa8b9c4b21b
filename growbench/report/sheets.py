"""Tables as CSV files that people open in spreadsheets, which run a text that looks like a formula.

Such a text gets an apostrophe in front, by which spreadsheets recognise a text; `read` takes it off again. Numbers stay as they
are. Every line break within a cell becomes a line feed.
"""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\n].", re.DOTALL)  # with apostrophes in front, so that every text can be restored


def text(table: pd.DataFrame, **options: Any) -> str:
    """The table as CSV without its index. `options`: of pandas."""
    safe = table.rename(columns=_escaped)
    for column, dtype in enumerate(safe.dtypes):
        if dtype.kind not in "biufc":
            cells = [_escaped(value) for value in safe.iloc[:, column]]
            safe.isetitem(column, pd.array(cells, dtype=object))
    csv: str = safe.to_csv(index=False, **options)
    return csv.encode("utf-8", "backslashreplace").decode("utf-8")  # of a file's name that is not UTF-8


def write(table: pd.DataFrame, file: Path, **options: Any) -> None:
    """Write the table to a file. Raises OSError if it cannot be written."""
    file.write_text(text(table, **options), encoding="utf-8", newline="")


def read(file: Path) -> pd.DataFrame:
    """A written table, every cell as text; empty cells are empty texts. Raises ValueError or OSError if it cannot be read."""
    return restored(file.read_text(encoding="utf-8"))


def restored(csv: str) -> pd.DataFrame:
    """The inverse of `text`, as `read` gives it. Raises ValueError for what is not a table."""
    found = pd.read_csv(StringIO(csv), dtype=str, keep_default_na=False)
    return found.map(_restored).rename(columns=_restored)


def _escaped(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = re.sub("\r\n?", "\n", value)  # a carriage return would begin a row of its own
    return f"'{value}" if FORMULA.match(value) and not _is_number(value) else value


def _restored(value: str) -> str:
    return value[1:] if value.startswith("'") and FORMULA.match(value) else value


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return value[0] not in "\t\n"
