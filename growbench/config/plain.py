"""Plain values from TOML and JSON, whatever a file holds: too deep, too long or too large is an error of one line."""

from __future__ import annotations

import json
import tomllib
from typing import Any

DEEPEST = 50  # tables and lists within one another
MOST_DIGITS = 18  # of a whole number in TOML: one of 64 bits
MOST_STORED_DIGITS = 30  # of a whole number in JSON: FLOPs have more than 18


def from_toml(text: str) -> dict[str, Any]:
    """The table that a TOML text holds. Raises ValueError in one line."""
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"tables and lists are nested more than {DEEPEST} deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # of Python's limit to the digits that it converts
        raise ValueError(f"a whole number has more than {MOST_DIGITS} digits") from None
    _check(table, MOST_DIGITS)
    return table


def from_json(text: str | bytes) -> Any:
    """The value that a JSON text holds. Whole numbers of up to `MOST_STORED_DIGITS` are exact, longer ones are floats.

    Raises ValueError in one line.
    """
    try:
        value = json.loads(text, parse_int=_number)
    except RecursionError:
        raise ValueError(f"objects and lists are nested more than {DEEPEST} deep") from None
    _check(value, MOST_STORED_DIGITS)
    return value


def _number(digits: str) -> int | float:
    return int(digits) if len(digits.lstrip("-")) <= MOST_STORED_DIGITS else float(digits)


def _check(value: Any, most_digits: int, place: tuple[str, ...] = (), depth: int = 0) -> None:
    """Raise ValueError, naming the key, unless a plain value can be stored, printed, and used as the name of a file."""
    if depth > DEEPEST:
        raise ValueError(f"{''.join(place[:1])}: nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for key in value:
            if not is_text(key):
                raise ValueError(f"a key below {'.'.join(place) or 'the top'} = {_shown(key)}")
        for key, each in value.items():
            _check(each, most_digits, (*place, key), depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check(each, most_digits, place, depth + 1)
    elif isinstance(value, int) and abs(value) >= 10**most_digits:
        raise ValueError(f"{'.'.join(place) or 'the value'}: a whole number has more than {most_digits} digits")
    elif isinstance(value, str) and not is_text(value):
        raise ValueError(f"{'.'.join(place) or 'the value'} = {_shown(value)}")


def _shown(text: str) -> str:
    return f"{ascii(text)[:80]}: holds characters that are not text"


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8, and used as the name of a file: it has no lone surrogates and no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
