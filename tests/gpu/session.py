"""What a GPU is needed for, in one command, within a number of minutes: `make gpu`, or

    python -m tests.gpu.session --minutes 12 --out build/gpu

Stages, in this order:
    tests      the tests of tests/gpu that need CUDA
    sharing    the speed of processes that share the GPU, with NVIDIA's MPS, with CUDA graphs; what follows uses the fastest way
    precision  final losses in bf16 against float32
    seconds    reference seconds of the ladder's methods, measured alone
    ladder     the ladder of results/README.md, as far as its runs are missing or of earlier code
    kernels    three targets of full size, compiled: share of the matrix peak, and where a step goes
    bench      growbench bench of the same, uncompiled
    lite       bert-small-base-lite by the paper's six methods, as far as the rest of the time reaches

A stage that fails does not stop the others. OUT gets summary.txt, logs.tar.gz and results.tar.gz, which holds finished runs, to
be unpacked at the root of the repository. The same command with the same --work resumes what was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from growbench.costs.hardware import choose_device, device_name
from growbench.runs import step_seconds, store
from tests.gpu import stages
from tests.gpu.processes import GRACE
from tests.gpu.stages import ROOT, Session, Way


@dataclass(frozen=True)
class Stage:
    """`seconds`: at most; infinite: all that is left."""

    work: Callable[[Session, float], str]
    seconds: float

    @property
    def name(self) -> str:
        return self.work.__name__


STAGES = [
    Stage(stages.tests, 110),
    Stage(stages.sharing, 100),
    Stage(stages.precision, 75),
    Stage(stages.seconds, 120),
    Stage(stages.ladder, 300),
    Stage(stages.kernels, 270),
    Stage(stages.bench, 300),
    Stage(stages.lite, float("inf")),
]
KEPT = (store.RECORD, store.DOCUMENTS, "curve.jsonl")  # of a finished run: what is committed


def main() -> int:
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does, so that the commands of a stage end too
    options = _options()
    device = choose_device(options.device)
    sizes = stages.CUT if options.cut else stages.WHOLE
    work = (options.work or options.out / "work").resolve()
    session = Session(
        work=work,
        device=device.type,
        sizes=sizes,
        corpus=options.corpus,
        seeds=options.seeds,
        settings=options.set,
        precision=options.precision,
        anew=options.anew,
        way=options.way or Way(),
    )
    for folder in work, options.out:
        folder.mkdir(parents=True, exist_ok=True)
    if not options.way and session.way_file.exists():
        session.way = Way.of(session.way_file.read_text())
    named = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout if device.type == "cuda" else ""
    rows = [f"{named.strip() or device_name(device)}, torch {torch.__version__}, {options.minutes:g} minutes"]
    failed = False
    for stage in STAGES:
        left = 60 * options.minutes - (time.monotonic() - started) - 2 * GRACE
        if stage.name not in options.stages:
            continue
        limit = min(options.limits.get(stage.name, stage.seconds), left)
        begun = time.monotonic()
        outcome = _outcome(stage, session, limit) if limit > 0 else "no time left"
        failed |= outcome.startswith("FAILED")
        rows.append(f"{stage.name:<10} {time.monotonic() - begun:>4.0f} s  {outcome}")
        print(rows[-1], flush=True)
        (options.out / "summary.txt").write_text("\n".join([*rows, ""]))
        _pack(session, options.out)
    print("\n".join(["", *rows]))
    return int(failed)


def _options() -> argparse.Namespace:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="DIR", help="default: build/gpu")
    parser.add_argument("--work", type=Path, metavar="DIR", help="runs, checkpoints, logs; default: OUT/work")
    parser.add_argument("--minutes", type=float, default=15.0, help="of all stages together; default: 15")
    parser.add_argument("--stages", type=lambda text: text.split(","), default=names, metavar="A,B", help="default: all")
    parser.add_argument("--limit", action="append", type=_limit, default=[], metavar="STAGE=SECONDS", help="another time limit")
    parser.add_argument(
        "--corpus", type=Path, metavar="FOLDER", help="prepared tokens, in place of the texts of the hub; images are then random"
    )
    parser.add_argument("--seeds", help="of the ladder; default: those of results/README.md's command")
    parser.add_argument(
        "--way", type=Way.of, metavar="N[,mps][,graphs]", help="of training side by side; default: the fastest one that was found"
    )
    parser.add_argument("--anew", action="store_true", help="train the whole ladder, not only what is missing or of earlier code")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of bert-small-base-lite")
    parser.add_argument(
        "--precision",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="further ones of growbench run in the stage precision",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cut", action="store_true", help="a rehearsal: all stages with small models and few steps")
    options = parser.parse_args()
    options.limits = dict(options.limit)
    if unknown := {*options.stages, *options.limits} - {*names}:
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}; allowed are {', '.join(names)}")
    return options


def _limit(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition("=")
    return name, float(seconds)


def _outcome(stage: Stage, session: Session, seconds: float) -> str:
    try:
        return stage.work(session, seconds)
    except Exception as error:
        traceback.print_exc()
        return f"FAILED: {type(error).__name__}: {error}"


def _pack(session: Session, out: Path) -> None:
    """Logs, reference seconds, and the runs that this session finished; those that the repository holds as they are stay out."""
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        for path in [*session.work.glob("logs/*.txt"), *session.work.glob("*.txt"), *session.work.glob("mps/log/*")]:
            archive.add(path, path.relative_to(session.work))
    with tarfile.open(out / "results.tar.gz", "w:gz") as archive:
        for path in session.results.glob(f"**/{step_seconds.FILE}"):
            archive.add(path, path.relative_to(session.work))
        for record in sorted(session.results.glob(f"**/{store.RECORD}")):
            folder = record.parent
            committed = ROOT / folder.relative_to(session.work) / store.RECORD
            run = store.load(folder)
            archived = folder.parent.name == store.REPLACED
            if (
                run
                and run.finished
                and not archived
                and not (committed.exists() and committed.read_bytes() == record.read_bytes())
            ):
                for name in KEPT:
                    if (folder / name).exists():
                        archive.add(folder / name, (folder / name).relative_to(session.work))


if __name__ == "__main__":
    raise SystemExit(main())
