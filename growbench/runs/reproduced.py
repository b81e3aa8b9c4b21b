"""The stamp that `growbench reproduce` writes beside a run: by which code, where, and how exactly it was reproduced."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from growbench.costs.hardware import Hardware
from growbench.files import write_text
from growbench.runs.records import RunConfig, RunRecord

FILE = "reproduced.json"


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """How a run, or its beginning, was reproduced."""

    date: str  # YYYY-MM-DD
    versions: Mapping[str, str]
    hardware: Hardware
    steps: int  # reproduced, from the first one
    evaluations: int  # that were compared
    largest_difference: float  # of the losses, nats; 0 if they are bit-identical
    origin: str  # of the method, today
    config: RunConfig  # the run's own, as the code of today writes it

    def covers(self, record: RunRecord) -> bool:
        """Whether these steps show that today's code makes the run: they reach at least a step beyond its last growth."""
        return self.steps > (record.phases[-1].first_step if record.phases else 0)

    def write(self, folder: Path) -> None:
        write_text(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Stamp | None:
        """The stamp in a run's folder, or None if there is none. Raises ValueError if the file is not a stamp."""
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
