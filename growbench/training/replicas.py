"""A phase's model and optimizer as the processes train them.

Data parallelism replicates the model (DDP) or shards parameters, gradients and optimizer state (FSDP2). Tensor parallelism
splits the matrices themselves (growbench.training.tensor_parallel). Either way a phase's loss gets a module of the model's own
class, and an optimizer steps as it would in one process.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from growbench.architectures import Architecture, parameter_shapes, sizes_of
from growbench.method import Phase
from growbench.training import tensor_parallel
from growbench.training.entries import ScaledEntries
from growbench.training.optimizer_state import is_element_wise, move_state, parameters_of
from growbench.training.parallel import HOST, Parallel
from growbench.training.tensor_parallel import Cut
from growbench.training.views import LossScope


def place(phase: Phase, optimizer: Optimizer, architecture: Architecture, parallel: Parallel, skips_parameters: bool) -> Replica:
    """A phase's model and optimizer as this process trains them. `skips_parameters`: some steps leave some without gradients.

    Only a model of the architecture is sharded, without a view, and only where all steps have the same workload; others are
    replicated.
    """
    live = _divided(phase, optimizer, architecture, parallel, skips_parameters)
    live.entries = ScaledEntries.of(phase, live.shard_of)
    return live


def _divided(
    phase: Phase, optimizer: Optimizer, architecture: Architecture, parallel: Parallel, skips_parameters: bool
) -> Replica:
    if parallel.is_single_process:
        return Replica(phase.model, optimizer)
    plain = phase.workload is None and phase.view is None and _is_plain(phase.model, architecture)
    if plain and (parallel.sharded or parallel.tp_degree > 1):
        replica = ShardedReplica if is_element_wise(optimizer) else ShardedModelReplica
        return replica.of(phase.model, optimizer, architecture, parallel)
    move_state(optimizer, parallel.device)
    return DataParallelReplica.of(phase.model, optimizer, parallel, skips_parameters)


def _is_plain(model: nn.Module, architecture: Architecture) -> bool:
    """Whether it is a model of the architecture and nothing else, such as a growth operator that is learned."""
    return hasattr(model, "sizes") and parameter_shapes(model) == architecture.shapes(sizes_of(model))


@dataclass
class Replica:
    """A phase's model and optimizer as this process trains them: here, the whole of them in a single process."""

    model: nn.Module  # what a loss gets
    optimizer: Optimizer
    entries: ScaledEntries = field(default_factory=ScaledEntries, init=False)  # that have a learning rate of their own

    @property
    def evaluation_module(self) -> nn.Module:
        """What is called to evaluate the model."""
        return self.model

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can take the model."""
        return True

    @property
    def is_whole(self) -> bool:
        """Whether this process holds all of the model."""
        return True

    def run(self, loss: Callable[[], Tensor]) -> Tensor:
        """Compute a loss of `model` for the backward pass."""
        return loss()

    def accumulating(self) -> AbstractContextManager[None]:
        """For all micro-batches but a batch's last: gradients are added up, not yet averaged across processes."""
        return nullcontext()

    def update(self, largest_norm: float) -> None:
        """Clip the norm of the gradients, step the optimizer, and drop the gradients."""
        clip_grad_norm_(parameters_of(self.optimizer), largest_norm)
        with self.entries.scaled():
            self.optimizer.step()
        self.zero_grad()

    def shard_of(self, parameter: nn.Parameter, value: Tensor) -> tuple[nn.Parameter, Tensor]:
        """What the optimizer steps in place of a parameter of the phase's model, and the same part of `value`."""
        return parameter, value.to(parameter.device)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad()

    def gather(self) -> None:
        """Copy what training changed into the whole model and its optimizer. A collective call."""

    def close(self) -> None:
        """The phase is over."""


@dataclass
class DataParallelReplica(Replica):
    """A whole model in each process; DDP averages the gradients."""

    scope: DistributedDataParallel

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, parallel: Parallel, skips_parameters: bool) -> Self:
        (skips_parameters,) = parallel.any_process(skips_parameters)  # DDP needs the same setting in all processes
        scope = DistributedDataParallel(LossScope(model), gradient_as_bucket_view=True, find_unused_parameters=skips_parameters)
        scope.broadcast_buffers = False  # each forward pass would broadcast masks and the like, which never change
        return cls(model, optimizer, scope)

    def run(self, loss: Callable[[], Tensor]) -> Tensor:
        found: Tensor = self.scope(loss=loss)
        return found

    def accumulating(self) -> AbstractContextManager[None]:
        return self.scope.no_sync()


@dataclass(eq=False)
class ShardedParameter:
    """A parameter of the method's model, and its shard in this process."""

    whole: nn.Parameter
    sharded: nn.Parameter  # a DTensor; a plain parameter where tensor parallelism leaves it whole
    cut: Cut | None  # how tensor parallelism splits it
    parallel: Parallel

    def __post_init__(self) -> None:
        # this process's part as a plain tensor, which an optimizer steps
        self.local = nn.Parameter(_to_local(self.sharded).detach(), self.sharded.requires_grad)

    def refresh(self) -> None:
        """Make `local` the present shard and its gradient."""
        grad = self.sharded.grad
        self.local.data = _to_local(self.sharded)
        if isinstance(grad, DTensor) and isinstance(self.sharded, DTensor):
            grad = grad.redistribute(placements=self.sharded.placements)
        self.local.grad = None if grad is None else _to_local(grad)

    def scatter(self, value: Tensor) -> Tensor:
        """This process's part of a tensor of the whole parameter's shape: a copy."""
        sharded, parallel = self.sharded, self.parallel
        if not isinstance(sharded, DTensor):
            return value.to(sharded.device, copy=True)
        value = self.cut.scattered(value, parallel.tp_degree) if self.cut else value
        if sharded.device_mesh.ndim == 1:
            return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None).to_local().clone()
        # in FSDP2's own order, tensor parallelism first: `distribute_tensor` refuses strided shards that are not even
        part = distribute_tensor(value, parallel.mesh["tensor"], [sharded.placements[1]], src_data_rank=None).to_local()
        return distribute_tensor(part, parallel.mesh["data"], [Shard(0)], src_data_rank=None).to_local().clone()

    def gather(self, value: Tensor) -> Tensor:
        """The whole of a tensor that is sharded like the parameter, from each process's part or as a DTensor. Collective."""
        sharded = self.sharded
        if isinstance(sharded, DTensor):
            if not isinstance(value, DTensor):
                mesh, placements, stride = sharded.device_mesh, sharded.placements, sharded.stride()
                value = DTensor.from_local(value, mesh, placements, run_check=False, shape=sharded.shape, stride=stride)
            value = value.full_tensor()
        return self.cut.gathered(value, self.parallel.tp_degree) if self.cut else value.detach()


@dataclass
class ShardedModelReplica(Replica):
    """Parameters and gradients sharded by tensor parallelism, by FSDP2, or by both, for any optimizer.

    A copy of the model is sharded. The optimizer steps on the whole parameters and gradients, in every process alike, as it
    may depend on more than one element at a time; so the parameters and its state are also whole on each device.
    """

    scope: LossScope
    whole: nn.Module
    parameters: list[ShardedParameter]
    parallel: Parallel

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, architecture: Architecture, parallel: Parallel) -> Self:
        sharded = copy.deepcopy(model)
        scope = LossScope(sharded)
        cuts = tensor_parallel.split(sharded, architecture, parallel.mesh["tensor"]) if parallel.tp_degree > 1 else {}
        if parallel.dp_degree > 1:
            stack, name = architecture.stack(sharded)
            for layer in getattr(stack, name):
                fully_shard(layer, mesh=parallel.mesh["data"])
            fully_shard(scope, mesh=parallel.mesh["data"])
        parameters = [
            ShardedParameter(whole, sharded.get_parameter(name), cuts.get(name), parallel)
            for name, whole in model.named_parameters()
        ]
        return cls(sharded, optimizer, scope, model, parameters, parallel)

    def __post_init__(self) -> None:
        move_state(self.optimizer, self.parallel.device)

    @property
    def evaluation_module(self) -> nn.Module:
        return self.scope

    @property
    def compiles(self) -> bool:
        """Not FSDP2 over tensor parallelism: torch.compile raises `Mixing fake modes NYI` (torch 2.14)."""
        return self.parallel.dp_degree == 1 or self.parallel.tp_degree == 1

    @property
    def is_whole(self) -> bool:
        return False

    def run(self, loss: Callable[[], Tensor]) -> Tensor:
        found: Tensor = self.scope(loss=loss)
        return found

    def update(self, largest_norm: float) -> None:
        for parameter in self.parameters:
            grad = parameter.sharded.grad
            parameter.whole.grad = None if grad is None else parameter.gather(grad)
        super().update(largest_norm)
        with torch.no_grad():
            for parameter in self.parameters:
                _to_local(parameter.sharded).copy_(parameter.scatter(parameter.whole))

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()
        self.model.zero_grad()

    def gather(self) -> None:
        """The parameters are whole already."""
        with torch.no_grad():
            for name, buffer in self.whole.named_buffers():
                buffer.copy_(self.model.get_buffer(name))


@dataclass
class ShardedReplica(ShardedModelReplica):
    """Parameters, gradients and optimizer state sharded, for element-wise optimizers.

    During the phase, the method's own model and optimizer are in host memory. The optimizer's state stays there until the next
    phase that uses it: it is the largest part of what may not fit on one device.
    """

    def __post_init__(self) -> None:
        self.shards = {parameter.whole: parameter for parameter in self.parameters}
        self.local_optimizer = object.__new__(type(self.optimizer))
        vars(self.local_optimizer).update(vars(self.optimizer))  # `copy.copy` would leave attributes out
        self.local_optimizer.state = defaultdict(dict)
        self.local_optimizer.param_groups = []
        for group in self.optimizer.param_groups:
            parts = [self.shards[whole] for whole in group["params"]]
            self.local_optimizer.param_groups.append({**group, "params": [part.local for part in parts]})
            for part in parts:
                state = self.optimizer.state[part.whole]
                self.local_optimizer.state[part.local] = {key: _each(value, part.scatter) for key, value in state.items()}
        self.whole.to(HOST)
        move_state(self.optimizer, HOST)

    def update(self, largest_norm: float) -> None:
        _clip([parameter.sharded.grad for parameter in self.parameters if parameter.sharded.grad is not None], largest_norm)
        for parameter in self.parameters:
            parameter.refresh()
        for group, local in zip(self.optimizer.param_groups, self.local_optimizer.param_groups, strict=True):
            local.update({**group, "params": local["params"]})
        with self.entries.scaled():
            self.local_optimizer.step()
        self.zero_grad()

    def shard_of(self, parameter: nn.Parameter, value: Tensor) -> tuple[nn.Parameter, Tensor]:
        part = self.shards[parameter]
        return part.local, part.scatter(value)

    def zero_grad(self) -> None:
        self.local_optimizer.zero_grad()
        self.model.zero_grad()

    def gather(self) -> None:
        super().gather()
        with torch.no_grad():
            for part in self.parameters:
                part.whole.copy_(part.gather(part.sharded))
                for key, value in self.local_optimizer.state.get(part.local, {}).items():
                    whole = _each(value, part.gather)
                    moved = isinstance(whole, Tensor) and whole.dim()  # fused AdamW keeps its step counts on the device
                    self.optimizer.state[part.whole][key] = whole.to(part.whole.device, copy=True) if moved else whole

    def close(self) -> None:
        self.whole.to(self.parallel.device)


def _to_local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _each(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """A value of an element-wise optimizer's state, with tensors of the parameter's shape converted and others copied."""
    if not isinstance(value, Tensor):
        return value
    return convert(value) if value.dim() else value.clone()


def _clip(gradients: list[Tensor], largest_norm: float) -> None:
    """Clip the norm of all gradients together, where they are sharded over different meshes."""
    by_mesh: dict[Any, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_mesh[gradient.device_mesh if isinstance(gradient, DTensor) else None].append(gradient)
    norms = [get_total_norm(each) for each in by_mesh.values()]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    shrink = (largest_norm / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([_to_local(gradient) for gradient in gradients], shrink)
