"""Every example of the README and the manual works: methods are checked, commands are parsed and resolved, experiments load.

Nothing is left out: a fenced block has a language that is known here, and a command is one that a test knows how to try.
"""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt

from docs.generate import ROOT, pages
from growbench import cli, registry
from growbench.config import loading
from growbench.runs import tracks
from growbench.tools import check, stages
from growbench.tools.miniatures import Cell

LANGUAGES = ("python", "sh", "toml", "text")
DIRECTIVES = ("{toctree}", "{include}", "{eval-rst}")  # Sphinx's own: the build fails if one is wrong
OTHER_CELLS = (Cell("bert", tied=False), Cell("vit"))


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path, text: str) -> list[Block]:
    fences = (token for token in MarkdownIt().parse(text) if token.type == "fence")
    return [Block(page, (fence.map or [0])[0] + 1, fence.info.split(" ")[0].strip(), fence.content) for fence in fences]


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks_of(page, page.read_text(encoding="utf-8"))]


def of(language: str) -> list[Block]:
    return [block for block in all_blocks() if block.language == language]


def method_name(block: Block) -> str | None:
    """The file that a block's method belongs into, as the manual names it: interleave for Interleave(Method)."""
    found = re.findall(r"^class (\w+)\(Method\):", block.text, re.MULTILINE)
    return found[0].lower() if found else None


METHODS = [block for block in of("python") if method_name(block)]
SCRIPTS = [block for block in of("python") if not method_name(block)]


def commands(block: Block) -> list[list[str]]:
    """The commands of a block as lists of words, without comments, variables before the command and `&` behind it."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "&"]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        found += [words] if words else []
    return found


COMMANDS = [(block, words) for block in of("sh") for words in commands(block)]


def growbench_of(words: list[str]) -> list[str] | None:
    """The arguments of growbench in a command, on its own or under torchrun; None for another command."""
    if words[0] == "growbench":
        return words[1:]
    if words[0] == "torchrun":
        assert words[1] == "--nproc-per-node" and words[2].isdecimal() and words[3:5] == ["-m", "growbench"], words
        return words[5:]
    return None


GROWBENCH = [(block, arguments) for block, words in COMMANDS if (arguments := growbench_of(words)) is not None]
OTHERS = [words for _, words in COMMANDS if growbench_of(words) is None]


def with_place(commands: list[tuple[Block, list[str]]]) -> list[object]:
    return [pytest.param(block, words, id=f"{block} {' '.join(words)}") for block, words in commands]


# What there is


def has_indented_code(text: str) -> bool:
    """Whether a page has code without fences, which would be tried by no test."""
    return any(token.type == "code_block" for token in MarkdownIt().parse(text))


def test_every_block_is_found_and_of_a_known_language() -> None:
    """As many as there are lines that open or close one, and some of each kind."""
    fences = sum(len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in pages())
    blocks = all_blocks()
    assert len(blocks) == fences / 2 > 40
    assert not [page.name for page in pages() if has_indented_code(page.read_text(encoding="utf-8"))]
    assert has_indented_code("text\n\n    growbench run\n")
    unknown = [str(block) for block in blocks if block.language not in (*LANGUAGES, *DIRECTIVES)]
    assert not unknown
    counts = Counter(block.language for block in blocks)
    assert all(counts[language] >= 3 for language in LANGUAGES), counts
    assert len(METHODS) >= 8 and SCRIPTS and len(GROWBENCH) > 40 and len(OTHERS) >= 4


def test_commands_stand_only_where_they_are_tried() -> None:
    """Not in blocks of recorded output."""
    command = r"^\s*(\$ |(torchrun|growbench (run|tune|report|freeze|submit|grow|verify|reproduce|list|check|flops|bench))\b)"
    hidden = [str(block) for block in of("text") if re.search(command, block.text, re.MULTILINE)]
    assert not hidden


def test_a_wrong_example_would_be_noticed(tmp_path: Path) -> None:
    """What these tests look with does see a mistake."""
    page = tmp_path / "page.md"
    text = (
        "- a list\n\n  ```sh\n  growbench run gpt2-tyni  # comment\n  torchrun --nproc-per-node 2 -m growbench run x &\n  ```\n"
    )
    (block,) = blocks_of(page, text)
    assert [growbench_of(words) for words in commands(block)] == [["run", "gpt2-tyni"], ["run", "x"]]
    with pytest.raises(Exception, match="did you mean gpt2-tiny"):
        resolve(parsed(["run", "gpt2-tyni"]))
    with pytest.raises(SystemExit):
        parsed(["run", "--no-such-option"])
    with pytest.raises(Exception, match=r"unknown key ligo\.nope"):
        resolve(parsed(["check", "ligo", "--set", "ligo.nope=1"]))


def in_text(text: str) -> list[list[str]]:
    """The commands of growbench within sentences and tables."""
    inline = (child for token in MarkdownIt("commonmark").enable("table").parse(text) for child in token.children or ())
    return [
        child.content.split()[1:] for child in inline if child.type == "code_inline" and child.content.startswith("growbench ")
    ]


def unknown_words(command: list[str]) -> list[str]:
    """The command's name, unless it stands for any, and its options, as far as the parser does not know them."""
    (action,) = (each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction))
    name, *words = command
    options = [word for word in command if word.startswith("--")]
    if name.isupper() or name.startswith("--"):
        return [word for word in options if word != "--help"]
    if name not in action.choices:
        return [name]
    return [word for word in words if word.startswith("--") and word not in action.choices[name]._option_string_actions]


def test_commands_within_sentences_exist() -> None:
    found = [(page, command) for page in pages() for command in in_text(page.read_text(encoding="utf-8"))]
    assert len(found) > 20
    assert not [(page.name, command) for page, command in found if unknown_words(command)]
    (name, option) = in_text("run `growbench rum --shard`\n\n| a |\n|---|\n| `growbench run --shart` |\n")
    assert unknown_words(name) == ["rum"] and unknown_words(option) == ["--shart"]


# Methods


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


BORROWED = {"tracks.md": "tutorial.md"}  # whose methods a page's commands take, beside its own


def write_methods(page: Path, folder: Path) -> None:
    for block in METHODS:
        if block.page.name in (page.name, BORROWED.get(page.name)):
            (folder / f"{method_name(block)}.py").write_text(block.text, encoding="utf-8")


OF_THE_MANUAL = [block for block in METHODS if block.page.name != "README.md"]


@pytest.mark.parametrize(
    ("number", "block"), [*enumerate(OF_THE_MANUAL)], ids=lambda each: str(each) if isinstance(each, Block) else ""
)
def test_every_method_keeps_the_interfaces_promises(number: int, block: Block, written: Path) -> None:
    """In GPT-2's miniature, and without its plan and a second run in BERT's or the image model's, in turns."""
    write_methods(block.page, written)
    method = registry.get(f"./{method_name(block)}.py").method
    assert not check.card_warnings(method)
    for cell in (Cell("gpt2"), OTHER_CELLS[number % len(OTHER_CELLS)]):
        assert not check.broken_promises(method, cell, compares=cell.architecture == "gpt2"), cell


def test_the_first_method_passes_check(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path of a stranger: README, a method of at most 15 lines, `growbench check`, here in some of all miniatures."""
    (first,) = (block for block in METHODS if block.page.name == "README.md")
    assert len([line for line in first.text.splitlines() if line.strip()]) <= 15
    write_methods(first.page, written)
    assert cli.main(["check", f"./{method_name(first)}.py", "--only", "bert,gemma3,vit"]) == 0
    said = capsys.readouterr().out
    assert "keeps every promise in 4 of 4 miniatures" in said and "warning" not in said


@pytest.mark.parametrize("architecture", ["gpt2", "modernbert"])
def test_the_first_method_runs(architecture: str, miniature: Path, written: Path) -> None:
    (first,) = (block for block in METHODS if block.page.name == "README.md")
    write_methods(first.page, written)
    types = ["--set", "source.layers=2"]  # ModernBERT's second layer is of another type than its first
    run = ["run", str(miniature), "--methods", "./interleave.py", "--set", f"architecture={architecture}", *types]
    assert cli.main(run) == 0
    assert (written / "results" / miniature.stem / "interleave-seed0" / "run.json").is_file()


def test_a_hyperparameter_of_the_tutorial_is_set(miniature: Path, written: Path) -> None:
    """--set interleave.shift=1 is stored with the run."""
    write_methods(ROOT / "docs" / "tutorial.md", written)
    assert cli.main(["run", str(miniature), "--methods", "./interleave.py", "--set", "interleave.shift=1"]) == 0
    assert '"shift": 1' in (written / "results" / miniature.stem / "interleave-seed0" / "run.json").read_text()


# Commands


def parsed(arguments: list[str]) -> argparse.Namespace:
    return cli.parser().parse_args(arguments)


def resolve(options: argparse.Namespace) -> None:
    """Find the experiment with its overrides, the methods with theirs, and the paths that the commands before would have made."""
    if hasattr(options, "experiment"):
        experiment = loading.load(options.experiment, options.set)
        if getattr(options, "methods", None):
            registry.get_all(stages.specs_of(options.methods, experiment), experiment.methods)
        if getattr(options, "tuned", None):
            assert options.tuned == Path("results") / experiment.name / "tuning" / "tuned.toml"
    elif hasattr(options, "folder"):
        place = options.folder.relative_to("results")
        assert str(place) == "." or str(place) in loading.available()
    elif getattr(options, "aa", None):
        loading.load(options.aa, options.set)
    elif hasattr(options, "method"):
        registry.get_all(stages.expanded(options.method), loading.load("gpt2-tiny", options.set).methods)
    elif hasattr(options, "grown"):
        assert options.grown  # what a command before has written: the scripts beside it read the same folder
    elif hasattr(options, "runs"):
        assert all(is_run(run, options) for run in options.runs)
    elif hasattr(options, "name"):  # show
        assert options.name in {*registry.names(), *loading.available(), *registry.architecture_summaries()}
    else:
        assert hasattr(options, "what")  # list


def is_run(run: Path, options: argparse.Namespace) -> bool:
    """Whether it is a committed run, or one to submit, which the command before would have made."""
    if not hasattr(options, "tracks"):
        return (ROOT / run / "run.json").is_file()
    experiment = tracks.load(ROOT / options.tracks / options.to).definition.experiment
    loose = [Path(options.code).stem] if options.code else []
    return run.parent == Path("results") / experiment and run.name.partition("-seed")[0] in {*registry.names(), *loose}


@pytest.mark.parametrize(("block", "arguments"), with_place(GROWBENCH))
def test_every_command_is_understood(block: Block, arguments: list[str], written: Path) -> None:
    write_methods(block.page, written)
    resolve(parsed(arguments))


def in_miniature(arguments: list[str]) -> list[str]:
    """What of a run a miniature experiment can take: without overrides of the experiment itself."""
    options = parsed(arguments)
    methods = options.methods or "scratch"
    of_methods = [override for override in options.set if override.partition(".")[0] in methods]
    kept = ["--methods", methods, *(part for override in of_methods for part in ("--set", override))]
    kept += ["--protocol", options.protocol, "--seeds", ",".join(map(str, options.seeds))]
    return kept + (["--budgets", ",".join(map(str, options.budgets))] if options.budgets else [])


def is_understood(arguments: list[str]) -> bool:
    """Whether the parser takes it; for a command that it refuses, test_every_command_is_understood fails."""
    try:
        return bool(parsed(arguments))
    except SystemExit:
        return False


EVERY_RUN = {  # each once; all methods are planned by tests/methods/test_methods.py
    tuple(in_miniature(arguments)): block
    for block, arguments in GROWBENCH
    if arguments[0] == "run" and not {"--tuned", "all"} & {*arguments} and is_understood(arguments)
}


def is_part_of(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether another command has all methods of this one and more, and is like it otherwise."""
    return one[2:] == other[2:] and {*one[1].split(",")} < {*other[1].split(",")}


RUNS = {run: block for run, block in EVERY_RUN.items() if not any(is_part_of(run, other) for other in EVERY_RUN)}


@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_every_run_can_be_planned(arguments: tuple[str, ...], written: Path, miniature: Path) -> None:
    """In miniature: the command gets past all that it refuses."""
    write_methods(RUNS[arguments].page, written)
    assert len(EVERY_RUN) > 10
    assert cli.main(["run", str(miniature), *arguments, "--dry-run", "--throughput", "1e12"]) == 0


@pytest.fixture(scope="module")
def after_a_run(tmp_path_factory: pytest.TempPathFactory, write_miniature: Callable[..., Path], corpus: Path) -> Path:
    """A folder where `growbench run --methods ligo --save` was run, and its model grown and verified; in miniature."""
    folder = tmp_path_factory.mktemp("after")
    experiment = write_miniature(folder).rename(folder / "gpt2-tiny.toml")
    assert cli.main(["run", str(experiment), "--methods", "ligo", "--save", "--results", str(folder / "results")]) == 0
    model, grown = folder / "results" / "gpt2-tiny" / "ligo-seed0" / "model", folder / "grown"
    assert cli.main(["grow", str(model), "--to", "width=64", "--out", str(grown)]) == 0
    assert cli.main(["verify", str(grown), str(model), "--text", str(corpus)]) == 0
    (folder / "text.txt").write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


QUICK = [(block, arguments) for block, arguments in GROWBENCH if arguments[0] in ("list", "show", "report")]


@pytest.mark.parametrize(("block", "arguments"), with_place(QUICK))
def test_quick_commands_do_their_work(
    block: Block, arguments: list[str], after_a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(after_a_run)
    assert cli.main(arguments) == 0


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_every_script_runs(block: Block, after_a_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(after_a_run)
    exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_every_other_command_has_what_it_needs(words: list[str]) -> None:
    """Extras that are declared, targets that the Makefile has, hooks whose programs the virtual environment has."""
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        (package,) = words[2:]
        assert package.startswith(".[") and set(package[2:-1].split(",")) <= extras.keys()
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        target, *values = words[1:]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        for value in values:
            assert f"$({value.partition('=')[0]})" in makefile
    else:
        assert words == ["pre-commit", "install"]
        hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
        declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        packages = {"ruff": "ruff", "mypy": "mypy", "lint-imports": "import-linter"}
        programs = [Path(hook["entry"].split()[0]) for hook in hooks]
        assert programs and all(str(program.parent) == ".venv/bin" for program in programs)
        assert all(f'"{packages[program.name]}>=' in declared for program in programs)


# Experiments


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_every_experiment_loads(block: Block, tmp_path: Path) -> None:
    table = tomllib.loads(block.text)
    if "project" in table:
        ((group, points),) = table["project"]["entry-points"].items()
        assert group == registry.ENTRY_POINTS
        assert all(re.fullmatch(r"[\w.]+:\w+", point) for point in points.values())
    else:
        path = tmp_path / "mine.toml"
        path.write_text(block.text, encoding="utf-8")
        assert loading.load(str(path)).train.steps


# Links


def links(text: str) -> Iterator[str]:
    """Where the links and images of a page lead."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for each in token.children or ():
            target = each.attrGet("href") or each.attrGet("src")
            if target:
                yield str(target)


def broken_links(page: Path, text: str) -> list[str]:
    """Those that lead to no file; pages of the network are left alone."""
    inside = [target.partition("#")[0] for target in links(text) if not re.match(r"https?:", target)]
    return [target for target in inside if target and not (page.parent / target).exists()]


def test_every_link_leads_somewhere() -> None:
    """The manual's build checks its own pages' links to headings; these are the links of all pages to files."""
    found = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        found += len(list(links(text)))
        assert not broken_links(page, text), page
    assert found > 100
    assert len(list(links((ROOT / "README.md").read_text(encoding="utf-8")))) > 20


def test_a_broken_link_would_be_noticed() -> None:
    text = "[there](README.md) [gone](no-such-page.md#here)\n\n| a |\n|---|\n| ![gone](no.png) |\n\n[out](https://example.org)"
    assert broken_links(ROOT / "page.md", text) == ["no-such-page.md", "no.png"]
