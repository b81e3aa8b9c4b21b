"""The processes of a run, as torchrun starts them: data parallelism divides each batch, tensor parallelism divides each model."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from growbench.errors import FailedAlone, UsageError
from growbench.training.checkpoint import RandomStates, random_states
from growbench.training.optimizer_state import is_element_wise

HOST = torch.device("cpu")
FAILURE_TIMEOUT = 60.0  # seconds that a failed process waits for the others to fail too


@dataclass(frozen=True)
class Parallel:
    """The processes of a run and this one's place among them: `dp_degree` x `tp_degree` processes, one for each device.

    Growth happens on whole models, the same in every process. Models are replicated or sharded only while a phase trains.
    """

    device: torch.device
    rank: int = 0
    dp_degree: int = 1
    tp_degree: int = 1
    sharded: bool = False  # data parallelism shards parameters, gradients and optimizer state (FSDP2); else it replicates (DDP)
    store: dist.Store | None = None  # through which processes exchange messages outside of collectives

    @property
    def is_main_process(self) -> bool:
        """The one process that writes files and prints."""
        return self.rank == 0

    @property
    def processes(self) -> int:
        return self.dp_degree * self.tp_degree

    @property
    def is_single_process(self) -> bool:
        return self.processes == 1

    @property
    def dp_rank(self) -> int:
        """Which part of each batch this process trains on. Processes of one tensor-parallel group train on the same part."""
        return self.rank // self.tp_degree

    def describe(self) -> str:
        """As "4 replicated x 2 tensor-parallel"."""
        data = f"{self.dp_degree} {'sharded' if self.sharded else 'replicated'}" if self.dp_degree > 1 else ""
        return " x ".join(filter(None, (data, f"{self.tp_degree} tensor-parallel" if self.tp_degree > 1 else "")))

    @property
    def mesh(self) -> DeviceMesh:
        """The processes as a grid with the dimensions "data" and "tensor"."""
        return _mesh(self.device.type, self.dp_degree, self.tp_degree)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        if not self.is_single_process:
            dist.all_reduce(values)
            values /= self.processes
        return values

    def any_process(self, *flags: bool) -> list[bool]:
        """Each flag's logical or across processes."""
        if self.is_single_process:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return [bool(value) for value in values.tolist()]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any_process(True)

    def check_all_failed(self, run: str) -> None:
        """Called by a process whose run failed. Raises FailedAlone unless it failed in all, as by a mistake in the method."""
        if not self._all_failed(run):
            raise FailedAlone(
                f"{run:<18} failed in this process alone, which ends, so that torchrun ends the others; start them again"
            )

    def _all_failed(self, run: str) -> bool:
        if self.store is None:
            return True
        deadline = time.monotonic() + FAILURE_TIMEOUT
        try:
            failed = self.store.add(run, 1)
            while failed < self.processes and time.monotonic() < deadline:
                time.sleep(0.1)
                failed = self.store.add(run, 0)
            if failed < self.processes:
                self.store.add(run, -1)  # this process ends, and others that fail because of that must not count it
        except RuntimeError:  # the process that hosts the store is gone
            return False
        return failed == self.processes

    @contextmanager
    def own_random_state(self) -> Iterator[RandomStates | None]:
        """Within it, each process draws random numbers of its own. After it, all have the random state from before it.

        Yields that common state, which a checkpoint made within must store; None for a single process, whose state goes on.
        """
        if self.is_single_process:
            yield None
        else:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                yield random_states()

    def seed(self, *numbers: int) -> None:
        """Seed torch's generators by these numbers and the data-parallel rank, if there are several processes."""
        if not self.is_single_process:
            torch.manual_seed(int(np.random.SeedSequence((*numbers, self.dp_rank)).generate_state(1)[0]))

    def idle_state_device(self, optimizer: Optimizer) -> torch.device:
        """Where an optimizer's state is kept between phases: in host memory if training shards it."""
        shards_state = (self.sharded or self.tp_degree > 1) and is_element_wise(optimizer)
        return HOST if shards_state else self.device


@cache
def _mesh(device_type: str, dp_degree: int, tp_degree: int) -> DeviceMesh:
    """Made once for all phases, because each makes process groups of its own."""
    return init_device_mesh(device_type, (dp_degree, tp_degree), mesh_dim_names=("data", "tensor"))


def start(device: torch.device, tp_degree: int, sharded: bool, stage: str = "") -> Parallel:
    """Join the processes that torchrun started; a single process without it.

    Each of those may be followed by others. Those that work together have the same `stage`, which keeps their messages apart.

    Raises UsageError if the number of processes is not divisible by `tp_degree`.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if tp_degree < 1 or processes % tp_degree:
        raise UsageError(
            f"--tensor-parallel {tp_degree}: the number of processes, {processes}, must be divisible by it; see torchrun"
        )
    if processes == 1:
        return Parallel(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    agent, rank, _ = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(stage, agent)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
    atexit.register(dist.destroy_process_group)
    return Parallel(device, rank, processes // tp_degree, tp_degree, sharded, store)
