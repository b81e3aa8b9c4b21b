"""Files of a run that were damaged, lost or left; power that fails; readers that leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from growbench.runs import store
from tests.power_loss import recorded
from tests.runs.test_power_loss import Training
from tests.runs.test_power_loss import left as files_left
from tests.soak.attacks.limits import limit_memory
from tests.soak.attacks.signals import send
from tests.soak.attempt import UNDISTURBED, Attempt, NotKept, at_evaluation, attack, brief, no_traceback

MADE_AGAIN = "it is named in one line and made again, with the losses of an undisturbed run"
SCRATCH = ("--methods", "scratch")


def flip(file: Path) -> None:
    """Flip a bit of every 50th byte in the second half of a file."""
    content = bytearray(file.read_bytes())
    for place in range(len(content) // 2, len(content), 50):
        content[place] ^= 4
    file.write_bytes(content)


def shorten(file: Path) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-3]))


def made_again(attempt: Attempt, name: str, damage: Callable[[Path], object]) -> str:
    """Damage a file of a run that has ended, remove the run that grew from it, and run again."""
    first = attempt.run()
    assert first.code == 0, first
    damage(attempt.results / "miniature" / name)
    if name.startswith("source"):
        shutil.rmtree(attempt.results / "miniature" / "bert2bert-seed0")
    said = attempt.run()
    end = attempt.finished(said)
    (line,) = said.lines("damaged", "missing", "cannot be read")
    return f"{line.rpartition('/')[2]}; {end}"


@attack("a curve that lacks its last three lines", MADE_AGAIN)
def curve_shortened(attempt: Attempt) -> str:
    return made_again(attempt, "bert2bert-seed0/curve.jsonl", shorten)


@attack("a curve that is not there", MADE_AGAIN)
def curve_lost(attempt: Attempt) -> str:
    return made_again(attempt, "bert2bert-seed0/curve.jsonl", Path.unlink)


@attack("bits of a source's weights are flipped", MADE_AGAIN)
def source_flipped(attempt: Attempt) -> str:
    return made_again(attempt, "source-seed0/model.safetensors", flip)


@attack("run.json of 100,000 brackets", MADE_AGAIN)
def record_too_deep(attempt: Attempt) -> str:
    return made_again(attempt, "bert2bert-seed0/run.json", lambda file: file.write_text("[" * 100_000))


@attack("bits of the cached tokens are flipped between two runs", MADE_AGAIN)
def tokens_flipped(attempt: Attempt) -> str:
    cache = attempt.folder / "cache"
    attempt.environment["GROWBENCH_CACHE"] = str(cache)
    assert attempt.run(*SCRATCH).code == 0
    shutil.rmtree(attempt.results)
    flip(next(cache.rglob("train.bin")))
    said = attempt.run(*SCRATCH)
    end = attempt.finished(said, *SCRATCH)
    if not said.lines("damaged"):
        raise NotKept(f"nothing was said of it: {brief(said)}")
    return f"named; {end}"


@attack("bits of all checkpoints are flipped while a run is interrupted", MADE_AGAIN)
def checkpoints_flipped(attempt: Attempt) -> str:
    first = attempt.run(*SCRATCH, before=partial(at_evaluation, 6, partial(send, 15)))
    assert first.code == 130, first
    found = list(attempt.results.rglob("*.safetensors"))
    for file in found:
        flip(file)
    said = attempt.run(*SCRATCH)
    end = attempt.finished(said, *SCRATCH)
    if not found or len(said.lines("damaged", "cannot be", "passed over")) != len(found):
        raise NotKept(f"{len(found)} files, and {len(said.lines())} lines: {brief(said)}")
    return f"each named; {end}"


@attack("files of the user's own beside a run's, and checkpoints that a killed process has left", "kept, and removed")
def left_and_own_files(attempt: Attempt) -> str:
    assert attempt.run(*SCRATCH).code == 0
    run = attempt.results / "miniature" / "scratch-seed0"
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints").mkdir()
    for name in ("phase-0.safetensors", "config.json", "thesis.txt"):
        (run / "checkpoints" / name).write_text("left")
    assert attempt.run(*SCRATCH).code == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["thesis.txt"]
    assert attempt.run(*SCRATCH, "--set", "train.steps=6").code == 0
    kept = sorted(path.name for path in (attempt.results / "miniature" / "replaced").rglob("*.txt"))
    assert kept == ["notes.txt", "thesis.txt"], kept
    return "its own are kept, also where the run is archived; what was left is removed"


@attack("the reader of stdout and stderr leaves after the first line, as head does", UNDISTURBED)
def reader_leaves(attempt: Attempt) -> str:
    process, out, err = attempt.start("run", attempt.experiment, *SCRATCH, "--results", attempt.results)
    err.readline()
    err.close()
    out.close()
    process.join(timeout=100)
    assert process.exitcode == 0, process.exitcode
    attempt.compare(attempt.undisturbed(*SCRATCH))
    return "exit code 0; losses equal"


@attack("a corpus of one line of 20 MB, with 1 GB of memory", "exit code 0, without a traceback")
def line_of_20_mb(attempt: Attempt) -> str:
    corpus = attempt.folder / "line.txt"
    corpus.write_text("a line without an end " * 900_000)
    options = ("train.steps=2", "train.warmup=1", f"data.corpus=files:{corpus}")
    sets = [option for each in options for option in ("--set", each)]
    said = attempt.run(*SCRATCH, *sets, before=partial(limit_memory, 1 << 30))
    no_traceback(said)
    assert said.code == 0, said
    return "exit code 0"


@attack("the power fails at every fourth flush, renaming or removal of a run (simulated)", "the run ends with the same files")
def power_loss(attempt: Attempt) -> str:
    said = attempt.growbench(attempt.folder, carry_out=fail_in_every_moment)
    if said.code:
        raise NotKept(said.err.strip().splitlines()[-1])
    return said.out.strip()


def fail_in_every_moment(arguments: Sequence[str]) -> int:
    """Record a run in a folder, and end it from what a disk may hold after each fourth moment."""
    folder = Path(arguments[0])
    (whole := folder / "whole").mkdir()
    with recorded(whole) as disk:
        Training(whole, disk=disk).run()
    states = disk.states[::4]
    for number, state in enumerate(states):
        (after := folder / f"after-{number}").mkdir()
        state.write(after)
        if not store.load_all(after):
            Training(after).run()
            assert files_left(after) == files_left(whole), state.moment
    print(f"{len(states)} states of the disk: each ends with the same files")
    return 0
