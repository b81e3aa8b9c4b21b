"""Variants: one method under several names in one table, each with hyperparameters and runs of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from growbench import cli, registry
from growbench.analysis import selection
from growbench.config import loading
from growbench.errors import UsageError
from growbench.runs import store
from growbench.tools import reproduce, stages

OPTIONS = ("--set", "train.steps=4", "--set", "half.share=0.25", "--set", "scratch_short.share=0.75")


def trained(miniature: Path, results: Path, methods: str) -> dict[str, Any]:
    """The records of the runs, by folder."""
    options = cli.parser().parse_args(["run", str(miniature), "--methods", methods, "--results", str(results), *OPTIONS])
    experiment = loading.load(options.experiment, options.set)
    assert stages.train(options, stages.specs_of(options.methods, experiment), experiment)
    return {path.parent.name: json.loads(path.read_text()) for path in results.glob("*/*/run.json")}


def test_each_variant_has_runs_of_its_own(
    miniature: Path, tmp_path: Path, figures: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`own` has its method's hyperparameters, `half` sets one. Another method under an old name is trained again."""
    records = trained(miniature, tmp_path, "half=scratch_short,own=scratch_short,scratch_short")
    steps = {name: record["steps"] for name, record in records.items()}
    assert steps == {"scratch-seed0": 4, "half-seed0": 1, "own-seed0": 3, "scratch_short-seed0": 3}
    assert [records[f"{name}-seed0"]["variant_of"] for name in ("half", "own", "scratch_short")] == ["scratch_short"] * 2 + [""]
    assert len({records[f"{name}-seed0"]["origin"] for name in ("half", "own", "scratch_short")}) == 1

    runs = store.load_all(tmp_path / "miniature")
    assert not selection.made_by_earlier_code(runs)
    half = next(run for run in runs if run.record.method == "half")
    job = reproduce.job_of(half.record)
    assert (job.name, job.found.variant_of, job.found.method.share) == ("half-seed0", "scratch_short", 0.25)  # type: ignore[attr-defined]

    before = (tmp_path / "miniature" / "half-seed0" / "run.json").stat().st_mtime_ns
    trained(miniature, tmp_path, "half=scratch_short")
    assert (tmp_path / "miniature" / "half-seed0" / "run.json").stat().st_mtime_ns == before, "finished"
    assert trained(miniature, tmp_path, "half=scratch_short,own=scratch")["own-seed0"]["variant_of"] == "scratch"


def test_a_variant_is_found_by_its_method_and_has_its_hyperparameters() -> None:
    tables = {"ki": {"share": 0.5, "temperature": 3.0}, "late": {"share": 0.25}}
    late, plain, same = registry.get_all(["late=ki", "ki", "other=ki"], tables)
    assert (late.name, late.variant_of, plain.name, plain.variant_of) == ("late", "ki", "ki", "")
    values = [(found.method.share, found.method.temperature) for found in (late, plain, same)]  # type: ignore[attr-defined]
    assert values == [(0.25, 3.0), (0.5, 3.0), (0.5, 3.0)]
    assert late.origin == plain.origin == same.origin
    assert registry.named(["ki=ki"], {}) == {"ki": "ki=ki"} and registry.get("ki=ki").variant_of == ""


def test_a_variant_of_a_file_is_foreign_and_of_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "a=b" / "mine.py"
    file.parent.mkdir()
    file.write_text(Path(registry.built_in()["scratch"]).read_text())
    assert registry.is_foreign(f"x={file}") and registry.is_foreign(str(file))
    assert list(registry.named([f"x={file}", f"y={file}:Scratch", str(file)], {})) == ["x", "y", "mine"]
    assert registry.get(f"y={file}:Scratch").variant_of == "mine"


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["ligo=ki"], "ligo=ki: 'ligo' is the name of another method"),
        (["scratch=ki"], "'scratch' is the name of another method"),
        (["source=ki"], "'source' is the name of another method"),
        (["train=ki"], "--set train.KEY=VALUE would not mean it"),
        (["a.b=ki"], "--set a.b.KEY=VALUE would not mean it"),
        (["a=ki", "a=ligo"], "two methods are named 'a': a=ki and a=ligo"),
        ([".a=ki"], "cannot be named '.a'"),
        (["a=./nowhere.py"], "method file ./nowhere.py does not exist"),
        (["a=lego"], "unknown method 'lego': did you mean ligo?"),
        (["a="], "unknown method ''"),
        (["=ki"], "unknown method '=ki': did you mean ki?"),
        (["late=ki", "Late=ki"], "'late' and 'Late' differ by case alone"),
        (["ki", "KI=ki"], "'ki' and 'KI' differ by case alone"),
    ],
)
def test_names_that_are_refused(specs: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.get_all(specs, {})
    assert said in str(caught.value)


def test_an_unknown_hyperparameter_names_the_variant() -> None:
    with pytest.raises(UsageError, match=r"unknown key late\.shar: did you mean share\?"):
        registry.get_all(["late=ki"], {"late": {"shar": 0.25}})


def test_all_stands_for_every_method_beside_variants() -> None:
    experiment = loading.load("gpt2-tiny")
    every = stages.specs_of(None, experiment)
    assert set(every) == set(registry.names()) and every[0] == "scratch"
    assert stages.specs_of("all, new=ligo", experiment) == [*every, "new=ligo"]
    assert stages.expanded("ligo, all") == ["ligo", *(name for name in registry.names() if name != "ligo")]  # as bench has it
