"""The training step of an experiment's target, compiled on CUDA: its share of the matrix peak, and the kernels it consists of.

python -m tests.gpu.kernels bert-small-base --set machine.micro_batch=256
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from growbench import architectures, data
from growbench.config import loading
from growbench.costs import memory
from growbench.costs.flops import count
from growbench.costs.hardware import choose_device, device_name
from growbench.formatting import data_size, percent, quantity
from growbench.method import task_loss
from growbench.tools.throughput import WARM_UP, BareLoop, matrix_peak, wall_seconds
from growbench.training.precision import precision_of

BATCHES, STEPS, PROFILED = 2, 15, 2
KINDS = {  # of kernels, by their names; the first that fits
    "matrix products": r"nvjet|gemm|splitK|cutlass|mm$",
    "attention": r"sdpa|flash|fmha|cudnn|attention",
    "fused by torch.compile": r"^triton|^cpp_fused",
    "optimizer": r"multi_tensor|FusedAdam",
    "others": "",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--top", type=int, default=12, help="kernels that are named; default: 12")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    device = choose_device(options.device)
    loop, tokens, flops = prepared(options.experiment, options.set, device)
    started = time.monotonic()
    loop.train(1)
    first = time.monotonic() - started
    loop.train(WARM_UP)
    memory.reset_peak(device)
    seconds = wall_seconds(loop.train, STEPS, device) / STEPS
    largest = memory.peak(device)
    peak = matrix_peak(device, precision_of(loop.step.training, loop.step.machine, device) == "bf16")
    kernels = profiled(loop, device)
    rows = [f"{1e3 * each:8.2f} ms  {name}" for name, each in by_kind(kernels).most_common()]
    rows += [f"{1e3 * each:8.2f} ms  {name[:100]}" for name, each in kernels.most_common(options.top)]
    how = "compiled" if loop.step.compiled else "uncompiled"
    speed = f"{tokens / seconds:,.0f} tokens/s, {percent(flops / seconds / peak)} of {quantity(peak, 'FLOP/s')}"
    print("\n".join([f"of a step, {1e3 * seconds:.2f} ms:", *rows]))
    print(f"{device_name(device)}, torch {torch.__version__}")
    print(f"{options.experiment}, {how}: {speed}; peak memory {data_size(largest)}; first step {first:.0f} s")


def prepared(name: str, settings: list[str], device: torch.device) -> tuple[BareLoop, int, float]:
    """The loop on the experiment's target, tokens of a step, and FLOPs of a step."""
    experiment = loading.load(name, settings)
    architecture, rows = architectures.of(experiment), experiment.train.batch
    texts = data.load(experiment.data, architecture.objective, architecture.tokenizer, rows)
    batches = [texts.train_batch(step, 0) for step in range(BATCHES)]
    torch.manual_seed(0)
    with device:
        model = architecture.build(experiment.sizes("target", texts.vocabulary))
    part = batches[0].part(0, rows // experiment.machine.micro_batch_size(rows)).to(device)
    flops, _ = count(lambda: task_loss(model, part).backward())
    model.zero_grad()
    return BareLoop(experiment, texts.vocabulary, batches, model), texts.tokens_per_batch, flops * rows / len(part.inputs)


def profiled(loop: BareLoop, device: torch.device) -> Counter[str]:
    """Seconds of each kernel in a step; on a CPU of each operation, without those that it calls."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        wall_seconds(loop.train, PROFILED, device)
    found: Counter[str] = Counter()
    for each in profiler.key_averages():
        if device.type != "cuda":
            found[each.key] += each.self_cpu_time_total / PROFILED / 1e6
        elif str(each.device_type).endswith("CUDA") and not each.key.startswith("Optimizer."):  # which spans its kernels
            found[each.key] += each.self_device_time_total / PROFILED / 1e6
    return found


def by_kind(kernels: Counter[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, seconds in kernels.items():
        found[next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))] += seconds
    return found


if __name__ == "__main__":
    main()
