"""Train one run by torchrun on two nodes, which are two groups of processes on one machine, and on one node of as many.

    python -m tests.soak.nodes

Both must leave the same curves and FLOPs, bit for bit. The nodes meet by rendezvous, as on several hosts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 12
RUN = ["run", "gpt2-tiny", "--methods", "bert2bert", "--set", f"train.steps={STEPS}", "--set", "train.warmup=2"]
RUN += ["--set", "source.steps=6", "--set", "source.warmup=1", "--set", "train.batch=8", "--set", "data.evaluation_batches=2"]
LIMIT = 600.0  # seconds for all nodes together
WAYS = {"two nodes of one process": (2, 1), "two nodes of two processes": (2, 2)}


def main() -> int:
    failed = 0
    for division in [], ["--shard"]:
        for way, (nodes, each) in WAYS.items():
            expected, found = _trained(1, nodes * each, division), _trained(nodes, each, division)
            same = expected == found
            failed += not same
            print(f"{' '.join([way, *division]):<36} {'the same bits' if same else 'DIFFERENT'}: {len(found)} runs", flush=True)
    return int(bool(failed))


def _trained(nodes: int, each: int, division: list[str]) -> dict[str, object]:
    """Curve and FLOPs of each run, by name, trained by so many nodes of so many processes. Exits if a node fails."""
    with tempfile.TemporaryDirectory() as folder:
        results, port = Path(folder) / "results", _free_port()
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "nodes"]
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(each)]
        command += ["--local-addr", "127.0.0.1", *meeting, "-m", "growbench", *RUN, *division, "--results", str(results)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        logs = [Path(folder) / f"node-{number}.txt" for number in range(nodes)]
        started = []
        for log in logs:
            with log.open("w") as output:
                started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(LIMIT) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(codes):
            raise SystemExit("\n".join([f"exit codes {codes}", *(log.read_text()[-2000:] for log in logs)]))
        return {record.parent.name: _left(record) for record in sorted(results.glob("*/*/run.json"))}


def _left(record: Path) -> object:
    rows = [json.loads(line) for line in (record.parent / "curve.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["val_loss"], row["train_loss"], row["flops"]) for row in rows]
    stored = json.loads(record.read_text())
    return losses, stored["final_val_loss"], stored["final_test_loss"], stored["cost"]["flops"], stored["steps"]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
