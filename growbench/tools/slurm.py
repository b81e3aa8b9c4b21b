"""Submits the commands of a job list as job arrays, by submitit: to Slurm, or to processes on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growbench.errors import UsageError
from growbench.formatting import counted

if TYPE_CHECKING:
    from growbench.tools.job_list import Command, JobList

FOLDER = ".slurm"  # in an experiment's results: what submitit writes, and what the jobs say


@dataclass(frozen=True)
class Work:
    """One command, as a job carries it out. A job that waits for it imports no torch."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Raises CalledProcessError if the command fails."""
        subprocess.run([sys.executable, "-m", "growbench", *self.arguments], check=True)

    def checkpoint(self) -> Any:
        """What submitit queues again when the job is interrupted: the same command, which goes on where the run was stored."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(jobs: JobList, settings: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Submit the sources as one array and the runs as another behind it, and say which jobs they are.

    `settings`: submitit's parameters (timeout_min, gpus_per_node, ...), sbatch's others, and `cluster` (slurm or local). Raises
    UsageError without submitit, for a cluster that is not there, and for parameters that it does not take.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError("--slurm: needs submitit: pip install 'growbench[slurm]'") from None
    given = dict(settings)
    try:
        executor = submitit.AutoExecutor(folder, cluster=given.pop("cluster", "slurm"))
        executor.update_parameters(**_parameters(given))
    except (AssertionError, RuntimeError, ValueError, NameError) as error:
        raise UsageError(f"--slurm: {' '.join(str(error).split())}") from error
    for title, commands in (("sources", jobs.sources), ("runs", jobs.runs)):
        if not commands:
            continue
        submitted = _array(executor, commands)
        ids = " to ".join(dict.fromkeys((submitted[0].job_id, submitted[-1].job_id)))
        yield f"{title}: {counted(len(submitted), 'job')}, {ids}; what they say is in {folder}"
        if executor.cluster == "slurm":  # locks would have them wait too, but on machines that are paid for
            executor.update_parameters(slurm_additional_parameters={"dependency": f"afterok:{submitted[0].job_id.split('_')[0]}"})


def _array(executor: Any, commands: Sequence[Command]) -> list[Any]:
    with executor.batch():
        return [executor.submit(Work(command.arguments)) for command in commands]


def _parameters(given: Mapping[str, str]) -> dict[str, int | float | str]:
    """Numbers as numbers; those that are sbatch's alone with submitit's prefix."""
    import submitit

    shared = submitit.AutoExecutor._typed_parameters()
    values = {key: _number(value) for key, value in given.items()}
    return {key if key in shared or key.startswith("slurm_") else f"slurm_{key}": value for key, value in values.items()}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
