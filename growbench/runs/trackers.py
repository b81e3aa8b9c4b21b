"""Trackers of experiments: a run's evaluations as trackio, wandb or TensorBoard show them. curve.jsonl stays the truth.

Each live run has a process of its own that feeds its tracker, because trackers start threads and change the process that they are
in. A tracker that fails costs a warning, never a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from growbench.console import say

PATIENCE = 60.0  # seconds that a tracker may take to finish after a run's end


@dataclass(frozen=True)
class Tracked:
    """A run as trackers name it: the project is the experiment, the group is the method."""

    project: str
    group: str
    name: str
    folder: str  # the experiment's results, for trackers that keep files there
    config: Mapping[str, Any]  # plain JSON values
    resumed: bool = False  # its first evaluations were given to the tracker before


class Tracker(Protocol):
    def __init__(self, run: Tracked) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One evaluation."""

    def finish(self) -> None:
        """All that was logged is stored."""


class Trackio:
    """trackio, on this machine: `trackio show --project NAME`. Its environment variables name another place."""

    def __init__(self, run: Tracked) -> None:
        import trackio

        resume = "allow" if run.resumed else "never"
        self.run: Any = trackio.init(
            run.project, name=run.name, group=run.group, config={**run.config}, resume=resume, embed=False, auto_log_gpu=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values}, step=step)

    def finish(self) -> None:
        self.run.finish()


class Wandb:
    """Weights & Biases. WANDB_MODE=offline keeps it on this machine, in the experiment's folder."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        quiet = wandb.Settings(silent=True, disable_git=True, x_disable_stats=True)
        names: dict[str, Any] = {"project": run.project, "group": run.group, "name": run.name, "id": run.name}
        self.run: Any = wandb.init(**names, config={**run.config}, dir=run.folder, resume="allow", settings=quiet)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values}, step=step)

    def finish(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in `tensorboard` in the experiment's folder: `tensorboard --logdir`."""

    def __init__(self, run: Tracked) -> None:
        self.run, self.writer = run, None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        writer = self.writer = self.writer or self._writer(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def finish(self) -> None:
        if self.writer:
            self.writer.close()

    def _writer(self, first: int) -> Any:
        """What an earlier export, or an interrupted run, stored from the first step on is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(Path(self.run.folder) / "tensorboard" / self.run.name), purge_step=first)
        writer.add_text("config", json.dumps(self.run.config, indent=1, sort_keys=True))
        return writer


TRACKERS: dict[str, type[Tracker]] = {"trackio": Trackio, "wandb": Wandb, "tensorboard": TensorBoard}


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation."""
    return {key: value for key, value in row.items() if type(value) in (int, float) and key != "step"}


class Live:
    """A run's curve that is also shown by a tracker while the run goes on. `curve` is what the rows are stored in."""

    def __init__(self, curve: Any, kind: str, run: Tracked) -> None:
        self.curve, self.kind, self.lost = curve, kind, False
        self._feed = _started(kind)
        self._send(asdict(run))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.curve, name)

    def __delitem__(self, rows: slice) -> None:
        del self.curve[rows]

    def append(self, row: Mapping[str, Any]) -> None:
        self.curve.append(row)  # first, so that what is shown is stored
        self._send(row)

    def close(self) -> None:
        """Wait until the tracker has stored all, for at most a minute."""
        try:
            self._pipe.close()
            code = self._feed.wait(PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            self._feed.kill()
            code = self._feed.wait()
        if code:
            self._lose("has failed")

    @property
    def _pipe(self) -> IO[str]:
        assert self._feed.stdin is not None
        return self._feed.stdin

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.lost:
            return
        try:
            print(json.dumps(message), file=self._pipe, flush=True)
        except OSError:
            self._lose("has failed")

    def _lose(self, why: str) -> None:
        if not self.lost:
            self.lost = True
            say(f"{self.kind} {why}: the run goes on without it; growbench export shows its curve afterwards")


def _started(kind: str) -> subprocess.Popen[str]:
    """The process that feeds a tracker. Signals to this one do not reach it: it ends once the run's pipe is closed."""
    command = [sys.executable, "-m", "growbench.runs.trackers", kind]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True, stdout=subprocess.DEVNULL)


def feed(kind: str, lines: IO[str]) -> None:
    """Give a tracker the run that the first line names, and an evaluation for each further line."""
    tracker = TRACKERS[kind](Tracked(**json.loads(next(lines))))
    for line in lines:
        row = json.loads(line)
        tracker.log(row["step"], values_of(row))
    tracker.finish()


def main(kind: str, environment: MutableMapping[str, str]) -> int:
    """Feed a tracker from standard input. 1 if it failed, which is said in one line."""
    environment.setdefault("WANDB_SILENT", "true")
    try:
        with redirect_stdout(sys.stderr):
            feed(kind, sys.stdin)
    except Exception as error:
        say(f"{kind}: {' '.join(str(error).split()) or type(error).__name__}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], os.environ))
