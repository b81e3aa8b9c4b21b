"""Throw nonsense at the command line, experiment files and corpora: each case ends in success, or in exit code 2 with one line.

    python -m tests.soak.fuzz --cases 5000

Never a traceback, never a partial folder of results. `make test` throws a few hundred.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growbench import cli, data
from growbench.config import loading, schema
from growbench.errors import UsageError

SECTIONS = {
    "source": [*schema.ModelConfig.__dataclass_fields__, "steps", "checkpoint"],
    "target": list(schema.ModelConfig.__dataclass_fields__),
    "data": [*schema.TextConfig.__dataclass_fields__, *schema.ImageConfig.__dataclass_fields__],
    "train": list(schema.Training.__dataclass_fields__),
    "machine": list(schema.Machine.__dataclass_fields__),
    "ligo": ["operator_steps", "operator_lr", "order"],
    "published": ["ligo"],
    "methods": ["ligo", "lego"],
}
EXPERIMENTS = ["gpt2-tiny", "bert-tiny", "modernbert-tiny", "llama-tiny", "cait-tiny", "gpt2-mini"]  # small: planned in a moment

numbers = (
    st.integers(-3, 300) | st.sampled_from([0, 1, 2**31, -(2**63), 10**30]) | st.floats() | st.sampled_from(["1e-3", "1e400"])
)
words = st.sampled_from(
    ["", "auto", "on", "linear", "wsd", "gpt2", "files:/absent/*", "hub:", "nonsense", "true", "[1]", "[[", '"', "{}"]
)
values = numbers.map(str) | words | st.text(max_size=12)
keys = st.sampled_from(
    [f"{section}.{key}" for section, names in SECTIONS.items() for key in names] + ["title", "architecture", "x"]
)
overrides = st.tuples(keys | st.text(max_size=8), values).map("=".join) | st.text(max_size=20)
names = st.sampled_from(
    ["ligo", "bert2bert", "ki", "mslt", "lego", "", "./absent.py", "scratch,scratch", "source", "../x", "ligo:Ligo"]
)
options = st.one_of(
    st.tuples(st.just("--set"), overrides),
    st.tuples(st.just("--methods"), st.lists(names, max_size=3).map(",".join) | st.text(max_size=12)),
    st.tuples(st.sampled_from(["--seeds", "--budgets", "--target-loss", "--throughput", "--tensor-parallel"]), values),
    st.tuples(st.sampled_from(["--protocol", "--device", "--tuned", "--results"]), values.filter(lambda text: "\0" not in text)),
    st.tuples(st.sampled_from(["--stop-at-target", "--save", "--shard", "--nonsense"])),
)
lines = st.lists(options, max_size=4).map(lambda chosen: [word for option in chosen for word in option])


class Broken(AssertionError):
    """A case that ended otherwise than it may."""


def ask(arguments: list[str]) -> int:
    """The command line's exit code. Raises Broken unless it is success, or 2 with one line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(arguments)
        except SystemExit as stop:  # of the argument parser
            code = int(stop.code or 0)
        except BaseException as error:
            raise Broken(f"growbench {arguments}: {type(error).__name__}: {error}") from error
    text = said.getvalue().strip()
    if code not in (0, 2) or (code == 2 and (len(text.splitlines()) != 1 or not text.startswith("growbench"))):
        raise Broken(f"growbench {arguments}: exit code {code}, said: {text!r}")
    return code


def command_lines(seen: Counter[str]) -> Callable[[], None]:
    @given(experiment=st.sampled_from([*EXPERIMENTS, "gpt2-tyni", "", "absent.toml"]), words=lines)
    def property(experiment: str, words: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "results"
            code = ask(
                ["run", experiment, "--results", str(own), "--methods", "ligo", *words, "--dry-run", "--throughput", "1e9"]
            )
            if own.exists():
                raise Broken(f"a plan made {own}")
        seen[f"command lines: exit code {code}"] += 1

    return property


def experiment_files(seen: Counter[str]) -> Callable[[], None]:
    text = loading.available()["gpt2-tiny"].read_text(encoding="utf-8")

    @given(
        cut=st.integers(0, len(text)),
        length=st.integers(0, 12),
        put=st.text(max_size=20) | st.sampled_from(["\n[train]\n", 'extends = "gpt2-tiny"\n', "\0"]),
    )
    def property(cut: int, length: int, put: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "mine.toml"
            file.write_bytes((text[:cut] + put + text[cut + length :]).encode("utf-8", "surrogatepass"))
            code = ask(["run", str(file), "--methods", "scratch", "--results", folder, "--dry-run", "--throughput", "1e9"])
        seen[f"experiment files: exit code {code}"] += 1

    return property


def corpora(seen: Counter[str]) -> Callable[[], None]:
    content = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
    more = st.sampled_from([1, 50])  # some are long enough to train on

    @given(content=content, times=more, ending=st.sampled_from([".txt", ".jsonl", ".parquet", ".png"]), length=st.integers(4, 9))
    def property(content: bytes, times: int, ending: str, length: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"corpus{ending}"
            file.write_bytes(b"\n\n".join([content] * times))
            os.environ["GROWBENCH_CACHE"] = str(Path(folder) / "cache")
            said = io.StringIO()
            try:
                with contextlib.redirect_stderr(said):
                    data.load(schema.TextConfig(f"files:{file}", length, vocabulary=300), "causal", "bytes", 1).train_batch(0, 0)
                outcome = "read"
            except UsageError as error:
                if len(str(error).splitlines()) != 1:
                    raise Broken(f"{content!r}: {error}") from error
                outcome = "refused"
            except Exception as error:
                raise Broken(f"{content!r} in a {ending} file: {type(error).__name__}: {error}") from error
        seen[f"corpora: {outcome}"] += 1

    return property


PROPERTIES: dict[str, Callable[[Counter[str]], Callable[[], None]]] = {
    "command lines": command_lines,
    "experiment files": experiment_files,
    "corpora": corpora,
}


def throw(name: str, cases: int) -> Counter[str]:
    """So many cases of one kind; how they ended. Raises Broken at the simplest case that ended otherwise than it may."""
    seen: Counter[str] = Counter()
    settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))(PROPERTIES[name](seen))()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.fuzz", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=5000)
    cases = parser.parse_args().cases
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    for name in PROPERTIES:
        for outcome, times in sorted(throw(name, -(-cases // len(PROPERTIES))).items()):
            print(f"{outcome:<40} {times}", flush=True)


if __name__ == "__main__":
    main()
