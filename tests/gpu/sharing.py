"""One process of those whose speed together is measured: training steps on the target of an experiment.

python -m tests.gpu.sharing gpt2-mini --device cuda --seconds 5 --meet FOLDER --number 0 --processes 8
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from growbench import architectures, data
from growbench.config import loading
from growbench.costs.hardware import choose_device
from growbench.tools.throughput import READY, WARM_UP, BareLoop
from growbench.training.graphs import capture

WAIT = 60.0  # seconds for the other processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument(
        "--meet", type=Path, required=True, help="a folder, where each process leaves a file once it has warmed up"
    )
    parser.add_argument("--number", type=int, required=True, help="of this process")
    parser.add_argument("--processes", type=int, required=True, help="that are waited for")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print(f"{steps_per_second(options):.2f}")


def steps_per_second(options: argparse.Namespace) -> float:
    device = choose_device(options.device)
    experiment = loading.load(options.experiment, [*options.set, "machine.compile=off"])
    architecture = architectures.of(experiment)
    texts = data.load(experiment.data, architecture.objective, architecture.tokenizer, experiment.train.batch)
    torch.manual_seed(0)
    with device:
        model = architecture.build(experiment.sizes("target", texts.vocabulary))
    batches = [texts.train_batch(step, 0) for step in range(READY)]
    loop = BareLoop(experiment, texts.vocabulary, batches, model)
    loop.train(WARM_UP)
    if experiment.machine.graphs:
        loop.step = capture(loop.step, next(loop.batches))  # type: ignore[arg-type, assignment]
    (options.meet / str(options.number)).touch()
    deadline = time.monotonic() + WAIT
    while len(list(options.meet.iterdir())) < options.processes:
        if time.monotonic() > deadline:
            raise SystemExit("the other processes are not ready")
        time.sleep(0.01)
    started, steps = time.monotonic(), 0
    while time.monotonic() - started < options.seconds:
        loop.train(5)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        steps += 5
    return steps / (time.monotonic() - started)


if __name__ == "__main__":
    main()
