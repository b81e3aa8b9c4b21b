"""What every test shares: a cache of its own, no network, a small corpus and a miniature experiment."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings

if TYPE_CHECKING:
    import torch

    from growbench.config.schema import Experiment
    from growbench.method import Method, Task
    from growbench.registry import Found

settings.register_profile("any machine", deadline=None, max_examples=25)  # however busy: no test measures time
settings.register_profile("thorough", deadline=None, max_examples=2000)  # pytest --hypothesis-profile thorough
settings.load_profile("any machine")

# both are read once, when the first test imports huggingface_hub, and torch
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small train twice as fast on one thread
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # torch's own processes to compile in have nothing to do

gc.disable()  # while libraries are imported, whose objects stay; until pytest_collection_finish
gc.set_threshold(10_000)  # new objects; at Python's own 700, the collector takes twice the time

WORDS = (
    "the of and to in a is was for on as with by that from at his an were are which this also be has or had first one their"
    " its new after city but who not they her she two been other when there all during into school time may years more most"
    " only over world would some where later up such used many can state about national out known university united then"
    " made while river small large model grows deeper wider learns faster"
)

MINIATURE = """
title = "Miniature"
architecture = "{architecture}"
[source]
layers = 1
width = 16
heads = 2
[target]
layers = 2
width = 32
heads = 4
[data]
corpus = "files:{corpus}"
vocabulary = 300
sequence_length = 16
evaluation_batches = 1
[train]
batch = 4
steps = 12
warmup = 2
lr = 1e-3
precision = "float32"
[methods.ligo]
operator_steps = 3
"""

LONG = 5.0  # CPU seconds of a test that is named after all

WriteMiniature = Callable[..., Path]
Once = Callable[[str, Callable[[Path], object]], Path]


def documents() -> str:
    """150 documents of common English words, a frequent word early in the list; always the same."""
    rng = random.Random(0)
    words = WORDS.split()
    weights = [1 / (rank + 2) for rank in range(len(words))]

    def sentence() -> str:
        return " ".join(rng.choices(words, weights, k=rng.randint(5, 15))).capitalize() + "."

    return "\n\n".join(" ".join(sentence() for _ in range(rng.randint(3, 8))) for _ in range(150))


IMPORTED = pytest.StashKey[int]()  # modules when the collector was last told to leave alone what there is
MANY = 50  # modules: a library


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there by now stays to the end: to go through it again and again took a tenth of the tests' time."""
    session.stash[IMPORTED] = len(sys.modules)
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """So do the libraries that a test was the first to import."""
    if len(sys.modules) > item.session.stash[IMPORTED] + MANY:
        item.session.stash[IMPORTED] = len(sys.modules)
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Notes the CPU seconds that the test takes, those of its child processes included."""
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        item.user_properties.append(("CPU seconds", sum(os.times()[:4]) - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tests that take most of the time, for whoever makes one: most take less than half a second."""
    reports = (each for kind in ("passed", "failed") for each in terminalreporter.getreports(kind))
    seconds = {each.nodeid: dict(each.user_properties).get("CPU seconds", 0.0) for each in reports if each.when == "call"}
    for name in sorted(seconds, key=lambda name: -float(seconds[name])):
        if float(seconds[name]) > LONG:
            terminalreporter.write_line(f"{seconds[name]:.1f} s of CPU: {name}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of the person's own cache is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GROWBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_flushing() -> Iterator[None]:
    """No test waits for a disk. What is flushed, and when, is seen by those that put a function of their own here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_server() -> Iterator[None]:
    """Whoever starts the server of forks first, it imports what tests/preloaded.py says. Else each process imports it itself."""
    from tests.processes import FORKED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(FORKED), "set_forkserver_preload", lambda *_: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def figures() -> Iterator[Callable[..., AbstractContextManager[None]]]:
    """Reports hold their figures' data, but no figures: these take most of the time. `with figures():` they are drawn.

    `with figures(NAME):` those of the given names are.
    """
    from growbench.report import drawing
    from tests.figures import data_alone

    save = drawing.save

    @contextmanager
    def drawn(*names: str) -> Iterator[None]:
        def of_names(name: str, *rest: Any) -> drawing.Cuts:
            return save(name, *rest) if not names or name in names else data_alone(name, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing, "save", of_names)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "save", data_alone)
        yield drawn


@pytest.fixture(scope="session", autouse=True)
def planned_once() -> Iterator[None]:
    """A built-in method that an experiment was found to take is not planned on it again: plans take a fifth of a small run."""
    from growbench.planning import plan

    refuse, possible = plan.refuse, set[object]()

    def refuse_once(experiment: Experiment, found: Found, vocabulary: int, device: torch.device) -> None:
        method = found.method
        own = type(method).__module__.startswith("growbench.methods.") and not experiment.pretrained
        key = repr(experiment), repr(method), type(method).phases, vocabulary, device.type
        if not own or key not in possible:
            refuse(experiment, found, vocabulary, device)
        if own:
            possible.add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "refuse", refuse_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def watched_once() -> Iterator[None]:
    """A built-in method that was watched on an architecture is not watched there again: that takes an eighth of a small run."""
    from growbench.guards import Guard
    from growbench.guards.code import Code
    from growbench.training import phases

    class NoCode(Code):
        def __init__(self) -> None:
            pass

        def begin(self) -> None:
            pass

        def changes(self) -> str:
            return ""

        def restore(self) -> None:
            pass

    class SettingsGuard(Guard):
        def __init__(self) -> None:
            self.code = NoCode()
            self.begin()

    harmless: set[object] = set()
    begin = phases.PhaseDriver.__init__

    def watch_once(self: phases.PhaseDriver, method: Method, task: Task, *rest: Any, **options: Any) -> None:
        key = type(method), type(method).phases, task.architecture.name
        with pytest.MonkeyPatch.context() as patch:
            if key in harmless:
                patch.setattr(phases, "Guard", SettingsGuard)
            begin(self, method, task, *rest, **options)
        if type(method).__module__.startswith("growbench.methods."):
            harmless.add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases.PhaseDriver, "__init__", watch_once)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Has a folder filled once, by the process of pytest that needs it first; the others wait for it, and then use it too."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        found, filled = shared / name, shared / f"{name}.filled"
        with FileLock(shared / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(found, ignore_errors=True)  # of one that failed
                found.mkdir()
                fill(found)
                filled.touch()
        return found

    return folder


@pytest.fixture(scope="session")
def corpus(once: Once) -> Path:
    """The small corpus of `documents`, as a file."""
    return once("corpus", lambda folder: (folder / "corpus.txt").write_text(documents(), encoding="utf-8")) / "corpus.txt"


@pytest.fixture(scope="session")
def write_miniature(corpus: Path) -> WriteMiniature:
    """Writes miniature.toml to a folder: an experiment that trains in a second."""

    def write(folder: Path, architecture: str = "gpt2", corpus: Path | str = corpus) -> Path:
        path = folder / "miniature.toml"
        path.write_text(MINIATURE.format(architecture=architecture, corpus=corpus), encoding="utf-8")
        return path

    return write


@pytest.fixture
def miniature(write_miniature: WriteMiniature, tmp_path: Path) -> Path:
    """The miniature experiment's file, for GPT-2."""
    return write_miniature(tmp_path)


@pytest.fixture
def miniature_bert(write_miniature: WriteMiniature, tmp_path: Path) -> Path:
    """The miniature experiment's file, for BERT."""
    return write_miniature(tmp_path, "bert")
