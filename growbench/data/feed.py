"""Batches for the training loop. Costly ones are prepared ahead by worker processes, so that the loop does not wait."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from growbench.data import Data, processes
from growbench.data.text import Batch

MOST_WORKERS = 16  # each holds one prepared batch in shared memory


class Feed:
    """The batches of a run in order of steps, each a pure function of (seed, step), or part number `part` of each batch.

    `workers`: the number of processes that prepare costly batches; -1: one per spare core; 0: none, a batch is made when it is
    needed. What workers prepare is also copied to a CUDA device ahead, while it computes.
    """

    def __init__(self, data: Data, seed: int, device: torch.device, workers: int = -1, part: int = 0, parts: int = 1) -> None:
        self.waited = 0.0  # seconds that the caller has waited for batches
        self._device, self._steps = device, _Steps()
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._step: int | None = None
        self._batches = self._from(0)
        count = 0 if not data.costly else spare(device) if workers < 0 else workers
        self._loader: DataLoader[Batch] = DataLoader(
            _Batches(data, seed, part, parts),
            batch_size=None,
            sampler=self._steps,
            num_workers=count,
            prefetch_factor=1 if count else None,  # a worker begins its next batch when its last one is fetched
            persistent_workers=count > 0,
            multiprocessing_context=processes.context("torch", "timm.data") if count else None,
            worker_init_fn=processes.begin,
            pin_memory=device.type == "cuda",  # so that the copy to the device is asynchronous
            generator=torch.Generator(),  # the default would draw from the global generator
        )

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the device. A step other than the last or the next one restarts the feed there."""
        if step != self._step:
            started = time.perf_counter()
            if self._step is None or step != self._step + 1:
                self._batches.close()
                self._batches = self._from(step)
            self._batch = next(self._batches)
            self._step = step
            self.waited += time.perf_counter() - started
        return self._batch

    def close(self) -> None:
        """Stop the workers. No more batches can be read."""
        self._batches.close()
        del self._loader

    def _from(self, step: int) -> Generator[Batch]:
        """All batches from a step on, on the device."""
        self._steps.first = step
        batches = iter(self._loader)
        if not self._loader.num_workers:
            yield from (batch.to(self._device) for batch in batches)
        with ThreadPoolExecutor(1, "feed") as thread:  # fetching even a finished batch takes milliseconds
            coming = thread.submit(self._fetch, batches)
            while True:
                batch = self._for_this_stream(coming.result())
                coming = thread.submit(self._fetch, batches)
                yield batch

    def _fetch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, on its way to the device."""
        with torch.cuda.stream(self._copies) if self._copies else nullcontext():
            return next(batches).to(self._device)

    def _for_this_stream(self, batch: Batch) -> Batch:
        """The batch, whose copy the caller's stream waits for, and whose memory is kept until that stream has read it."""
        if self._copies:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._copies)
            for each in batch:
                if each is not None:
                    each.record_stream(stream)
        return batch


def spare(device: torch.device) -> int:
    """The number of workers for the cores that training on `device` leaves free. On the CPU training uses all cores."""
    cores = processes.cores()
    return max(1, cores // 4 if device.type == "cpu" else min(cores - 1, MOST_WORKERS))


class _Steps(Sampler[int]):
    first = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class _Batches(Dataset[Batch]):
    """The batch of every step. It is pickled to the workers, so data in files must be mapped again there, not copied."""

    def __init__(self, data: Data, seed: int, part: int, parts: int) -> None:
        self.data, self.seed, self.part, self.parts = data, seed, part, parts

    def __getitem__(self, step: int) -> Batch:
        return self.data.train_batch(step, self.seed).part(self.part, self.parts)
