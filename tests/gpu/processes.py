"""Commands that run side by side under one time limit, and NVIDIA's service that lets processes share a GPU (MPS)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GRACE = 15.0  # seconds that a command has to keep its work, once it is told to end

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and where its output is."""

    code: int
    late: bool  # its time was up
    log: Path

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


def run(commands: Mapping[Path, Sequence[str]], seconds: float, environment: Environment | None = None) -> list[Ended]:
    """Run Python with these arguments, one process for each log file, all at once and for so many seconds at most.

    At the limit they get SIGTERM, as from a batch system, and SIGKILL after `GRACE`. None outlives this process.
    """
    deadline = time.monotonic() + seconds
    started = [_start(log, arguments, {**os.environ, **(environment or {})}) for log, arguments in commands.items()]
    try:
        late = [_outlasts(process, deadline) for process in started]
    finally:
        for process in started:
            _signal(process, signal.SIGTERM)
        for process in started:
            if _outlasts(process, time.monotonic() + GRACE):
                _signal(process, signal.SIGKILL)
    return [Ended(process.wait(), was, log) for process, was, log in zip(started, late, commands, strict=True)]


def _start(log: Path, arguments: Sequence[str], environment: Environment) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _outlasts(process: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return True
    return False


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the command and to the processes that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, number)


@contextmanager
def shared_gpu(folder: Path) -> Iterator[Environment]:
    """The environment in which processes share the GPU by MPS. Raises OSError, with the reason, where that cannot be.

    The service is one of our own, with its pipes and logs in `folder`: it changes no setting of the GPU and ends with the block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (control := shutil.which("nvidia-cuda-mps-control")) is None:
        raise OSError("there is no nvidia-cuda-mps-control")
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for path in environment.values():
        Path(path).mkdir(exist_ok=True)
    service = {"env": {**os.environ, **environment}, "capture_output": True, "text": True, "timeout": 20}
    try:
        begun = subprocess.run([control, "-d"], **service)  # type: ignore[call-overload]
        if begun.returncode:
            raise OSError(f"nvidia-cuda-mps-control ends with {begun.returncode}: {begun.stderr.strip()}")
    except subprocess.TimeoutExpired:
        raise OSError("nvidia-cuda-mps-control does not answer") from None
    try:
        (client,) = run({folder / "client.txt": ["-c", "import torch; torch.ones(1, device='cuda').item()"]}, 40, environment)
        if client.code:
            raise OSError(f"a process cannot use the service: {client.last_line}")
        yield environment
    finally:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([control], input="quit\n", **service)  # type: ignore[call-overload]
