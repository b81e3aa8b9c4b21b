"""What `growbench list` and `growbench show` print, and that a report can be opened."""

from __future__ import annotations

import re
import webbrowser
from pathlib import Path

import pytest

from growbench import cli, registry
from growbench.config import loading
from tests.processes import answer


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_everything_is_listed_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "list")
    assert max(map(len, out.splitlines())) <= 80
    groups = {part.partition(":\n")[0]: re.findall(r"^  (\S+)  ", part, re.MULTILINE) for part in out.split("\n\n")[:-1]}
    assert groups["methods that LiGO's paper compares"] == ["scratch", "bert2bert", "ki", "ligo", "mslt", "stackbert"]
    controls = {name for name in registry.built_in() if registry.get(name).method.control}
    assert groups["controls"] == ["random_source", "raptr", "scratch_restart", "scratch_short", "shuffled_source"]
    assert controls <= {*groups["controls"]}
    known = [*registry.names(), *loading.available(), *registry.architecture_summaries()]
    assert sorted(name for group in groups.values() for name in group) == sorted(known)
    experiments = printed(capsys, "list", "experiments")
    assert re.search(
        r"^  gpt2-tiny +GPT-2 2x64 -> 4x128 on a Wikipedia sample: minutes on two CPU\n +cores$", experiments, re.MULTILINE
    )
    assert "bert2bert" not in experiments


def test_an_experiments_card_says_what_its_file_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = printed(capsys, "show", "bert-small-base")
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for said in (
        "BERT-Small -> BERT-Base on English Wikipedia takes days on one GPU",
        "source layers = 6, width = 512, heads = 8, ffn = 2048, dropout = 0.1; trained with steps = 220000, warmup = 0.04545",
        "target bert: layers = 12, width = 768, heads = 12, ffn = 3072, dropout = 0.1 data corpus =",
        "training batch = 256, steps = 400000, lr = 0.0002, warmup = 0.025,",
        "published ligo 44.7\N{NO-BREAK SPACE}% of FLOPs, 40.7\N{NO-BREAK SPACE}% of time".replace("\N{NO-BREAK SPACE}", " "),
        "run growbench run bert-small-base",
    ):
        assert said in words, said
    file = tmp_path / "own.toml"
    file.write_text('extends = "gpt2-tiny"\n[source]\ncheckpoint = "somewhere"\n')
    assert "  source    checkpoint = somewhere\n" in printed(capsys, "show", str(file))


def test_a_card_is_shown_of_every_kind_of_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "show", "net2net").startswith("net2net\n    Copy neurons and heads")
    assert printed(capsys, "show", "gpt2") == printed(capsys, "list", "weights", "gpt2")
    assert cli.main(["show", "gtp2-tiny"]) == cli.main(["show", "./absent.py"]) == cli.main(["show", "absent.toml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith(
        "growbench: unknown name 'gtp2-tiny': did you mean gpt2-tiny? growbench list shows all names"
    )


def test_a_report_is_opened_in_a_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of several experiments the board."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    arguments = ["report", "results/reference/gpt2-tiny", "--out", str(tmp_path / "page")]
    assert answer(*arguments).code == 0 and opened == []
    assert answer(*arguments, "--open").code == 0
    assert opened == [(tmp_path / "page" / "index.html").as_uri()]
