"""The stamp that `growbench reproduce` leaves beside a run: which code has made its curve again, where, and how exactly."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import growbench
from growbench.costs.hardware import Hardware
from growbench.runs.records import RunConfig, RunRecord

FILE = "reproduced.json"
VERSIONED = ("growbench", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What made a run again, as far as it was made."""

    date: str  # YYYY-MM-DD
    versions: Mapping[str, str]
    hardware: Hardware
    steps: int  # that were trained again, from the first
    evaluations: int  # that were compared
    largest_difference: float  # of the losses, nats; 0 if they are bit-identical
    origin: str  # of the method, today
    config: RunConfig  # the run's own, as the code of today writes it

    def covers(self, record: RunRecord) -> bool:
        """Whether so many steps show that the code of today makes the run: all growth lies behind, and a step more."""
        return self.steps > (record.phases[-1].first_step if record.phases else 0)

    def write(self, folder: Path) -> None:
        draft = folder / f"{FILE}.part"
        draft.write_text(json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(draft, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Stamp | None:
        """The stamp in a run's folder, or None if there is none. Raises ValueError for a file that is no stamp."""
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            return _reader().validate_json(file.read_bytes(), strict=True)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ValueError(f"{FILE}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error


@cache
def _reader() -> TypeAdapter[Stamp]:
    return TypeAdapter(Stamp)


def versions() -> dict[str, str]:
    """Of what a run's outcome may depend on, and the commit of growbench."""
    return {"python": platform.python_version(), **{package: version(package) for package in VERSIONED}, "commit": commit()}


@cache
def commit() -> str:
    """The commit of growbench's code, with "-dirty" if it was changed since; "unknown" outside of its repository."""
    package = Path(growbench.__file__).parent
    if _git("ls-files", "--error-unmatch", str(package / "__init__.py")) is None:  # in another one's repository, perhaps
        return "unknown"
    changed = _git("status", "--porcelain", "--", str(package), str(package.parent / "methods"))
    return f"{_git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"


def _git(*arguments: str) -> str | None:
    """What git answers, or None if it is not there or fails."""
    try:
        folder = str(Path(growbench.__file__).parent)
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
