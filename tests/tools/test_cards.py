"""What can be listed: methods with their cards, and the weights of an architecture."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from growbench import architectures, cli, registry
from growbench.config.schema import ModelConfig
from growbench.method.options import settings
from growbench.tools.cards import card, weights


def test_the_long_list_shows_every_methods_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "methods", "--long"]) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    settings_lines = out.replace(f"\n{12 * ' '}", " ").splitlines()  # a long one goes on in the next line
    assert max(map(len, out.splitlines())) <= 80
    for name in registry.built_in():
        method = registry.get(name).method
        assert f"\n{name}\n" in f"\n{out}"
        assert " ".join((type(method).__doc__ or "").split()) in words
        assert type(method).paper in words
        for key, value in settings(method).items():
            assert any(
                f" {key}: " in line
                and re.fullmatch(rf".*= {re.escape(repr(value))}( \(tuned: .* to .*\))?", line.partition("  #")[0])
                for line in settings_lines
            ), key
    assert "tied_embedding: Literal['frozen', 'decoder', 'untied'] = 'frozen'" in words
    assert "share: float = 0.3 (tuned: 0.1 to 0.7) # of the budget, with a teacher" in words
    assert "Source: not used by default; the hyperparameters decide" in words
    assert "Source: grown from a trained small model, which the final model needs" in words


def test_the_long_list_is_of_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--long"]) == cli.main(["list", "architectures", "--long"]) == 2
    assert "growbench list methods --long" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["list"], ["list", "methods"], ["check", "--help"]])
def test_lists_and_help_import_no_torch(arguments: list[str]) -> None:
    run = f"try: cli.main({arguments})\nexcept SystemExit: pass"
    code = f"import sys; from growbench import cli\n{run}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_card_has_comments_of_fields_and_of_those_that_it_inherits(tmp_path: Path) -> None:
    """Not those of other lines that begin with the same word, nor of the constants."""
    file = tmp_path / "mine.py"
    file.write_text('''
from typing import ClassVar
from growbench.methods.ki import Ki
from growbench.method import Phases, Task, tunable

class Mine(Ki):
    """Do less."""

    paper: ClassVar[str] = "https://example.org"  # a page
    share: float = tunable(
        0.2, 0.1, 0.5
    )  # of less
    rounds: int = 3
    sizes: "tuple[int, ...]" = (1, 2)  # of # each

    def phases(self, task: Task) -> Phases:
        rounds: int = 2  # not this one
        yield from super().phases(task)
''')
    lines = [line.strip() for line in card(registry.get(str(file))).splitlines()]
    assert lines[:4] == ["mine", "Do less.", "Hyperparameters:", "share: float = 0.2 (tuned: 0.1 to 0.5)  # of less"]
    assert "weight: float = 1.0  # of the teacher at the first step" in lines
    assert lines[-4:] == [
        "rounds: int = 3",
        "sizes: tuple[int, ...] = (1, 2)  # of # each",
        "Source: grown from a trained small model",
        "https://example.org",
    ]


@pytest.mark.parametrize("name", architectures.names())
def test_the_weights_of_an_architecture_are_those_that_its_models_have(name: str) -> None:
    """In the order of its table, with what `read` says of each."""
    columns = weights(name).splitlines()
    begins = [columns[0].index(word) for word in ("weight", "axes", "role", "consumes", "residual")]
    listed = [tuple(line[a:b].strip() for a, b in zip(begins, [*begins[1:], None], strict=True)) for line in columns[1:]]
    architecture = architectures.get(name)
    sizes = ModelConfig(layers=2, width=8, heads=2, vocabulary=10, positions=4, patch=4)

    def read(sizes: ModelConfig) -> list[tuple[str, ...]]:
        yes = {True: "yes", False: "-"}
        return [
            (key, f"({', '.join(axis.name for axis in weight.axes)})", weight.role, yes[weight.consumes], yes[weight.residual])
            for key, weight in architecture.read(architecture.build(sizes)).items()
        ]

    tied = read(sizes)
    assert listed[: len(tied)] == tied
    if "tied" not in architecture.options:
        assert len(listed) == len(tied)
        return
    assert columns[1 + len(tied)] == "with tied = false:"
    untied = listed[len(tied) + 1 :]
    assert untied and untied == [row for row in read(replace(sizes, tied=False)) if row not in tied]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["weights"], "growbench list weights ARCHITECTURE: give one of bert, cait, "),
        (["methods", "gpt2"], "the other lists take none"),
        (["weights", "gpt3"], "unknown architecture 'gpt3': did you mean gpt2?"),
    ],
)
def test_weights_are_listed_of_one_architecture(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "weights", "gpt2"]) == 0
    assert capsys.readouterr().out == weights("gpt2") + "\n"
    assert cli.main(["list", *arguments]) == 2
    assert said in capsys.readouterr().err
