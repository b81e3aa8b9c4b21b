"""Several devices on one run, a process each, as torchrun starts them. Batches are shared out; models are replicated or split."""

from __future__ import annotations

import atexit
import copy
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from growbench.architectures import Architecture, parameter_shapes, sizes_of
from growbench.errors import UsageError
from growbench.training import tensor_parallel
from growbench.training.checkpoint import RandomStates, random_states
from growbench.training.tensor_parallel import Cut

PATIENCE = 60.0  # seconds that a process which failed waits for the others to fail too


@dataclass(frozen=True)
class Parallel:
    """The processes of a run, and this one's place: each batch has `shares`, and each model `parts`, one a process.

    Growth happens on whole models, the same in every process; `spread` is for the time of a phase.
    """

    device: torch.device
    rank: int = 0
    shares: int = 1
    parts: int = 1
    sharded: bool = False  # parameters, gradients and optimizer are divided among the shares (FSDP2) instead of replicated (DDP)
    store: dist.Store | None = None  # in which they can tell one another something outside of collectives

    @property
    def main(self) -> bool:
        """The one process that writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.shares == self.parts == 1

    def describe(self) -> str:
        """As 4 shares x 2 parts."""
        shares = f"{self.shares} {'sharded' if self.sharded else 'replicated'}" if self.shares > 1 else ""
        return " x ".join(filter(None, (shares, f"{self.parts} tensor-parallel" if self.parts > 1 else "")))

    @cached_property
    def mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.shares, self.parts), mesh_dim_names=("data", "tensor"))

    @property
    def share(self) -> int:
        """Which share of each batch is this process's."""
        return self.rank // self.parts

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if not self.alone:
            dist.all_reduce(values)
            values /= self.shares * self.parts
        return values

    def agree(self, *wanted: bool) -> list[bool]:
        """What any process wants, all do."""
        if self.alone:
            return list(wanted)
        flags = torch.tensor(wanted, dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def wait(self) -> None:
        """Until all processes are here."""
        self.agree(True)

    def all_failed(self, run: str) -> bool:
        """Of a process that failed: whether all did, as by a method's mistake. Else the others wait for it within a step."""
        if self.store is None:
            return True
        late = time.monotonic() + PATIENCE
        try:
            failed = self.store.add(run, 1)
            while failed < self.shares * self.parts and time.monotonic() < late:
                time.sleep(0.1)
                failed = self.store.add(run, 0)
            if failed < self.shares * self.parts:
                self.store.add(run, -1)  # this process ends, and counts no more for those that fail because of that
        except RuntimeError:  # the process that has the store is gone
            return False
        return failed == self.shares * self.parts

    @contextmanager
    def own_randomness(self) -> Iterator[RandomStates | None]:
        """What is drawn in here is drawn apart in each process; afterwards the random state is as before, the same in all.

        Yields that state, which a checkpoint made in here keeps; None if there is but one process, whose own goes on.
        """
        if self.alone:
            yield None
        else:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                yield random_states()

    def seed(self, *numbers: int) -> None:
        """Seed torch's generators for this process's share, if there are several."""
        if not self.alone:
            torch.manual_seed(int(np.random.SeedSequence((*numbers, self.share)).generate_state(1)[0]))

    @property
    def resting(self) -> torch.device:
        """Where an optimizer's moments are while nothing trains: in the host's memory if they need not fit on the device."""
        return torch.device("cpu") if self.sharded or self.parts > 1 else self.device

    def spread(self, model: nn.Module, optimizer: Optimizer, architecture: Architecture, uniform: bool) -> Spread:
        """A model and its optimizer as they are trained here. `uniform`: every step uses the same parameters."""
        if self.alone:
            return Spread(model, model, optimizer)
        if uniform and (self.sharded or self.parts > 1) and _is_plain(model, architecture):
            return Divided.of(model, optimizer, architecture, self)
        _move_moments(optimizer, self.device)
        if not uniform:
            return Averaged(model, model, optimizer, self)
        return Spread(model, DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True), optimizer)


def start(device: torch.device, parts: int, sharded: bool) -> Parallel:
    """Join the processes that torchrun started; alone without it. Raises UsageError if they cannot be divided into `parts`."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if parts < 1 or processes % parts:
        raise UsageError(f"--tensor-parallel {parts}: must divide the number of processes, {processes}; torchrun starts several")
    if processes == 1:
        return Parallel(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    store, rank, _ = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
    atexit.register(dist.destroy_process_group)
    return Parallel(device, rank, processes // parts, parts, sharded, store)


def _is_plain(model: nn.Module, architecture: Architecture) -> bool:
    """Whether it is a model of the architecture and nothing else, such as an operator that is being learned."""
    return hasattr(model, "sizes") and parameter_shapes(model) == architecture.shapes(sizes_of(model))


@dataclass
class Spread:
    """A phase's model and optimizer as they are trained by this process."""

    model: nn.Module
    module: nn.Module  # what is called in training: the model, or a wrapper
    optimizer: Optimizer

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can take it."""
        return True

    def accumulating(self) -> AbstractContextManager[None]:
        """While gradients of a micro-batch are added up that is not the batch's last."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()

    def update(self, largest_norm: float) -> None:
        """Clip the gradients, let the optimizer use them, and drop them."""
        clip_grad_norm_(_trained(self.optimizer), largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gather(self) -> None:
        """Bring what training changed into the whole model and its optimizer. All processes take part."""

    def close(self) -> None:
        """The phase is over."""


@dataclass
class Averaged(Spread):
    """A replica whose gradients are averaged here, after backward: DDP wants every step to use the same parameters."""

    parallel: Parallel

    def update(self, largest_norm: float) -> None:
        trained = _trained(self.optimizer)
        used = self.parallel.agree(*(parameter.grad is not None for parameter in trained))
        for parameter in itertools.compress(trained, used):
            if parameter.grad is None:  # used by other processes alone
                parameter.grad = torch.zeros_like(parameter)
            self.parallel.mean(parameter.grad)
        super().update(largest_norm)


@dataclass
class Divided(Spread):
    """Parameters and optimizer state divided among processes: by tensor parallelism, by FSDP2, or by both.

    What is trained is a copy; the method's own model and optimizer wait in the host's memory, and the optimizer's moments
    stay there until they are trained with again: of all that need not fit on one device, they are the most.
    """

    whole: nn.Module
    whole_optimizer: Optimizer
    parallel: Parallel
    cuts: dict[str, Cut]
    pairs: list[tuple[str, nn.Parameter, nn.Parameter]] = field(default_factory=list)  # name, whole, divided

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, architecture: Architecture, parallel: Parallel) -> Divided:
        divided = copy.deepcopy(model)
        cuts = tensor_parallel.split(divided, architecture, parallel.mesh["tensor"]) if parallel.parts > 1 else {}
        if parallel.shares > 1:
            stack, name = architecture.stack(divided)
            for layer in getattr(stack, name):
                fully_shard(layer, mesh=parallel.mesh["data"])
            fully_shard(divided, mesh=parallel.mesh["data"])
        replica = copy.copy(optimizer)
        spread = cls(divided, divided, replica, model, optimizer, parallel, cuts)
        spread.pairs = [(name, p, divided.get_parameter(name)) for name, p in model.named_parameters()]
        own = {whole: (name, part) for name, whole, part in spread.pairs}
        replica.state = defaultdict(dict)
        replica.param_groups = []
        for group in optimizer.param_groups:
            by_mesh: dict[Any, list[nn.Parameter]] = defaultdict(list)  # tensors of several meshes cannot be handled together
            for whole in group["params"]:
                name, part = own[whole]
                by_mesh[_mesh(part)].append(part)
                replica.state[part] = {key: spread._scatter(name, value, part) for key, value in optimizer.state[whole].items()}
            replica.param_groups += [{**group, "params": parts, "whole": group} for parts in by_mesh.values()]
        model.to("cpu")
        _move_moments(optimizer, torch.device("cpu"))
        return spread

    @property
    def compiles(self) -> bool:
        """Not both ways: of FSDP2 over tensor parallelism, torch.compile makes `Mixing fake modes NYI` (torch 2.14)."""
        return self.parallel.shares == 1 or self.parallel.parts == 1

    def update(self, largest_norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["whole"]["lr"]
        _clip(_trained(self.optimizer), largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gather(self) -> None:
        with torch.no_grad():
            for name, whole, divided in self.pairs:
                whole.copy_(self._gather(name, divided))
                for key, value in self.optimizer.state.get(divided, {}).items():
                    home = whole.device if value.dim() else value.device  # fused AdamW keeps its count of steps on the device
                    self.whole_optimizer.state[whole][key] = self._gather(name, value).to(home, copy=True)

    def close(self) -> None:
        self.whole.to(self.parallel.device)

    def _scatter(self, name: str, value: Tensor, part: nn.Parameter) -> Tensor:
        """A tensor of the optimizer for a whole parameter, for a divided one."""
        if value.dim() == 0:
            return value.clone()
        if not isinstance(part, DTensor):
            return value.to(part.device, copy=True)
        cut = self.cuts.get(name)
        value = cut.scattered(value, self.parallel.parts) if cut else value
        if part.device_mesh.ndim == 1:
            return distribute_tensor(value, part.device_mesh, part.placements)
        # in FSDP2's own order, tensor parallelism first: `distribute_tensor` refuses strided shards that are not even
        mesh, (_, split) = self.parallel.mesh, part.placements
        share = distribute_tensor(value, mesh["tensor"], [split]).to_local()
        chunk = distribute_tensor(share, mesh["data"], [Shard(0)]).to_local()
        return DTensor.from_local(
            chunk, part.device_mesh, part.placements, run_check=False, shape=part.shape, stride=part.stride()
        )

    def _gather(self, name: str, value: Tensor) -> Tensor:
        cut = self.cuts.get(name)
        full = value.full_tensor() if isinstance(value, DTensor) else value.detach()
        return cut.gathered(full, self.parallel.parts) if cut and full.dim() else full


def _move_moments(optimizer: Optimizer, device: torch.device) -> None:
    """Bring what an optimizer remembers to a device. Counts of steps stay: fused AdamW wants them on its own."""
    for state in optimizer.state.values():
        state.update({key: value.to(device) if value.dim() else value for key, value in state.items()})


def _trained(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _mesh(tensor: Tensor) -> DeviceMesh | None:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _clip(parameters: list[nn.Parameter], largest_norm: float) -> None:
    """Clip the norm of all gradients together, where they are divided over different meshes."""
    by_mesh: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh[_mesh(parameter.grad)].append(parameter.grad)
    norms = [get_total_norm(gradients) for gradients in by_mesh.values()]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    shrink = (largest_norm / (total + 1e-6)).clamp(max=1.0)
    for gradients in by_mesh.values():
        torch._foreach_mul_([each.to_local() if isinstance(each, DTensor) else each for each in gradients], shrink)
