"""What training costs: a FLOP counter, a clock, a ledger, and the closed form of LiGO's paper.

FLOPs: multiply-add = 2, matrix products only, attention in full even if causal, nothing recomputed, no optimizer.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from growbench import memory
from growbench.architectures import Architecture, sizes_of
from growbench.config import ModelConfig
from growbench.data import Batch
from growbench.results import CHARGED, UNCHARGED

T = TypeVar("T")
aten = torch.ops.aten


def _mv(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _addmv(bias: Any, matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _dot(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a[0]


# torch's counter knows products of matrices, but not of matrix and vector
VECTOR_PRODUCTS = {aten.mv: _mv, aten.addmv: _addmv, aten.dot: _dot}


class _NoModules:
    """Takes the place of torch's ModuleTracker, which fails where a module gets a view of a parameter under no_grad (CaiT)."""

    parents = frozenset({"Global"})  # only totals are read

    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None: ...


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of what runs inside. Attention takes the math path: the fused CPU kernels are invisible to the counter."""
    counter = FlopCounterMode(display=False, custom_mapping=VECTOR_PRODUCTS)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


def count(function: Callable[[], T]) -> tuple[int, T]:
    """FLOPs of `function()`, and what it returned."""
    with counting() as counter:
        result = function()
    return counter.get_total_flops(), result


def fvcore_forward(model: nn.Module, batch: Batch) -> int:
    """FLOPs of a forward pass by fvcore, an independent counter, which must equal ours.

    fvcore counts a multiply-add as 1, counts norms, and does not know fused attention: here it is doubled, norms are left
    out, and attention is two products.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore traces, which torch has deprecated
        return _fvcore_forward(model, batch)


def _fvcore_forward(model: nn.Module, batch: Batch) -> int:
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

    def attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        *rows, queries, head_size = get_shape(inputs[0])
        keys, value_size = get_shape(inputs[1])[-2], get_shape(inputs[2])[-1]
        return Counter({"attention": math.prod(rows) * queries * keys * (head_size + value_size)})

    def nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return Counter()

    arguments = (batch.inputs,) if batch.positions is None else (batch.inputs, batch.positions)
    analysis = FlopCountAnalysis(model.eval(), arguments).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention, "aten::layer_norm", nothing)
    return 2 * int(analysis.total())


class Stopwatch:
    """Times laps without making the host wait for the device: events on CUDA, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """End a lap; the first mark starts the first one."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def read(self) -> list[float]:
        """Seconds of the laps since the last reading. Waits for the device."""
        marks, self.marks = self.marks, []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
        return [b - a for a, b in itertools.pairwise(marks)]


def charged(ledger: Mapping[str, float]) -> float:
    """What of a ledger's accounts is charged, without the source."""
    return sum(ledger[account] for account in CHARGED)


class Costs:
    """One run's ledger: FLOPs and seconds by account, filled by measuring what the runner does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flops = {account: 0 for account in ("source", *CHARGED, *UNCHARGED)}
        self.seconds = {account: 0.0 for account in ("source", *CHARGED, *UNCHARGED)}
        self.teacher_account = "teacher"
        self._counter: FlopCounterMode | None = None
        self._teacher_flops = 0
        self._teacher_watch = Stopwatch(device)
        self._peak = 0  # bytes, before the latest counting

    def total(self, kind: str) -> float:
        """What is charged so far without the source: `kind` is "flops" or "seconds"."""
        return charged(getattr(self, kind))

    def spent(self) -> float:
        """Seconds of this run in every account but overhead, which is all the rest."""
        return sum(seconds for account, seconds in self.seconds.items() if account not in ("source", "overhead"))

    @contextmanager
    def clocked(self, account: str) -> Iterator[None]:
        """Charge the seconds of what runs inside."""
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds[account] += time.perf_counter() - start

    def peak_memory(self) -> int:
        """The bytes taken at most, but for what only counting takes on CUDA: attention by the math path keeps its weights."""
        return max(self._peak, memory.peak(self.device))

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Memory that is taken inside is not the run's."""
        if self.device.type != "cuda":  # elsewhere a new peak takes long to begin, and the path is the math one anyway
            yield
            return
        self._peak = self.peak_memory()
        yield
        memory.reset_peak(self.device)

    def charged(self, account: str, function: Callable[[], T]) -> T:
        """Run `function`, charge its FLOPs and seconds."""
        with self.clocked(account), self._apart() if account in UNCHARGED else nullcontext():
            flops, result = count(function)
        self.flops[account] += flops
        return result

    @contextmanager
    def teacher(self, precomputed: bool = False) -> Iterator[None]:
        """A teacher's forward pass: no gradients, its FLOPs and seconds apart.

        `precomputed`: as if its outputs had been stored before; recorded as overhead, and not charged.
        """
        self.teacher_account = "overhead" if precomputed else "teacher"
        before = self._counter.get_total_flops() if self._counter else 0
        self._teacher_watch.mark()
        with torch.no_grad():
            yield
        self._teacher_watch.mark()
        if self._counter:
            self._teacher_flops += self._counter.get_total_flops() - before

    def teacher_seconds(self) -> float:
        """Seconds inside `teacher()` since the last reading."""
        return sum(self._teacher_watch.read()[::2])

    def probe(self, step: Callable[[], Any], account: str) -> dict[str, int]:
        """FLOPs of one training step by account; afterwards the random state is as before, the time is overhead."""
        cuda = [self.device] if self.device.type == "cuda" else []
        self._teacher_flops = 0
        with torch.random.fork_rng(devices=cuda), self.clocked("overhead"), self._apart(), counting() as self._counter:
            step()
        flops = self._counter.get_total_flops()
        self._counter = None
        self._teacher_watch.marks.clear()
        self.flops["overhead"] += flops
        return {account: flops - self._teacher_flops} | (
            {self.teacher_account: self._teacher_flops} if self._teacher_flops else {}
        )

    def compiling(self, step: Callable[[], Any]) -> None:
        """Run a training step for the sake of what is compiled at its first call; afterwards the random state is as before."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), self.clocked("compilation"):
            step()
        self._teacher_watch.marks.clear()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def ligo_paper_step(
    sizes: ModelConfig, batch: int, sequence: int, trained_layers: int | None = None, trained_embeddings: bool = True
) -> int:
    """FLOPs of a training step by the counter of LiGO's paper: ELECTRA's, with backward counted equal to forward.

    The embedding is charged as a dense product and the head at 0.15625 of the positions. Layers and embeddings that are
    frozen have no backward. Source: flop_computation.py of VITA-Group/LiGO.
    """
    h, i, heads, s, v = sizes.width, sizes.ffn, sizes.heads, sequence, sizes.vocabulary
    block = 8 * h * h + 4 * h * i + 4 * h * s + 10 * s * heads + 20 * h + 9 * i + 5
    embedding = 2 * h * v + 2 * h * (s + 2) + 2 * h + 5 * h + 4 * h
    output = 0.15625 * (2 * h * v + 2 * h * h + h + 8 * h + 5 * h + 7 * v)
    forward = embedding + sizes.layers * block + output
    backward = trained_embeddings * embedding + (sizes.layers if trained_layers is None else trained_layers) * block + output
    return round(batch * s * (forward + backward))


def ligo_paper_construction(small: ModelConfig, large: ModelConfig) -> int:
    """FLOPs of building the large weights, as LiGO's paper counts them: each entry once per block and per sequence.

    Once per sequence is the paper's slip (once per step is what happens); it is kept so that its figures come out.
    Source: flop_computation.py of VITA-Group/LiGO.
    """
    h, i, h1, n1 = large.width, large.ffn, small.width, small.layers
    new = h - h1
    attention = 2 * n1 * h * h + 4 * new * h1 * h1 + n1 * h + new * h1
    up = 2 * n1 * h * i + 4 * new * h1 * i + n1 * i + new * i
    down = 2 * n1 * h * i + 2 * new * i * h + 2 * n1 * h + new * h
    norms = 2 * n1 * h + 2 * new * h1 + 2 * n1 * h + new * h
    return large.layers * (2 * attention + up + down + norms)


def paper_step(
    architecture: Architecture, model: nn.Module, batch: int, sequence: int, teacher: ModelConfig | None = None
) -> int | None:
    """A step of any phase's model in the paper's counter; a model that is no plain transformer brings its own count.

    A teacher's forward is charged as half a step of the teacher. None for what the counter does not know: images, other models.
    """
    if architecture.objective == "classes":
        return None
    taught = ligo_paper_step(teacher, batch, sequence) // 2 if teacher else 0
    own = getattr(model, "paper_step_flops", None)
    if own:
        return int(own(batch, sequence)) + taught
    try:
        trained = {(name.partition(".")[0], layer) for name, layer, p in architecture.parameters(model) if p.requires_grad}
    except AttributeError:
        return None
    layers = sum(group == "layers" for group, _ in trained)
    return ligo_paper_step(sizes_of(model), batch, sequence, layers, ("embeddings", None) in trained) + taught
