"""Names that are too long, odd or clash."""

from __future__ import annotations

import os
from pathlib import Path

from tests.soak.attempt import REFUSED, UNDISTURBED, Attempt, attack

REFUSED_NAMES = ("n" * 101, "line\nbreak", ".hidden", "back\\slash", "..", "", "report", "replaced", "tuning", "\u202egnp")
SCRATCH = ("--methods", "scratch")
PLAN = (*SCRATCH, "--dry-run", "--throughput", "1e9")


@attack("experiments named with line breaks, leading dots, 101 bytes, or as a folder of results is", REFUSED, short=True)
def refused_names(attempt: Attempt) -> str:
    return attempt.each_refused([["run", attempt.write(f"{name}.toml"), *PLAN] for name in REFUSED_NAMES])


@attack(
    "names of 256 bytes and paths of 5,000: experiment, results, corpus, tuned values, method, report",
    REFUSED,
    short=True,
)
def overlong_paths(attempt: Attempt) -> str:
    long = ["x" * 256, "/".join(["y" * 200] * 25)]
    cases = [["run", f"{path}.toml", *PLAN] for path in long]
    cases += [["run", attempt.experiment, *SCRATCH, "--results", attempt.folder / path] for path in long]
    cases += [["run", attempt.experiment, *SCRATCH, "--set", f"data.corpus=files:{path}.txt"] for path in long]
    cases += [["run", attempt.experiment, *PLAN, "--tuned", path] for path in long]
    cases += [["run", attempt.experiment, "--methods", f"./{path}.py", *PLAN[2:]] for path in long]
    cases += [["report", attempt.folder / path] for path in long]
    return attempt.each_refused(cases)


@attack("results in a folder whose name is not UTF-8, with quotes, an emoji and a line break", UNDISTURBED)
def odd_results_folder(attempt: Attempt) -> str:
    attempt.results = Path(os.fsdecode(os.fsencode(attempt.folder) + b"/-a 'b\" \xf0\x9f\x8c\xb1 \n \xff"))
    return attempt.finished(attempt.run(*SCRATCH), *SCRATCH)
