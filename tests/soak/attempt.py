"""What every attack has: a folder, a small experiment, growbench in a process of its own, and the judgement of how it ends.

An attack is a function with `@attack(what is done, what must hold)` above it: it gets an Attempt, disturbs growbench, and
returns what happened. It raises NotKept, or any AssertionError, if what must hold did not. Its name is the function's.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from growbench import cli, console
from tests.conftest import MINIATURE, documents
from tests.processes import Started, start
from tests.soak import crash

PATIENCE = 300  # seconds after which a command counts as hanging

# what must hold
UNDISTURBED = "exit code 0, and losses bit-equal to those of an undisturbed run"
REFUSED = "exit code 2 and one line; nothing is trained"
ENDS_OR_RESUMES = "the losses of an undisturbed run, at once or, if it says why it ends, by the same command again"
FAILS_ALONE = "exit code 1; that method is named in one line, all others have the losses of an undisturbed run"
RESUMES = "it says why it ends, without a traceback; the same command then gives the losses of an undisturbed run"

Command = Callable[[Sequence[str]], int]
Losses = dict[str, Any]  # by the name of a run

UNDISTURBED_ONE = threading.Lock()  # while it is trained


class NotKept(AssertionError):
    """What must hold did not. The text says what happened."""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def lines(self, *words: str) -> list[str]:
        """The lines of stderr, but for progress, that hold one of the words; without words: all of them."""
        said = [line for line in self.err.splitlines() if line.strip() and not re.search(r" step +\d+/\d+ ", line)]
        return [line for line in said if not words or any(word in line for word in words)]


def nothing() -> None:
    """Disturb nothing."""


@dataclass
class Attempt:
    """A folder to attack in. `shared`: a folder for what all attempts of a series have in common: the cache, undisturbed runs."""

    folder: Path
    shared: Path
    environment: dict[str, str | None] = field(default_factory=dict)  # None: not set

    def __post_init__(self) -> None:
        for folder in self.folder, self.shared:
            folder.mkdir(parents=True, exist_ok=True)
        self.results = self.folder / "results"
        self.corpus = self.shared / "corpus.txt"
        if not self.corpus.exists():
            self.corpus.write_text(documents(), encoding="utf-8")
        self.environment = {"GROWBENCH_CACHE": str(self.shared / "cache")} | self.environment
        self.experiment = self.write()

    def write(self, name: str = "miniature.toml", architecture: str = "gpt2", corpus: object = None) -> Path:
        """An experiment file."""
        path = self.folder / name
        path.write_text(MINIATURE.format(architecture=architecture, corpus=corpus or self.corpus), encoding="utf-8")
        return path

    def growbench(self, *arguments: object, before: Callable[[], object] = nothing, carry_out: Command = crash.growbench) -> Said:
        """Run a command in a process of its own, in which `before` is called first. Raises NotKept if it hangs."""
        process, out, err = self.start(*arguments, before=before, carry_out=carry_out)
        with ThreadPoolExecutor(2) as pool:  # a process whose pipe is full would wait for its reader
            texts = [pool.submit(stream.buffer.read) for stream in (out, err)]
            process.join(timeout=PATIENCE)
            if process.exitcode is None:
                process.kill()
                raise NotKept("hangs")
            said = (text.result().decode("utf-8", "backslashreplace") for text in texts)  # names of files may be in it
            return Said(process.exitcode, *map(self._without_what_varies, said))

    def _without_what_varies(self, text: str) -> str:
        """Folders, times and the numbers of checkpoints, which differ each time, are left out."""
        text = text.replace(str(self.folder), "DIR").replace(str(self.shared), "SHARED")
        for varies, name in (
            (r"[\d.]+ s of training", "T s of training"),
            (r"-step-\d+", "-step-N"),
            (r"\.[0-9a-f]{8}\.part", ".part"),
        ):
            text = re.sub(varies, name, text)
        return text

    def start(self, *arguments: object, before: Callable[[], object] = nothing, carry_out: Command = crash.growbench) -> Started:
        """The same, still under way."""
        return start([str(argument) for argument in arguments], partial(_carry_out, self.environment, before, carry_out))

    def run(self, *options: object, before: Callable[[], object] = nothing) -> Said:
        """`growbench run` of the experiment: scratch, bert2bert and its source, unless other methods are asked for."""
        methods = () if "--methods" in options else ("--methods", "bert2bert")
        return self.growbench("run", self.experiment, *methods, "--results", self.results, *options, before=before)

    def undisturbed(self, *options: object) -> Losses:
        """The losses of the same experiment and options when nothing disturbs; trained once for all attempts."""
        alone = Attempt(self.shared / "alone" / re.sub(r"\W+", "-", f"run {' '.join(map(str, options))}"), self.shared)
        with UNDISTURBED_ONE:
            if not alone.results.exists():
                said = alone.run(*options)
                assert said.code == 0, said
        return losses(alone.results)

    def finished(self, said: Said, *options: object) -> str:
        """It ended with exit code 0, without a traceback, and with the losses of an undisturbed run."""
        no_traceback(said)
        if said.code != 0:
            raise NotKept(f"exit code {said.code}: {brief(said)}")
        self.compare(self.undisturbed(*options))
        return "exit code 0; losses equal"

    def losses(self) -> Losses:
        """Of the runs that finished."""
        return losses(self.results)

    def compare(self, expected: Losses, but: str = "") -> None:
        """Raises NotKept unless every run has the losses of the undisturbed one, but for those of the method `but`."""
        found = self.losses()
        kept = {name: value for name, value in expected.items() if not (but and name.startswith(f"{but}-"))}
        if wrong := sorted(name for name in kept if found.get(name) != kept[name]):
            raise NotKept(f"other losses, or none: {', '.join(wrong)}")

    def each_refused(
        self, cases: Sequence[Sequence[object]], before: Callable[[], object] = nothing, names: Sequence[str] = ()
    ) -> str:
        """Each of these command lines is refused, as `refused` has it; asked one after another in one process.

        `names`: what to call them if they are not; else their ends are shown.
        """
        lines = [json.dumps([str(argument) for argument in case]) for case in cases]
        answers = self.growbench(*lines, before=before, carry_out=answer_each)
        said = [Said(*json.loads(line)) for line in answers.out.splitlines()]
        wrong = []
        ends = names or [line.replace(str(self.folder), "DIR")[-80:] for line in lines]
        for name, each in zip(ends, said, strict=True):
            try:
                self.refused(each)
            except NotKept as error:
                wrong.append(f"{name}: {str(error)[:200]}")
        if wrong:
            raise NotKept("; ".join(wrong))
        return f"each of {len(lines)}: exit code 2, one line"

    def refused(self, said: Said, *words: str) -> str:
        """It ended with exit code 2 and one line, which holds these words; and left no run."""
        no_traceback(said)
        lines = said.lines()
        if said.code != 2 or len(lines) != 1 or not all(word in lines[0] for word in words):
            raise NotKept(f"exit code {said.code}: {brief(said)}")
        if self.results.is_dir() and (trained := sorted(self.results.rglob("run.json"))):
            raise NotKept(f"refused, but left {trained[0].parent.name}")
        return f"exit code 2: {lines[0].removeprefix('growbench: ')}"

    def fails_alone(self, said: Said, method: str, *options: object) -> str:
        """It ended with exit code 1; the method failed in one line, and all others have the losses of an undisturbed run."""
        no_traceback(said)
        failures = said.lines("failed:")
        if said.code != 1 or len(failures) != 1 or not failures[0].startswith(f"{method}-"):
            raise NotKept(f"exit code {said.code}: {brief(said)}")
        self.compare(self.undisturbed(*options), but=method)
        return f"exit code 1: {' '.join(failures[0].split())}"

    def resumes(self, said: Said, *options: object) -> str:
        """It ended with another exit code than 0 and a line, and the same command then ends as an undisturbed run does."""
        no_traceback(said)
        if said.code == 0 or not said.lines():
            raise NotKept(f"exit code {said.code}: {brief(said)}")
        return f"exit code {said.code}: {brief(said)}; again: {self.finished(self.run(*options), *options)}"

    def ends_or_resumes(self, said: Said, *options: object) -> str:
        """It ended as an undisturbed run does, or else as `resumes` has it."""
        return self.finished(said, *options) if said.code == 0 else self.resumes(said, *options)


def _carry_out(
    environment: Mapping[str, str | None], before: Callable[[], object], command: Command, arguments: Sequence[str]
) -> int:
    with_environment(environment)
    before()
    return command(arguments)


def answer_each(lines: Sequence[str]) -> int:
    """Carry out several command lines, each as JSON; print the exit code, stdout and stderr of each, as a line of JSON."""
    for line in lines:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: object = cli.main(json.loads(line))
            except SystemExit as stop:  # of the argument parser
                code = stop.code
            except BaseException:
                code = traceback.print_exc()
        print(json.dumps([code, out.getvalue(), err.getvalue()]))
    return 0


def with_environment(values: Mapping[str, str | None]) -> None:
    """Set variables of this process; None: not set."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def at_evaluation(number: int, disturb: Callable[[], object]) -> None:
    """Have this process disturbed once, when it has shown so many evaluations."""
    show, seen = console.Progress.show, itertools.count(1)

    def shown(self: console.Progress, val_loss: float, flops: float) -> None:
        show(self, val_loss, flops)
        if next(seen) == number:
            disturb()

    console.Progress.show = shown  # type: ignore[method-assign]


def losses(results: Path) -> Losses:
    """All losses of every run that finished: final ones, and those of its curve."""
    found: Losses = {}
    for path in sorted(results.glob("*/*/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["status"] == "finished":
            rows = (json.loads(line) for line in (path.parent / "curve.jsonl").read_text(encoding="utf-8").splitlines())
            curve = [(row["step"], row["val_loss"], row["train_loss"]) for row in rows]
            found[path.parent.name] = [record["final_val_loss"], record["final_test_loss"], curve]
    return found


def no_traceback(said: Said) -> None:
    """Raises NotKept if a traceback was printed."""
    text = said.err + said.out
    if "Traceback (most recent call last)" in text:
        raise NotKept(f"exit code {said.code}, and a traceback: {text.strip().splitlines()[-1]}")


def brief(said: Said) -> str:
    """The first thing that was said on stderr, but for progress."""
    return " ".join((said.lines() or ["(nothing was said)"])[0].split())


@dataclass(frozen=True)
class Attack:
    """A way of disturbing growbench. `short`: cheap enough for `make test`."""

    carry_out: Callable[[Attempt], str]
    does: str
    must: str
    short: bool

    @property
    def name(self) -> str:
        return self.carry_out.__name__


ATTACKS: dict[str, Attack] = {}  # by name


def attack(does: str, must: str, short: bool = False) -> Callable[[Callable[[Attempt], str]], Callable[[Attempt], str]]:
    """Adds the function below it to the attacks."""

    def add(carry_out: Callable[[Attempt], str]) -> Callable[[Attempt], str]:
        assert carry_out.__name__ not in ATTACKS, carry_out.__name__
        ATTACKS[carry_out.__name__] = Attack(carry_out, does, must, short)
        return carry_out

    return add
