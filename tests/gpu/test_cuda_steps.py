"""One training step, and one run in memory: clock, precision, compilation, optimizer, attention, FLOPs and memory."""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from growbench import architectures, registry
from growbench.config import loading
from growbench.config.schema import Machine, Training
from growbench.costs import memory
from growbench.costs.flops import count
from growbench.costs.ledger import Costs, Stopwatch
from growbench.data.shapes import shape_batch
from growbench.method import Batch, Task, cross_entropy, task_loss
from growbench.method.loss import compiled_loss
from growbench.planning.plan import plan
from growbench.tools.miniatures import VOCABULARY, Cell
from growbench.training import step
from growbench.training.precision import autocast
from growbench.training.trainer import Trainer
from tests.gpu.conftest import FLOAT32, Train

CPU = torch.device("cpu")
BF16 = "train.precision=bf16"


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiply(matrix: Tensor, times: int) -> None:
    for _ in range(times):
        matrix @ matrix


# --- the clock


def test_the_stopwatch_agrees_with_the_wall_time_of_synchronised_steps(device: torch.device) -> None:
    """All step seconds together, of five measurements."""
    matrix = torch.randn(4096 if device.type == "cuda" else 512, 4096 if device.type == "cuda" else 512, device=device)
    multiply(matrix, 3)
    ratios = []
    for _ in range(5):
        watch = Stopwatch(device)
        wait_for(device)
        started = time.perf_counter()
        watch.mark()
        for _ in range(10):
            multiply(matrix, 2)
            watch.mark()
        wait_for(device)
        seconds = time.perf_counter() - started
        step_seconds = watch.read()
        assert len(step_seconds) == 10 and min(step_seconds) > 0
        ratios.append(sum(step_seconds) / seconds)
    assert 0.9 < statistics.median(ratios) < 1.02


@pytest.mark.gpu
def test_the_stopwatch_does_not_make_the_host_wait() -> None:
    """Work is queued in a fraction of the time that it takes; torch itself is told to refuse any synchronisation."""
    device = torch.device("cuda")
    matrix, watch = torch.randn(8192, 8192, device=device), Stopwatch(device)
    multiply(matrix, 3)
    watch.mark()
    watch.read()
    torch.cuda.set_sync_debug_mode("error")
    try:
        started = time.perf_counter()
        watch.mark()
        for _ in range(20):
            multiply(matrix, 1)
            watch.mark()
        queued = time.perf_counter() - started
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert queued < 0.5 * sum(watch.read())


def test_the_seconds_of_a_run_are_the_wall_time_of_its_synchronised_steps(
    train: Train, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clocks of one run: the ledger's, and the host's with the device awaited before and after each step."""
    seconds, one_step = [], Trainer._step

    def synchronised(self: Trainer, *arguments: Any, **options: Any) -> None:
        wait_for(device)
        started = time.perf_counter()
        one_step(self, *arguments, **options)
        wait_for(device)
        seconds.append(time.perf_counter() - started)

    monkeypatch.setattr(Trainer, "_step", synchronised)
    outcome, _ = train("scratch", device)
    assert len(seconds) == 12
    assert 0.5 * sum(seconds) < outcome.costs.seconds["train"] < 1.02 * sum(seconds)


# --- precision, compilation, optimizer


def test_bf16_trains_close_to_float32(train: Train, device: torch.device) -> None:
    exact, rounded = (train("scratch", device, precision)[1] for precision in (FLOAT32, BF16))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=5e-3)


def test_long_phases_are_compiled_on_cuda_alone(train: Train, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the clock: a miniature's compilation takes far longer than its steps. Losses to tolerance, FLOPs as before."""
    monkeypatch.setattr(step, "WORTH_COMPILING", 5)
    plain, expected = train("ligo", device, FLOAT32, "machine.compile=off")
    compiled, losses = train("ligo", device, FLOAT32, "machine.compile=auto")
    assert losses == pytest.approx(expected, rel=1e-3)
    assert compiled.costs.flops == plain.costs.flops
    assert plain.costs.seconds["compilation"] == 0
    if device.type == "cuda":
        assert compiled.costs.seconds["compilation"] > compiled.costs.seconds["train"]
    else:
        assert compiled.costs.seconds["compilation"] == 0


@pytest.mark.gpu
def test_the_compiled_loss_is_the_same_in_less_memory() -> None:
    """Beside the logits, which are padded as compiled models have them, there is their gradient alone."""
    rows, classes = 1024, 50257
    padded = torch.randn(rows, classes + 7, device="cuda", dtype=torch.bfloat16)[:, :classes]
    labels = torch.randint(classes, (rows,), device="cuda")
    found = []
    for compiled in False, True, True:
        logits = padded.detach().requires_grad_()
        with compiled_loss() if compiled else nullcontext():
            memory.reset_peak(torch.device("cuda"))
            before = torch.cuda.memory_allocated()
            loss = cross_entropy(logits, labels)
            (loss / 4).backward()
        more = torch.cuda.max_memory_allocated() - before
        assert logits.grad is not None
        found.append((loss.item(), logits.grad, more))
    (expected, gradient, _), _, (value, given, more) = found
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(given, gradient, rtol=2**-7, atol=0)
    assert more < 1.2 * gradient.nbytes


def test_the_tasks_optimizer_is_fused_and_steps_as_the_plain_one(miniature: Path, device: torch.device) -> None:
    """Three steps by the same gradients."""
    task = Task.of(loading.load(str(miniature)), "target", 300, device)
    trained = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = task.build()
        optimizer = task.optimizer(model)
        assert [group["fused"] for group in optimizer.param_groups] == [True, True]
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, device=device)
            optimizer.step()
        trained.append(model.state_dict())
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-7)


# --- attention and FLOPs


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention_equals_the_math_path(device: torch.device, causal: bool) -> None:
    """Outputs, and gradients of query, key and value."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # CUDA has flash attention in half precision only
    torch.manual_seed(0)
    given = [torch.randn(2, 4, 128, 32, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    results = []
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kernel):
            output = functional.scaled_dot_product_attention(*given, is_causal=causal)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), given)])
    tolerance = {"rtol": 4e-2, "atol": 4e-2} if device.type == "cuda" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(*results, **tolerance)


@pytest.mark.parametrize("name", architectures.names())
def test_a_models_loss_is_the_same_with_flash_attention(device: torch.device, name: str) -> None:
    """In the device's own precision; the flash path where the architecture's masks and head size let it be taken."""
    model, batch = _miniature(name, device)
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    losses = []
    for each in (kernels, kernels[-1:]):
        with (
            torch.no_grad(),
            autocast(Training(batch=1, steps=1, lr=1.0), Machine(), device),
            sdpa_kernel(each, set_priority=True),
        ):
            losses.append(task_loss(model.eval(), batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if device.type == "cuda" else 1e-5)


@pytest.mark.parametrize("name", architectures.names())
def test_flops_count_the_same_on_every_device(device: torch.device, name: str) -> None:
    """The step of every architecture, in the device's own precision, counts as on the CPU in float32."""
    counts = []
    for where in (CPU, device):
        model, batch = _miniature(name, where)
        with autocast(Training(batch=1, steps=1, lr=1.0), Machine(), where):
            counts.append(count(lambda: task_loss(model.train(), batch).backward())[0])  # noqa: B023
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["scratch", "ligo", "ki"])
def test_a_run_is_charged_the_same_flops_as_on_the_cpu(train: Train, method: str) -> None:
    here, there = (train(method, torch.device(name))[0].costs.flops for name in ("cuda", "cpu"))
    assert here == there and here["train"] > 0


def _miniature(name: str, device: torch.device) -> tuple[torch.nn.Module, Batch]:
    """A tiny model of an architecture, and a batch for it; the same values on every device."""
    experiment, architecture = Cell(name).experiment, architectures.get(name)
    torch.manual_seed(0)
    model = architecture.build(experiment.sizes("target", VOCABULARY)).to(device)
    batch = shape_batch(experiment.data, architecture.objective, experiment.train.batch, VOCABULARY, CPU)
    return model, batch.to(device)


# --- memory


@pytest.fixture
def large_corpus(corpus: Path, tmp_path: Path) -> Path:
    """The small corpus eight times over."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join([corpus.read_text(encoding="utf-8")] * 8), encoding="utf-8")
    return path


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["scratch", "bert2bert"])
@pytest.mark.parametrize(("precision", "bound"), [(FLOAT32, 0.25), (BF16, 0.35)])  # autocast's copies are estimated
def test_the_measured_peak_is_near_the_planned_one(
    train: Train, miniature: Path, large_corpus: Path, method: str, precision: str, bound: float
) -> None:
    """For GPT-2 4x512 on 2,048 tokens. A run before it has taken what the device's libraries keep."""
    device = torch.device("cuda")
    changes = ["target.layers=4", "target.width=512", "target.heads=8", "source.layers=2", "source.width=256", "source.heads=4"]
    changes += ["train.batch=128", "train.steps=4", "train.warmup=1", precision, "machine.compile=off"]
    changes.append(f"data.corpus=files:{large_corpus}")
    train(method, device, *changes)
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    memory.reset_peak(device)
    outcome, _ = train(method, device, *changes)
    (planned,) = plan(loading.load(str(miniature), changes), registry.get(method), 300, device)
    assert outcome.costs.peak_memory() - before == pytest.approx(planned.memory, rel=bound)


@pytest.mark.gpu
def test_memory_that_counting_takes_is_not_the_runs() -> None:
    """The math path keeps attention's weights, here 1 GiB of them; the kernel that a run uses does not."""
    device = torch.device("cuda")
    query = torch.randn(1, 16, 4096, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    costs = Costs(device)
    gc.collect()
    memory.reset_peak(device)
    before = costs.peak_memory()
    flops = costs.probe(lambda: functional.scaled_dot_product_attention(query, query, query).sum().backward(), "train")
    assert flops["train"] == 6 * 2 * 16 * 4096 * 4096 * 64
    assert costs.peak_memory() - before < 2**28
