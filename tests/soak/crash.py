"""Kill real runs at random moments, start them again, and compare what they leave with runs that were left alone: bit for bit.

    python -m tests.soak.crash --kills 50

The moments are counted in lines of progress, from 1 to 40 after each start, so that every kill hits training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from growbench import cli, registry
from tests.processes import start


def growbench(arguments: Sequence[str]) -> int:
    """The command line, with a checkpoint at least every 0.05 s instead of every minute."""
    from growbench.training import trainer

    trainer.CHECKPOINT_SECONDS = 0.05
    return cli.main(list(arguments))


def run_and_kill(arguments: list[str], after: int) -> str:
    """Kill a run after so many lines of progress. What it was at; exits with a message if it had ended before."""
    process, _, err = start(arguments, growbench)
    seen, said = 0, ""
    for line in err:
        said += line
        seen += " step " in line
        if seen == after:
            process.kill()
            process.join()
            run, phase, step = re.findall(r"^(\S+)\s+(.*?)\s+step\s+(\d+)", line)[0]
            return f"{run} {phase} {step}"
    process.join()
    raise SystemExit(f"all had ended, with exit code {process.exitcode}; give the experiment more steps:\n{said}")


def left(folder: Path) -> dict[str, str]:
    """All that the runs below a folder leave, but for seconds and for what replay computes again: by file, as text."""
    found = {}
    for path in sorted(folder.rglob("run.json")):
        record = json.loads(path.read_text())
        keys = ("status", "steps", "tokens", "final_val_loss", "final_test_loss", "config", "parameters")
        kept = {key: record[key] for key in keys}
        flops = {account: spent for account, spent in record["cost"]["flops"].items() if account != "overhead"}
        phases = [{key: value for key, value in phase.items() if "seconds" not in key} for phase in record["phases"]]
        found[str(path.relative_to(folder))] = json.dumps([kept, flops, phases])
    for path in sorted(folder.rglob("curve.jsonl")):
        rows = [json.loads(line) for line in path.open()]
        found[str(path.relative_to(folder))] = json.dumps([{**row, "seconds": None} for row in rows])
    for path in sorted(folder.rglob("model.safetensors")):
        found[str(path.relative_to(folder))] = path.read_bytes().hex()
    return found


def crash(experiment: list[str], methods: str, kills: int, seed: int, folder: Path, most: int = 40) -> list[str]:
    """Where the runs were killed. Exits with a message if anything differs from what undisturbed runs leave."""
    rng = random.Random(seed)
    arguments = ["run", *experiment, "--methods", methods, "--save", "--device", "cpu", "--results"]
    where: list[str] = []
    while len(where) < kills:
        where.append(run_and_kill([*arguments, str(folder / "killed")], rng.randint(1, most)))
    for name in ("killed", "alone"):
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main([*arguments, str(folder / name)])
        if code:
            raise SystemExit(f"the run in {folder / name} failed")
    killed, alone = left(folder / "killed"), left(folder / "alone")
    differ = sorted(name for name in killed.keys() | alone.keys() if killed.get(name) != alone.get(name))
    if differ:
        raise SystemExit(f"after {kills} kills these differ: {', '.join(differ)}; kills: {'; '.join(where)}")
    print(f"{len(alone)} files of {len(methods.split(','))} methods and their source are equal after {kills} kills")
    return where


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.crash", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(registry.built_in()), metavar="A,B", help="default: all built-in ones")
    parser.add_argument("--experiment", default="gpt2-tiny")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # other numbers of threads give other bits: in the processes that are killed,
    torch.set_num_threads(1)  # and in this one
    small = ["train.steps=400", "source.steps=100", "data.sequence_length=16", "train.batch=8", "data.evaluation_batches=1"]
    small += ["data.vocabulary=300", "ligo.operator_steps=50"]
    experiment = [options.experiment, *(part for each in small for part in ("--set", each))]
    with tempfile.TemporaryDirectory() as folder:
        where = crash(experiment, options.methods, options.kills, options.seed, Path(folder))
    for run, times in sorted(Counter(at.split()[0] for at in where).items()):
        print(f"  {run:<18} killed {times} times: " + ", ".join(at.partition(" ")[2] for at in where if at.split()[0] == run))


if __name__ == "__main__":
    main()
