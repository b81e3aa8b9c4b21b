"""A phase's model and optimizer as the processes train them.

Data parallelism replicates the model (DDP) or shards parameters, gradients and optimizer state (FSDP2). Tensor parallelism
splits the matrices themselves (growbench.training.tensor_parallel).
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from growbench.architectures import Architecture, parameter_shapes, sizes_of
from growbench.training import tensor_parallel
from growbench.training.optimizer_state import move_state, parameters_of
from growbench.training.parallel import Parallel
from growbench.training.tensor_parallel import Cut


def place(model: nn.Module, optimizer: Optimizer, architecture: Architecture, parallel: Parallel, uniform: bool) -> Replica:
    """A model and its optimizer as this process trains them. `uniform`: every step uses the same parameters."""
    if parallel.is_single_process:
        return Replica(model, model, optimizer)
    if uniform and (parallel.sharded or parallel.tp_degree > 1) and _is_plain(model, architecture):
        return ShardedReplica.of(model, optimizer, architecture, parallel)
    move_state(optimizer, parallel.device)
    if not uniform:
        return AveragedReplica(model, model, optimizer, parallel)
    return Replica(model, DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True), optimizer)


def _is_plain(model: nn.Module, architecture: Architecture) -> bool:
    """Whether it is a model of the architecture and nothing else, such as a growth operator that is learned."""
    return hasattr(model, "sizes") and parameter_shapes(model) == architecture.shapes(sizes_of(model))


@dataclass
class Replica:
    """A phase's model and optimizer as this process trains them: the whole of them, in one process or replicated by DDP."""

    model: nn.Module
    module: nn.Module  # what is called in training: the model, or a wrapper
    optimizer: Optimizer

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can take it."""
        return True

    def accumulating(self) -> AbstractContextManager[None]:
        """For all micro-batches but a batch's last: gradients are added up, not yet averaged across processes."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()

    def update(self, largest_norm: float) -> None:
        """Clip the norm of the gradients, step the optimizer, and drop the gradients."""
        clip_grad_norm_(parameters_of(self.optimizer), largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gather(self) -> None:
        """Copy what training changed into the whole model and its optimizer. A collective call."""

    def close(self) -> None:
        """The phase is over."""


@dataclass
class AveragedReplica(Replica):
    """A replica whose gradients are averaged after backward, for phases whose steps use different parameters."""

    parallel: Parallel

    def update(self, largest_norm: float) -> None:
        trained = parameters_of(self.optimizer)
        used = self.parallel.any_process(*(parameter.grad is not None for parameter in trained))
        for parameter in itertools.compress(trained, used):
            if parameter.grad is None:  # used by other processes alone
                parameter.grad = torch.zeros_like(parameter)
            self.parallel.mean(parameter.grad)
        super().update(largest_norm)


@dataclass
class ShardedReplica(Replica):
    """Parameters and optimizer state sharded over processes: by tensor parallelism, by FSDP2, or by both.

    What is trained is a copy. The method's own model and optimizer wait in host memory meanwhile. The optimizer's state stays
    there until it is trained with again, because it is the largest part of what need not fit on one device.
    """

    whole: nn.Module
    whole_optimizer: Optimizer
    parallel: Parallel
    cuts: dict[str, Cut]
    pairs: list[tuple[str, nn.Parameter, nn.Parameter]] = field(default_factory=list)  # name, whole, sharded

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, architecture: Architecture, parallel: Parallel) -> ShardedReplica:
        sharded = copy.deepcopy(model)
        cuts = tensor_parallel.split(sharded, architecture, parallel.mesh["tensor"]) if parallel.tp_degree > 1 else {}
        if parallel.dp_degree > 1:
            stack, name = architecture.stack(sharded)
            for layer in getattr(stack, name):
                fully_shard(layer, mesh=parallel.mesh["data"])
            fully_shard(sharded, mesh=parallel.mesh["data"])
        own_optimizer = copy.copy(optimizer)
        replica = cls(sharded, sharded, own_optimizer, model, optimizer, parallel, cuts)
        replica.pairs = [(name, p, sharded.get_parameter(name)) for name, p in model.named_parameters()]
        own = {whole: (name, part) for name, whole, part in replica.pairs}
        own_optimizer.state = defaultdict(dict)
        own_optimizer.param_groups = []
        for group in optimizer.param_groups:
            by_mesh: dict[Any, list[nn.Parameter]] = defaultdict(list)  # tensors of several meshes cannot be handled together
            for whole in group["params"]:
                name, part = own[whole]
                by_mesh[_mesh(part)].append(part)
                own_optimizer.state[part] = {
                    key: replica._scatter(name, value, part) for key, value in optimizer.state[whole].items()
                }
            own_optimizer.param_groups += [{**group, "params": parts, "whole": group} for parts in by_mesh.values()]
        model.to("cpu")
        move_state(optimizer, torch.device("cpu"))
        return replica

    @property
    def compiles(self) -> bool:
        """Not FSDP2 over tensor parallelism: torch.compile raises `Mixing fake modes NYI` (torch 2.14)."""
        return self.parallel.dp_degree == 1 or self.parallel.tp_degree == 1

    def update(self, largest_norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["whole"]["lr"]
        _clip(parameters_of(self.optimizer), largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gather(self) -> None:
        with torch.no_grad():
            for name, whole, sharded in self.pairs:
                whole.copy_(self._gather(name, sharded))
                for key, value in self.optimizer.state.get(sharded, {}).items():
                    home = whole.device if value.dim() else value.device  # fused AdamW keeps its count of steps on the device
                    self.whole_optimizer.state[whole][key] = self._gather(name, value).to(home, copy=True)

    def close(self) -> None:
        self.whole.to(self.parallel.device)

    def _scatter(self, name: str, value: Tensor, part: nn.Parameter) -> Tensor:
        """A tensor of the optimizer's state for a whole parameter, as this process's shard `part` needs it."""
        if value.dim() == 0:
            return value.clone()
        if not isinstance(part, DTensor):
            return value.to(part.device, copy=True)
        cut = self.cuts.get(name)
        value = cut.scattered(value, self.parallel.tp_degree) if cut else value
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
        return cut.gathered(full, self.parallel.tp_degree) if cut and full.dim() else full


def _mesh(tensor: Tensor) -> DeviceMesh | None:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _clip(parameters: list[nn.Parameter], largest_norm: float) -> None:
    """Clip the norm of all gradients together, where they are sharded over different meshes."""
    by_mesh: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh[_mesh(parameter.grad)].append(parameter.grad)
    norms = [get_total_norm(gradients) for gradients in by_mesh.values()]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    shrink = (largest_norm / (total + 1e-6)).clamp(max=1.0)
    for gradients in by_mesh.values():
        torch._foreach_mul_([each.to_local() if isinstance(each, DTensor) else each for each in gradients], shrink)
