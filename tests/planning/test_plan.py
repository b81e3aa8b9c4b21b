"""The plan of a run: its memory against closed forms and measured peaks, and what --dry-run prints."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from growbench import cli
from growbench.config import loading, schema
from growbench.costs import memory
from growbench.costs.flops import count
from growbench.data import Batch
from growbench.data.shapes import shape_batch
from growbench.formatting import quantity
from growbench.planning import plan
from growbench.planning.memory_estimate import DeviceEmulation, TensorTracker
from growbench.planning.plan import CPU, META
from growbench.registry import get
from growbench.tools import dry_run as dry_run_tool
from growbench.tools import phase_costs
from tests.processes import FORKED

CUDA = torch.device("cuda")
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


def step_of(linear: nn.Linear, inputs: torch.Tensor) -> None:
    linear(inputs).square().sum().backward()


def test_a_tensor_counts_from_its_making_until_it_is_freed() -> None:
    with TensorTracker() as tracker:
        first = torch.empty(100, 10, device=META)
        view = first.t()[3:]
        second = first * 2
        assert tracker.live == tracker.peak == 2 * 4000
        del first
        assert tracker.live == 2 * 4000, "its view is still there"
        del view, second
        assert (tracker.live, tracker.peak) == (0, 2 * 4000)
        tracker.reset()
        assert tracker.peak == 0


@pytest.mark.parametrize("shape", [(4, 3), (0, 3)])
@pytest.mark.parametrize("last", [False, True])
def test_masks_keep_their_values(shape: tuple[int, int], last: bool) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[-1:] = last
    expected = mask.any(), mask.t().any(), mask[:, 1:].any()
    with TensorTracker():
        found = mask.any(), mask.t().any(), mask[:, 1:].any()
    assert all(map(torch.equal, found, expected)) and found[0].dtype == torch.bool


def test_a_large_random_order_is_not_drawn() -> None:
    generator = torch.Generator()
    with TensorTracker():
        assert torch.randperm(2**20 + 1, generator=generator).is_meta
        assert not torch.randperm(2**10, generator=generator).is_meta


def test_what_backward_needs_is_kept_and_freed() -> None:
    """y = W x; loss = sum(y^2). Alive at the peak, in backward: W, x, y, the gradients of y^2, of y, and what that is made of."""
    with TensorTracker() as tracker:
        linear, x = nn.Linear(30, 20, bias=False, device=META), torch.empty(50, 30, device=META)
        weight, given, output = 4 * 20 * 30, 4 * 50 * 30, 4 * 50 * 20
        assert tracker.live == weight + given
        step_of(linear, x)
        assert tracker.live == 2 * weight + given, "the gradient stays"
        assert weight + given + 2 * output <= tracker.peak <= 2 * weight + given + 4 * output


@pytest.mark.parametrize(("device", "dropout", "weights"), [(CPU, 0.0, 0), (CPU, 0.1, 1), (CUDA, 0.1, 0)])
def test_attention_keeps_its_weights_only_where_no_kernel_does_it(device: torch.device, dropout: float, weights: int) -> None:
    shape = 2, 4, 64, 16
    with TensorTracker() as tracker, DeviceEmulation(device, False, tracker):
        q, k, v = (torch.empty(*shape, device=META, requires_grad=True) for _ in range(3))
        before = tracker.live
        output = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        kept = tracker.live - before
        size, pairs = 4 * 2 * 4 * 64 * 16, 4 * 2 * 4 * 64 * 64
        if weights:
            assert kept > size + 2 * pairs  # softmax, and the mask
        else:
            assert kept == size + 4 * 2 * 4 * 64  # the output, and a sum for each query
        output.sum().backward()
        assert q.grad is not None and q.grad.shape == shape


def test_attention_in_bf16_keeps_its_weights_on_a_cpu() -> None:
    with TensorTracker() as tracker, DeviceEmulation(CPU, True, tracker):
        q, k, v = (torch.empty(2, 4, 64, 16, device=META, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        before = tracker.live
        output = functional.scaled_dot_product_attention(q, k, v)
        assert tracker.live - before == 2 * (output.numel() + 2 * 4 * 64 * 64)
        output.sum().backward()
        assert tracker.live - before == 2 * 4 * output.numel(), "the output and three gradients"


def test_half_precision_keeps_halves() -> None:
    """A product keeps its input and its weight in half precision."""
    with TensorTracker() as tracker, DeviceEmulation(CUDA, True, tracker):
        linear, x = nn.Linear(30, 20, bias=False, device=META), torch.empty(50, 30, device=META)
        before = tracker.live
        y = linear(x)
        assert y.dtype == torch.bfloat16
        assert tracker.live - before == 2 * (20 * 30 + 50 * 30 + 50 * 20)
        assert functional.layer_norm(y, (20,)).dtype == torch.float32


def test_a_plan_counts_the_same_with_and_without_a_tracker(miniature: Path) -> None:
    """What is remembered of shapes changes no count: the FLOPs are those of a real step."""
    experiment = loading.load(str(miniature))
    (planned,) = plan.plan(experiment, get("scratch"), 300)
    real = phase_costs.PhaseStep.of(experiment, "scratch", 0, 300, CPU)
    flops, _ = count(lambda: real.step.phase.loss(real.step.live.model, real.batch, 0).backward())
    assert planned.flops_per_step == {"train": flops}


def test_memory_holds_weights_gradients_moments_and_the_source(miniature: Path) -> None:
    """With hardly any activations: four times the parameters, and the source once where a method uses one."""
    sizes = ["source.width=512", "source.heads=4", "target.width=1024", "target.heads=8", "train.batch=1", "target.layers=1"]
    experiment = loading.load(str(miniature), [*sizes, "data.sequence_length=4"])
    parameters = [4 * (12 * width**2 + 300 * width) for width in (512, 1024)]
    (scratch,), (grown,) = (plan.plan(experiment, get(name), 300) for name in ("scratch", "bert2bert"))
    assert 4 * parameters[1] < scratch.memory < 4.5 * parameters[1]
    assert grown.memory - scratch.memory > 0.95 * parameters[0]


def test_frozen_parameters_have_no_gradients_and_moments(miniature_bert: Path) -> None:
    experiment = loading.load(str(miniature_bert), ["target.layers=4", "target.width=256", "train.batch=1"])
    phases = {phase.name: phase.memory for phase in plan.plan(experiment, get("mslt"), 300)}
    assert phases["top of 4"] < 0.75 * phases["all layers"]


def test_micro_batches_save_memory_and_no_flops(miniature: Path) -> None:
    experiment = loading.load(str(miniature), ["train.batch=64"])
    (whole,) = plan.plan(experiment, get("scratch"), 300)
    (parts,) = plan.plan(replace(experiment, machine=schema.Machine(micro_batch=8)), get("scratch"), 300)
    assert parts.flops_per_step == whole.flops_per_step
    assert parts.memory < 0.3 * whole.memory
    (one,) = plan.plan(replace(experiment, machine=schema.Machine(micro_batch=128)), get("scratch"), 300)
    assert one == whole, "a batch of fewer is worked on whole"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="elsewhere than on Linux a process has one peak only")
@pytest.mark.parametrize(
    ("method", "phase", "precision"), [("scratch", 0, "float32"), ("scratch", 0, "bf16"), ("ligo", 0, "float32")]
)
def test_the_estimate_is_near_the_measured_peak(method: str, phase: int, precision: str) -> None:
    """GPT-2 3x384 on 1,024 tokens, in a process of its own."""
    sizes = ["source.width=192", "source.heads=3", "target.layers=3", "target.width=384", "target.heads=6", "train.batch=16"]
    experiment = loading.load("gpt2-tiny", [*sizes, f"train.precision={precision}"])
    planned = plan.plan(experiment, get(method), 2048)[phase].memory
    with ProcessPoolExecutor(1, FORKED, own_pages) as alone:
        measured = alone.submit(phase_costs.step_memory, experiment, method, phase, 2048, CPU).result()
    assert planned == pytest.approx(measured, rel=0.25)


def own_pages() -> None:
    """Let every tensor have pages of its own, given back when it is freed: the peak is then that of tensors, not of gaps."""
    if hasattr(memory.LIBRARY, "mallopt"):
        memory.LIBRARY.mallopt(M_MMAP_THRESHOLD, 2**16)


def dry_run(*arguments: str | Path) -> int:
    return cli.main(["run", *map(str, arguments), "--dry-run"])


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip() and not line.startswith(" ")}


def test_times_follow_from_the_throughput(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(miniature, "--methods", "ki,ligo", "--throughput", "1e6") == 0
    out = capsys.readouterr().out
    assert "at 1.00 MFLOP/s\ngiven with --throughput, on cpu" in out
    (planned,) = plan.plan(loading.load(str(miniature)), get("scratch"), 300)
    assert " ".join(rows(out)["scratch"][-2:]) == quantity(planned.flops / 1e6, "s")
    assert "inherit: 4 x " in out and "learn operator: 3 x " in out
    assert all(len(line) <= 120 for line in out.splitlines())


def test_the_speed_is_measured_on_little_where_a_sequence_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a vocabulary of a million tokens, one sequence of 2,048 would take a TFLOP."""
    experiment = loading.load("qwen3-tiny", ["data.sequence_length=2048"])
    computed: list[tuple[int, int]] = []

    def made(data: schema.TextConfig, objective: str, rows: int, vocabulary: int, device: torch.device) -> Batch:
        if device == CPU:
            computed.append((rows * data.sequence_length, vocabulary))
        return shape_batch(data, objective, rows, vocabulary, device)

    monkeypatch.setattr(dry_run_tool, "shape_batch", made)
    assert dry_run_tool.throughput(experiment, 1_000_000, CPU) > 0
    ((tokens, vocabulary),) = computed
    assert tokens * vocabulary < 1e8


def test_a_plan_for_a_device_that_is_not_here(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is here")
    cuda = ["--device", "cuda", "--throughput", "150e12", "--set", "train.precision=auto"]
    assert dry_run(miniature, "--methods", "scratch", *cuda) == 0
    assert "bf16 on cuda" in capsys.readouterr().out
    assert dry_run(miniature, "--methods", "scratch", "--device", "cuda") == 2


def test_a_plan_names_the_optimizer_and_its_own_products(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for optimizer in ("adamw", "muon"):
        given = f"train.optimizer={optimizer}"
        assert dry_run(miniature, "--methods", "scratch", "--throughput", "1e9", "--set", given) == 0
        out = capsys.readouterr().out
        assert f"float32 on cpu, optimizer {optimizer}\n" in out
        assert ("not charged: " in out) == (optimizer == "muon")


def test_a_method_that_cannot_be_planned_has_a_row_that_says_so(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    looks = "yield Phase(model=task.model_from({n: w for n, w in task.read(task.build()).items() if w.value.sum().item() < 9}))"
    scratch = (Path(cli.__file__).parents[1] / "methods" / "scratch.py").read_text()
    mine.write_text(scratch.replace("yield Phase(model=task.build())", looks))
    assert dry_run(miniature, "--methods", f"{mine},ligo", "--throughput", "1e9") == 0
    found = rows(capsys.readouterr().out)
    assert "cannot be planned without values" in " ".join(found["mine"])
    assert found["ligo"][1] == "15"


@pytest.mark.parametrize("value", ["0", "-1", "fast", "inf", "nan"])
def test_a_throughput_is_a_positive_number(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        dry_run("gpt2-tiny", "--throughput", value)
    assert caught.value.code == 2
    assert "must be a number above 0" in capsys.readouterr().err


def test_throughput_without_a_dry_run_is_refused(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(miniature), "--throughput", "1e12"]) == 2
    assert "--throughput: only with --dry-run" in capsys.readouterr().err
