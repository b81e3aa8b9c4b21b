"""Training steps captured as CUDA graphs, which the host launches as a whole: launching kernels one by one bounds small models.

A graph repeats the kernels of the captured step on the same memory, and no Python. So a loss must not depend on the number
of its step, and nothing may wait for the device. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from growbench.console import say
from growbench.costs.flops import T
from growbench.data import Batch
from growbench.errors import UsageError
from growbench.method import task_loss
from growbench.training.optimizer_state import is_element_wise, parameters_of
from growbench.training.replicas import Replica
from growbench.training.step import Step

KNOWN = ("torch.", "transformers.", "timm.", "growbench.architectures.")  # packages whose modules compute the same in every step
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WAIT = "called a synchronizing CUDA operation"  # how torch warns of one


def capture(step: Step, batch: Batch) -> CapturedStep | Step:
    """The step as graphs; the step itself if it cannot be captured: prints why. Trains nothing, but draws random numbers.

    A step must have been done before: it makes the optimizer's state. Raises UsageError if torch fails to capture.
    """
    captured = obstacle(step) or _capture(step, batch)
    if isinstance(captured, CapturedStep):
        return captured
    say(f"phase {step.phase.name!r} runs without CUDA graphs: {captured}")
    return step


def obstacle(step: Step) -> str:
    """Why a phase's steps cannot be captured, as far as can be told without trying; empty if there is no reason."""
    phase = step.phase
    if step.device.type != "cuda":
        return f"the device is {step.device.type}"
    if type(step.live) is not Replica:
        return "several processes train it"
    if phase.loss is not task_loss:
        return "its loss is not the task's own, so it may depend on the step"
    if phase.workload is not None:
        return "its steps have several workloads"
    return next(filter(None, (_wrong(name or "its model", each) for name, each in phase.model.named_modules())), "")


def _wrong(name: str, module: nn.Module) -> str:
    """Why the computation of a module cannot be captured; empty if it can."""
    if not type(module).__module__.startswith(KNOWN) or "forward" in vars(module):
        return f"{name} is a module of the method's own, so it may depend on the step"
    own = [getattr(module, hooks) for hooks in HOOKS]
    own += [
        hooks for each in module.parameters(recurse=False) for hooks in (each._backward_hooks, each._post_accumulate_grad_hooks)
    ]
    return f"{name} has hooks" if any(own) else ""


@dataclass(frozen=True)
class CapturedStep:
    """Does the steps of a phase as Step does, by graphs. The memory that they were captured with belongs to them."""

    step: Step
    batch: Batch  # which the graph reads
    loss: Tensor  # which it writes
    gradients: Sequence[tuple[nn.Parameter, Tensor]]  # likewise, of each parameter that has one
    forward_backward: torch.cuda.CUDAGraph
    clip_and_optimizer: CapturedUpdate | None  # None: the optimizer is not known to step without Python

    def backward(self, batch: Batch, step: int) -> Tensor:
        """As Step.backward. The batch must have the captured one's shapes."""
        for own, given in zip(self.batch, batch, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.forward_backward.replay()
        if self.clip_and_optimizer is None:
            for parameter, gradient in self.gradients:
                parameter.grad = gradient
        return self.loss.clone()

    def update(self) -> None:
        """As Step.update."""
        if self.clip_and_optimizer is None:
            self.step.update()
        else:
            self.clip_and_optimizer.replay()


@dataclass(frozen=True)
class CapturedUpdate:
    """Clips the gradients, steps AdamW and drops the gradients."""

    optimizer: Optimizer
    rates: Sequence[Tensor]  # of each param group, which the graph reads
    graph: torch.cuda.CUDAGraph

    def replay(self) -> None:
        """At the param groups' present learning rates."""
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.graph.replay()


def _capture(step: Step, batch: Batch) -> CapturedStep | str:
    """The step as graphs, or why there are none."""
    positions = None if batch.positions is None else batch.positions.clone()
    own = Batch(batch.inputs.clone(), positions, batch.labels.clone())
    waits = _waits(partial(step.backward, own, 0), step.device)
    step.live.zero_grad()
    if waits:
        return "its steps wait for the device"
    graph, loss = _recorded(partial(step.backward, own, 0), step.device)
    gradients = [(each, each.grad) for each in parameters_of(step.live.optimizer) if each.grad is not None]
    update = _captured_update(step, graph) if _steps_alone(step.live) else None
    step.live.zero_grad()
    return CapturedStep(step, own, loss, gradients, graph, update)


def _captured_update(step: Step, before: torch.cuda.CUDAGraph) -> CapturedUpdate:
    optimizer = step.live.optimizer
    rates = [torch.tensor(group["lr"], device=step.device) for group in optimizer.param_groups]
    with _capturable(optimizer, rates):
        graph, _ = _recorded(step.update, step.device, before)
    return CapturedUpdate(optimizer, rates, graph)


@dataclass(frozen=True)
class CapturedValue:
    """Computes something without gradients, again and again, from the memory that it was captured with."""

    graph: torch.cuda.CUDAGraph
    value: Tensor

    @classmethod
    def of(cls, work: Callable[[], Tensor], device: torch.device) -> CapturedValue | None:
        """None if something in `work` waits for the device. Raises UsageError if torch fails to capture."""
        return None if _waits(work, device) else cls(*_recorded(work, device))

    def __call__(self) -> Tensor:
        """The value now. The next call overwrites it."""
        self.graph.replay()
        return self.value


def _waits(work: Callable[[], Any], device: torch.device) -> bool:
    """Whether something in `work` waits for the device. It is done on the stream of captures.

    So it sets up what libraries set up in their first call on a stream, which must not be captured.
    """
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream), _noticing_waits() as waits:
        work()
    current.wait_stream(stream)
    return bool(waits)


def _recorded(
    work: Callable[[], T], device: torch.device, before: torch.cuda.CUDAGraph | None = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """The kernels of `work`, and what it returns, in memory that they write. `before`: the graph that runs before it."""
    graph, pool = torch.cuda.CUDAGraph(), before.pool() if before else None
    try:  # other threads may use the device meanwhile
        with torch.cuda.graph(graph, pool, _stream(device), capture_error_mode="thread_local"):
            made = work()
    except RuntimeError as error:
        raise UsageError(f"torch failed to capture a CUDA graph: {error}; set machine.graphs = false") from error
    return graph, made


def _steps_alone(live: Replica) -> bool:
    """Whether the optimizer's step is kernels alone, that depend on nothing in Python but the learning rates."""
    fused = type(live.optimizer) is AdamW and all(group["fused"] for group in live.optimizer.param_groups)
    return fused and is_element_wise(live.optimizer) and not live.entries.parts


@contextmanager
def _capturable(optimizer: Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """Within, the optimizer reads its learning rates from the device. Afterwards its param groups are as before."""
    before = [{key: group[key] for key in ("lr", "capturable")} for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group.update(lr=rate, capturable=True)
    try:
        yield
    finally:
        for group, settings in zip(optimizer.param_groups, before, strict=True):
            group.update(settings)


@contextmanager
def _noticing_waits() -> Iterator[list[str]]:
    """Yields a list, which holds after the `with` block how torch warned of operations that waited for the device."""
    found: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    found += [str(each.message) for each in heard if WAIT in str(each.message)]


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep memory for each stream."""
    return torch.cuda.Stream(device)
