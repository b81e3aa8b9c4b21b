"""The README: its example works as it stands, and its figures are those of the committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "roberta", "modernbert", "llama"])
def test_the_example_method_runs(architecture: str, miniature: Path, tmp_path: Path) -> None:
    from growbench.cli import main

    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    method = tmp_path / "interleave.py"
    method.write_text(example)
    arguments = ["--methods", str(method), "--results", str(tmp_path), "--set", "interleave.shift=1"]
    assert main(["run", str(miniature), *arguments, "--set", f"architecture={architecture}"]) == 0
    assert (tmp_path / miniature.stem / "interleave-seed0" / "run.json").is_file()


@pytest.mark.parametrize(
    ("name", "file"), [("savings", "reference/gpt2-tiny/report/savings.md"), ("mini", "mini/report/overview.md")]
)
def test_the_tables_are_the_committed_reports(name: str, file: str) -> None:
    table = (ROOT / "results" / file).read_text(encoding="utf-8")
    assert table.strip() and f"<!-- {name} -->\n{table.rstrip()}\n<!-- end -->" in README


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_method_is_in_the_readmes_table() -> None:
    from growbench import registry

    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == set(registry.built_in())
