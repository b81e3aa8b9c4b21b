"""The record in a run's run.json, typed. Records of earlier versions are read too."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import growbench
from growbench.config import plain
from growbench.config.schema import Published
from growbench.costs.accounts import CHARGED, Account, Ledger, Part, Unit
from growbench.costs.hardware import Hardware
from growbench.training.records import Amount, PhaseRecord

SCHEMA_VERSION = 3  # version 1 was stored without a number; version 2 had no losses of whole splits

VERSIONED = ("torch", "transformers", "tokenizers", "numpy")

UNKNOWN_ORIGIN = "unknown"  # of runs stored before origins were recorded


class RunStatus(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # the same command resumes it


@dataclass(frozen=True)
class Cost:
    """What something cost in each unit."""

    flops: Amount = None
    seconds: Amount = None

    def of(self, unit: Unit) -> Amount:
        return getattr(self, unit)


@dataclass(frozen=True)
class RunCosts:
    """A run's costs by account. An account that is missing was charged nothing."""

    flops: Mapping[Account, Amount]
    seconds: Mapping[Account, Amount]

    def of(self, unit: Unit, account: Account) -> float:
        """NaN if that is not known."""
        amount = getattr(self, unit).get(account, 0)
        return math.nan if amount is None else amount

    def charged(self, unit: Unit, ledger: Ledger = Ledger.REUSE) -> float:
        """All that a ledger charges. NaN if the cost of the source is charged but not known."""
        own = sum(self.of(unit, account) for account in CHARGED)
        return own + self.of(unit, Account.SOURCE) if ledger == Ledger.BUILD else own

    def with_source(self, cost: Cost) -> RunCosts:
        """These costs with another cost of the source. Where that is not known, the present value stays."""
        stated = {unit: {Account.SOURCE: cost.of(unit)} if cost.of(unit) is not None else {} for unit in Unit}
        return RunCosts({**self.flops, **stated[Unit.FLOPS]}, {**self.seconds, **stated[Unit.SECONDS]})


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run's outcome besides its seed and the code. If it changes, the run is trained again."""

    experiment: Mapping[str, Any]  # growbench.config.schema.Experiment.identity, and the fingerprint of the data
    method: Mapping[str, Any]  # hyperparameters, and tuned values of [train] as "train.lr"
    budget_share: float = 1.0  # of the experiment's budget
    stop_at_loss: float | None = None  # the run ended at its first evaluation at or below it


@dataclass(frozen=True)
class RunError:
    """Why a run failed."""

    step: int | None = None
    message: str = ""
    traceback: str = ""

    def __post_init__(self) -> None:
        for key in ("message", "traceback"):  # of a method: anything, also what is not text
            text = getattr(self, key)
            if isinstance(text, str):
                object.__setattr__(self, key, text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0"))


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json. Fields with a default may be missing in older records.

    `final_val_loss` is the loss on the whole validation split. It does not compare with the losses of curves, which are measured
    on a fixed part of that split: growbench.runs.store.Run.curve_loss does. In records of version 2 and before, it is the last
    loss of the curve. The test loss is for the reader alone: nothing is chosen by it.
    """

    schema_version: int = SCHEMA_VERSION
    status: RunStatus
    experiment: str
    title: str  # of the experiment
    method: str  # its name, or that of a variant
    variant_of: str = ""  # the method's own name, if `method` is that of a variant
    origin: str = UNKNOWN_ORIGIN  # of the method's code
    seed: int
    config: RunConfig
    published: Published | None = None  # the paper's figures for this method and experiment
    cost: RunCosts
    inherited: Cost | None = None  # part of `cost`: spent in the run that this one branches off
    final_val_loss: float | None = None  # nats, on the whole validation split; None: the run has not ended
    final_val_accuracy: float | None = None  # of images, likewise
    final_test_loss: float | None = None  # nats, on the whole test split
    final_test_accuracy: float | None = None  # of images, likewise
    control: bool = False  # its method says that it is one
    keeps_source: bool = False  # the final model contains the source, and is larger than the target
    steps: int
    tokens: int
    parameters: int | None = None  # of the final model
    peak_memory_bytes: int | None = None
    phases: list[PhaseRecord]
    waited_seconds: float | None = None  # of its steps, for data
    energy_kwh: Mapping[Part, Mapping[Account, float]] = field(default_factory=dict)  # as far as the machine told it
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Hardware
    data: Mapping[str, Any] = field(default_factory=dict)  # for a reader; the fingerprint in `config` decides
    evaluations: int | None = None  # rows of curve.jsonl; None: not recorded
    sha256: Mapping[str, str] = field(default_factory=dict)  # of the files beside it, by name; of curve.jsonl by rows
    error: RunError | None = None

    @property
    def budget_share(self) -> float:
        """The share of the experiment's budget that it trained for."""
        return self.config.budget_share

    @property
    def method_itself(self) -> str:
        """The name that its method has here, whatever a variant of it is called."""
        return self.variant_of or self.method

    def text(self) -> str:
        """As JSON. Raises ValueError for a figure that is not finite."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, text: str) -> RunRecord:
        """The record that a run.json holds. Raises ValueError that says what is wrong with it."""
        found = plain.from_json(text)
        if not isinstance(found, dict) or "status" not in found:
            raise ValueError("is not a run's record: status is missing")
        version = found.get("schema_version", 1)
        if version in (1, 2):
            found = (_renamed(found) if version == 1 else found) | {"schema_version": SCHEMA_VERSION}
        elif version != SCHEMA_VERSION:
            raise ValueError(f"schema_version = {version!r}: this growbench reads up to {SCHEMA_VERSION}")
        try:
            # strict mode turns strings into enums only when it reads JSON; no figure of a run is NaN or infinite
            record = _reader().validate_json(json.dumps(found, allow_nan=False), strict=True)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error
        record._check()
        return record

    def _check(self) -> None:
        """Raise ValueError for figures that no run has."""
        least = {"seed": 0, "steps": 1 if self.status == RunStatus.FINISHED else 0, "tokens": 0}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key} = {getattr(self, key)}: must be at least {value}")
        if not 0 < self.budget_share < math.inf:
            raise ValueError(f"config.budget_share = {self.budget_share}: must be above 0")
        if self.status == RunStatus.FINISHED and self.cost.charged(Unit.FLOPS) <= 0:
            raise ValueError("cost.flops: a run that has finished cost something")


@cache
def _reader() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def _renamed(old: dict[str, Any]) -> dict[str, Any]:
    """A record of version 1 with today's names."""
    new = {key: value for key, value in old.items() if key != "budget"}
    if isinstance(config := old.get("config"), dict):
        names = {"budget": "budget_share", "stop_at": "stop_at_loss"}
        renamed = {names.get(key, key): value for key, value in config.items()}
        new["config"] = {"budget_share": old.get("budget", 1.0)} | renamed
    if isinstance(hardware := old.get("hardware"), dict):
        new["hardware"] = {{"elsewhere": "earlier"}.get(key, key): value for key, value in hardware.items()}
    return new


def versions() -> dict[str, str]:
    """Versions of the packages that a run's outcome may depend on, and growbench's commit."""
    packages = {package: version(package) for package in VERSIONED}
    return {"python": platform.python_version(), "growbench": growbench.__version__, **packages, "commit": commit()}


@cache
def commit() -> str:
    """The commit of growbench's code, with "-dirty" if it was changed since; "unknown" outside of its repository.

    Of a copy without its repository it is what the environment says: GROWBENCH_COMMIT.
    """
    package = Path(growbench.__file__).parent
    if _git("ls-files", "--error-unmatch", str(package / "__init__.py")) is None:  # perhaps in another repository
        return os.environ.get("GROWBENCH_COMMIT", "unknown")
    changed = _git("status", "--porcelain", "--", str(package), str(package.parent / "methods"))
    return f"{_git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"


def _git(*arguments: str) -> str | None:
    """git's output, or None if git is missing or fails."""
    try:
        folder = str(Path(growbench.__file__).parent)
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
