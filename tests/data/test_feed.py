"""The feed: its batches are the data's own, whoever makes them, and its workers leave no trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growbench.config.schema import ImageConfig, TextConfig
from growbench.data import Batch, Data, load
from growbench.data.feed import Feed, spare

CPU = torch.device("cpu")
DEIT = {"flip": 0.5, "crop": 0.3, "auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for number in range(60):
        path = root / "abc"[number % 3] / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def images(folders: Path) -> Data:
    config = ImageConfig(f"files:{folders}", image_size=8, patch=4, classes=3, evaluation_batches=1, **DEIT)
    return load(config, "classes", None, 2)


@pytest.fixture(scope="module")
def text(corpus: Path) -> Data:
    return load(TextConfig(f"files:{corpus}", sequence_length=16, vocabulary=300, evaluation_batches=1), "masked", "wordpiece", 4)


def same(first: Batch, second: Batch) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]


def global_states() -> tuple[str, list[int]]:
    return str(np.random.get_state()), torch.get_rng_state().tolist()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_datas_own_in_any_order(images: Data, workers: int) -> None:
    states = global_states()
    feed = Feed(images, 5, CPU, workers)
    assert feed.waited == 0
    for step in (7, 8, 9, 9, 10, 2, 2, 3, 1000, 1001, 0, 1):  # on, again, back, far ahead, from the start
        assert same(feed.batch(step), images.train_batch(step, 5))
    assert feed.waited > 0
    feed.close()
    assert global_states() == states


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state) and not state.startswith("Z")


def children() -> set[int]:
    pids = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split()[2:]
    parents = dict(zip(map(int, pids[::2]), map(int, pids[1::2]), strict=True))
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_workers_end_when_the_feed_is_closed_and_text_has_none(images: Data, text: Data) -> None:
    before = Feed(images, 0, CPU, 1)  # starts the server of forks
    before.batch(0)
    before.close()
    idle = len(children())
    feeds = [Feed(text, 0, CPU, 2), Feed(images, 0, CPU, 2)]
    assert same(feeds[0].batch(3), text.train_batch(3, 0))
    assert len(children()) == idle
    feeds[1].batch(3)
    assert len(children()) == idle + 2
    feeds[1].close()
    assert len(children()) == idle


def test_as_many_workers_as_cores_can_be_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, beside_a_gpu, beside_training in (1, 1, 1), (2, 1, 1), (12, 11, 3), (64, 16, 16):
        monkeypatch.setattr("growbench.data.processes.cores", lambda cores=cores: cores)
        assert (spare(torch.device("cuda")), spare(CPU)) == (beside_a_gpu, beside_training)


PROGRAM = """
import signal, sys, torch
from multiprocessing.context import ForkServerContext
from growbench.data import Batch
from growbench.data.feed import Feed

preload = ForkServerContext.set_forkserver_preload
ForkServerContext.set_forkserver_preload = lambda self, _: preload(self, ["torch"])  # no images, so no library for them

class Numbers:
    costly = True
    def train_batch(self, step, seed):
        return Batch(torch.tensor([step]), None, torch.tensor([seed]))

if __name__ == "__main__":
    print([name for name in ("timm", "torchvision", "PIL", "datasets") if name in sys.modules], flush=True)
    feed = Feed(Numbers(), 0, torch.device("cpu"), 2)
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    feed.batch(0)
    print(*(worker.pid for worker in feed._loader._iterator._workers), flush=True)
    step = 1
    while not asked:
        feed.batch(step)
        step += 1
    print(all(feed.batch(late).inputs.item() == late for late in range(step, step + 9)), flush=True)
    while True:
        feed.batch(step)
        step += 1
"""


def test_workers_ignore_ctrl_c_and_end_with_their_parent(tmp_path: Path) -> None:
    """And data that are no images import no library for images."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command, err = [sys.executable, str(tmp_path / "program.py")], tmp_path / "err"
    with err.open("w") as file:
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "[]\n"
    workers = [int(pid) for pid in program.stdout.readline().split()]
    assert len(workers) == 2
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    assert program.stdout.readline() == "True\n"
    assert all(map(alive, workers)) and err.read_text() == ""
    program.kill()
    program.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
