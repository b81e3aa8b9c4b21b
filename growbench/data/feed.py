"""Batches for the training loop. Where they are costly, worker processes make them ahead, so that the loop does not wait."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from growbench.data import Data, processes
from growbench.data.text import Batch

MOST_WORKERS = 16  # each keeps a batch ahead in shared memory


class Feed:
    """One of the `parts` of each batch of a run from a step on, in order, each a pure function of (seed, step).

    `workers`: how many processes make them ahead, where the data says that they are costly; 0: none, each is made when it is
    asked for; -1: as many as there are cores to spare.
    """

    def __init__(self, data: Data, seed: int, device: torch.device, workers: int = -1, part: int = 0, parts: int = 1) -> None:
        self.waited = 0.0  # seconds that the caller has waited for batches so far
        self._device, self._steps = device, _Steps()
        self._step: int | None = None
        self._batches = self._from(0)
        count = 0 if not data.costly else spare(device) if workers < 0 else workers
        self._loader: DataLoader[Batch] = DataLoader(
            _Batches(data, seed, part, parts),
            batch_size=None,
            sampler=self._steps,
            num_workers=count,
            prefetch_factor=1 if count else None,  # a worker begins the next batch when its last one is fetched
            persistent_workers=count > 0,
            multiprocessing_context=processes.context("torch", "timm.data") if count else None,
            worker_init_fn=processes.begin,
            pin_memory=device.type == "cuda",  # so that the copy to the device is not waited for
            generator=torch.Generator(),  # it draws from the global one otherwise
        )

    def batch(self, step: int) -> Batch:
        """The batch of that step, on the device. Another step than the last one or the next one starts the feed anew there."""
        if step != self._step:
            started = time.perf_counter()
            if self._step is None or step != self._step + 1:
                self._batches.close()
                self._batches = self._from(step)
            self._batch = next(self._batches).to(self._device)
            self._step = step
            self.waited += time.perf_counter() - started
        return self._batch

    def close(self) -> None:
        """End the workers. No more batches can be asked for."""
        self._batches.close()
        del self._loader

    def _from(self, step: int) -> Generator[Batch]:
        """All batches from a step on."""
        self._steps.first = step
        batches = iter(self._loader)
        if not self._loader.num_workers:
            yield from batches
        with ThreadPoolExecutor(1, "feed") as thread:  # even a finished batch takes milliseconds to come from a busy worker
            coming = thread.submit(next, batches)
            while True:
                batch = coming.result()
                coming = thread.submit(next, batches)
                yield batch


def spare(device: torch.device) -> int:
    """Workers for the cores that training on `device` does not need: on the CPU it shares them all."""
    cores = processes.cores()
    return max(1, cores // 4 if device.type == "cpu" else min(cores - 1, MOST_WORKERS))


class _Steps(Sampler[int]):
    first = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class _Batches(Dataset[Batch]):
    """The batch of every step. It is sent to the workers: data of files must map them there again, not carry them along."""

    def __init__(self, data: Data, seed: int, part: int, parts: int) -> None:
        self.data, self.seed, self.part, self.parts = data, seed, part, parts

    def __getitem__(self, step: int) -> Batch:
        return self.data.train_batch(step, self.seed).part(self.part, self.parts)
