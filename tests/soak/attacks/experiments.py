"""Experiments with impossible or extreme values."""

from __future__ import annotations

from tests.soak.attempt import FAILS_ALONE, REFUSED, UNDISTURBED, Attempt, attack

PLAN = ("--methods", "ligo", "--dry-run", "--throughput", "1e9")
IMPOSSIBLE = {
    "train.lr": ("nan", "inf", "-inf", "-1.0", "0", "1e400", "'x'", "[1e-3]", "true", "1" * 400, "1979-05-27"),
    "train.steps": ("0", "-1", "1.5", "nan", "9" * 5000),
    "train.batch": ("0", "-4", "4.5", "inf"),
    "train.betas": ("[nan, 0.9]", "[0.9]", "[-1, 1]", "{}"),
    "train.precision": ("fp16", "float16", "fp8", "''"),
    "data.vocabulary": ("-1", "0", "1e3"),
    "data.sequence_length": ("0", "-16", "3", "inf"),
    "data.evaluation_batches": ("0", "-1", "nan"),
    "target.layers": ("0", "-2", "nan"),
    "target.heads": ("0", "3", "64"),
}
CONTENTS = (
    "", "\0", "[train]", "[[train]]", "title = inf", "[train]\nlr = nan", "a." * 5000 + "b = 1", "x = " + "[" * 5000,
    "extends = 'miniature.toml'\n[train]\nlr = -nan", "extends = 'gpt2-tiny'\n[train]\nsteps = -1",
)  # fmt: skip


@attack("numbers that are negative, NaN, infinite, huge or of another type; unknown precisions", REFUSED, short=True)
def impossible_values(attempt: Attempt) -> str:
    cases = [f"{key}={value}" for key, values in IMPOSSIBLE.items() for value in values]
    return attempt.each_refused([["run", attempt.experiment, *PLAN, "--set", case] for case in cases])


@attack("experiment files that are empty, binary, deep, or hold NaN and negative numbers", REFUSED, short=True)
def broken_experiment_files(attempt: Attempt) -> str:
    files = [attempt.folder / f"broken-{number}.toml" for number in range(len(CONTENTS))]
    for file, content in zip(files, CONTENTS, strict=True):
        file.write_text(content, encoding="utf-8")
    return attempt.each_refused([["run", file, *PLAN] for file in files])


@attack("a batch larger than the data, a sequence longer than all documents, a vocabulary smaller than bytes", REFUSED)
def more_than_the_data(attempt: Attempt) -> str:
    cases = ["train.batch=100000", "data.sequence_length=100000", "data.vocabulary=100"]
    end = ["--methods", "scratch", "--results", attempt.results]
    return attempt.each_refused([["run", attempt.experiment, *end, "--set", case] for case in cases])


@attack("one step, of one sequence", UNDISTURBED)
def one_step(attempt: Attempt) -> str:
    small = ("--set", "train.steps=1", "--set", "train.batch=1", "--set", "train.warmup=0")
    return attempt.finished(attempt.run(*small), *small)


@attack("a learning rate of 1e30, at which the loss is soon not finite", "exit code 1; every failure in one line")
def learning_rate_1e30(attempt: Attempt) -> str:
    said = attempt.run("--methods", "scratch", "--set", "train.lr=1e30")
    assert said.code == 1 and len(said.lines("failed:")) == 1 and "Traceback" not in said.err, said
    return f"exit code 1: {' '.join(said.lines('failed:')[0].split())}"


@attack("a method whose model's loss is NaN from the third step on", FAILS_ALONE)
def loss_is_nan(attempt: Attempt) -> str:
    plugin = attempt.folder / "poisoned.py"
    plugin.write_text(NAN, encoding="utf-8")
    return attempt.fails_alone(attempt.run("--methods", f"bert2bert,{plugin}"), "poisoned")


NAN = '''
from growbench.method import Method, Phase, cross_entropy

class Poisoned(Method):
    """Scratch, until its loss is NaN."""

    uses_source = False

    def phases(self, task):
        def loss(model, batch, step):
            found = cross_entropy(model(batch.inputs, batch.positions), batch.labels)
            return found * float("nan") if step > 1 else found

        yield Phase(model=task.build(), loss=loss)
'''
