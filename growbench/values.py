"""Values on the command line: what is allowed, and what is said of others."""

from __future__ import annotations

import argparse
import math
import sys


def seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or not 0 <= min(seeds) <= max(seeds) < 2**32 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: must be different whole numbers from 0 to 2^32 - 1, such as 0,1,2")
    return seeds


def seed(text: str) -> int:
    first, *others = seeds(text)
    if others:
        raise argparse.ArgumentTypeError(f"{text!r}: must be one whole number")
    return first


def budgets(text: str) -> list[float]:
    try:
        budgets = [float(part) for part in text.split(",")]
    except ValueError:
        budgets = []
    shares = all(0 < share <= 100 for share in budgets)  # false for NaN
    if not shares or 1 not in budgets or min(budgets) == 1 or len(set(budgets)) < len(budgets):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be different shares above 0 and up to 100, with 1 and a smaller one among them"
        )
    return budgets


def names(text: str) -> str:
    if text.rstrip().endswith(","):
        raise argparse.ArgumentTypeError(f"{text!r}: must not end with a comma; write names without spaces, as ligo,bert2bert")
    return text


def assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r}: must be KEY=VALUE, such as partition=gpu")
    return key, value


def steps(text: str) -> int:
    if text == "all":
        return sys.maxsize
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 1, or all")
    return int(text)


def person(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a name of up to 100 printable characters")
    return text.strip()


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 1")
    return int(text)


def repetitions(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 2")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return value
