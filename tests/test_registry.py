"""Methods: found by name wherever they live, imported only when asked for, never confused with one another."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, packages_distributions
from pathlib import Path

import pytest

import growbench
from growbench import origins, registry
from growbench.config import loading
from growbench.errors import UsageError

PLUGIN = '''
from typing import ClassVar
from growbench.method import Method, Phase, Phases, Task

class {name}(Method):
    """{name}'s card."""

    paper: ClassVar[str] = "https://example.org"
    share: float = 0.5

    def phases(self, task: Task) -> Phases:
        yield Phase(model=task.build())
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A loose file with one method."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="Mine"))
    return path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to install distributions into. What was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def install(site: Path, distribution: str, point: str, source: str = PLUGIN.format(name="Acme")) -> None:
    """A distribution as pip would leave it: one module, its metadata, and one entry point named `point`."""
    module = distribution.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[growbench.methods]\n{point} = {module}:Acme\n")


def refusal(spec: str, **options: object) -> str:
    """The text of the UsageError, which must be one line."""
    with pytest.raises(UsageError) as caught:
        registry.get(spec, options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_built_ins_are_the_files_in_methods() -> None:
    """One file, one name; the folder is the only list there is."""
    folder = Path(growbench.__file__).parent.parent / "methods"
    files = {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
    assert {"scratch", "ligo", "bert2bert", "stackbert"} <= set(files)
    assert {name: path.resolve() for name, path in registry.built_in().items()} == files
    assert set(files) <= set(registry.names())


def test_names_and_summaries_import_no_method() -> None:
    """Listing what there is costs no import of a method, nor of torch."""
    code = """
import sys
from growbench import registry
assert all(registry.summaries()[name] for name in registry.built_in()), registry.summaries()
loaded = [name for name in sys.modules if name == "torch" or name.startswith("growbench.methods.")]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", registry.built_in())
def test_a_built_in_is_a_frozen_dataclass_with_a_card(name: str) -> None:
    """Its hyperparameters have defaults and cannot be changed; its docstring and paper say what it is."""
    found = registry.get(name)
    cls = type(found.method)
    assert found.name == name and re.fullmatch(r"growbench sha256:[0-9a-f]{16}", found.origin)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.__doc__ is not None and cls.__doc__.partition("\n")[0] == registry.summaries()[name]
    assert cls.paper.startswith("https://")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.method.paper = ""  # type: ignore[misc]


def test_a_loose_file_is_named_after_itself(mine: Path) -> None:
    """Its origin is its name and the digest of its code; read again, it has what it has by now."""
    for spec in (f"{mine}", f"{mine}:Mine"):
        found = registry.get(spec, {"share": 0.25})
        assert (found.name, type(found.method).__name__, found.method.share) == ("mine", "Mine", 0.25)  # type: ignore[attr-defined]
        assert re.fullmatch(r"mine\.py sha256:[0-9a-f]{16}", found.origin)
    mine.write_text(mine.read_text().replace("0.5", "0.75"))
    assert registry.get(str(mine)).method.share == 0.75  # type: ignore[attr-defined]


def test_a_relative_path_is_a_loose_file(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    assert registry.get("./mine.py").name == registry.get("mine.py:Mine").name == "mine"


def test_a_file_of_two_methods_needs_a_class(mine: Path) -> None:
    """The error names both; naming one, either works."""
    mine.write_text(PLUGIN.format(name="First") + PLUGIN.format(name="Second"))
    assert refusal(str(mine)) == f"{mine} holds 2 methods (First, Second): name one, as {mine}:CLASS"
    first, second = registry.get(f"{mine}:First"), registry.get(f"{mine}:Second")
    assert type(second.method).__name__ == "Second" and first.origin != second.origin
    assert refusal(f"{mine}:Secnod") == f"{mine} has no Secnod: did you mean Second? known: First, Second"


def test_two_classes_of_one_file_are_two_methods_of_one_name(mine: Path) -> None:
    """Their runs would share a folder, so only one can take part."""
    mine.write_text(PLUGIN.format(name="First") + PLUGIN.format(name="Second"))
    with pytest.raises(UsageError, match="two methods are named 'mine'"):
        registry.get_all(["scratch", f"{mine}:First", f"{mine}:Second"], {})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('no such luck')", " cannot be loaded: mine.py, line 1: ValueError: no such luck"),
        ("raise ValueError('one line\\nand another')", " cannot be loaded: mine.py, line 1: ValueError: one line and another"),
        (
            "import no_such_package",
            " cannot be loaded: mine.py, line 1: ModuleNotFoundError: No module named 'no_such_package'; "
            "put the folder of a module of your own on PYTHONPATH",
        ),
        ("x = 1\ndef broken(:", " cannot be loaded: mine.py, line 2: SyntaxError: invalid syntax"),
        ("x = 1", " holds no method: write class NAME(Method), with Method from growbench.method"),
        (
            "from growbench.method import Method\nclass Lazy(Method): pass",
            ": Lazy does not define phases: write def phases(self, task: Task) -> Phases, which yields each Phase",
        ),
        (
            "import dataclasses\nfrom growbench.method import Method\n@dataclasses.dataclass(frozen=True)\nclass A(Method): pass",
            " cannot be loaded: mine.py, line 3: remove @dataclass: every subclass of Method is a frozen dataclass already",
        ),
        (
            "from dataclasses import dataclass\nfrom growbench.method import Method\n@dataclass\nclass A(Method): pass",
            " cannot be loaded: mine.py, line 3: remove @dataclass: every subclass of Method is a frozen dataclass already",
        ),
        (
            "from growbench.method import Method\n\nclass A(Method):\n    steps = 3",
            " cannot be loaded: mine.py, line 3: A.steps = 3 has no type: write steps: int = 3 for a hyperparameter, "
            "or steps: ClassVar[int] for a constant",
        ),
        (
            PLUGIN.format(name="Mine") + "    wraps = 'ligo'",
            "Mine.wraps = 'ligo': must be a tuple of names or files, as ('ligo',)",
        ),
    ],
)
def test_a_file_that_holds_no_method_says_why(mine: Path, source: str, reason: str) -> None:
    """In one line, with the line of the file, and what to write."""
    mine.write_text(source)
    assert refusal(str(mine)).endswith(reason)


def test_a_file_that_fails_leaves_no_module_behind(mine: Path) -> None:
    mine.write_text("raise ValueError")
    before = set(sys.modules)
    refusal(str(mine))
    assert not [name for name in set(sys.modules) - before if "plugin" in name]


def test_a_class_that_is_no_method_is_refused(mine: Path) -> None:
    mine.write_text(PLUGIN.format(name="Mine") + "\nclass Other: pass\n")
    assert "is not a growbench.method.Method" in refusal(f"{mine}:Other")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    assert refusal(f"{tmp_path}/absent.py") == f"method file {tmp_path}/absent.py does not exist"


def test_a_loose_file_cannot_take_a_name(mine: Path, site: Path) -> None:
    """Neither a built-in's, nor an installed one's, nor the source model's."""
    install(site, "acme-growth", "acme")
    for name, owner in (
        ("ligo", "the method of growbench"),
        ("acme", "the method of acme-growth 1.0"),
        ("source", "the small model"),
    ):
        path = mine.with_name(f"{name}.py")
        path.write_text(mine.read_text())
        message = refusal(str(path))
        assert f"the name {name!r}" in message and owner in message, message


def test_an_entry_point_is_found_and_loaded_when_named(site: Path) -> None:
    """Another package's method is a row of the table; its origin is the package and version."""
    install(site, "acme-growth", "acme")
    assert "acme" in registry.names()
    assert registry.summaries()["acme"] == "of acme-growth 1.0"
    registry.get_all(["scratch", "ligo"], {"acme": {"share": 0.25}})
    assert "acme_growth" not in sys.modules
    found = registry.get("acme", {"share": 0.25})
    assert "acme_growth" in sys.modules
    assert (found.name, found.method.share) == ("acme", 0.25)  # type: ignore[attr-defined]
    assert re.fullmatch(r"acme-growth 1\.0 sha256:[0-9a-f]{16}", found.origin)


def test_two_distributions_of_one_name_are_an_error(site: Path) -> None:
    """It names both, and neither wins."""
    install(site, "acme-growth", "acme")
    install(site, "zenith-growth", "acme")
    message = refusal("acme")
    assert "'acme'" in message and "acme-growth 1.0" in message and "zenith-growth 1.0" in message


@pytest.mark.parametrize("name", ["ligo", "source"])
def test_a_distribution_cannot_take_our_names(site: Path, name: str) -> None:
    install(site, "acme-growth", name)
    with pytest.raises(UsageError) as caught:
        registry.installed()
    message = str(caught.value)
    assert repr(name) in message and f"growbench {growbench.__version__}" in message and "acme-growth 1.0" in message


def test_a_broken_distribution_says_why_when_named(site: Path) -> None:
    """And does not stop anyone who did not name it."""
    install(site, "acme-growth", "acme", source="raise ValueError('no such luck')")
    assert "acme" in registry.names()
    assert refusal("acme") == (
        "method 'acme' of acme-growth 1.0 cannot be loaded: acme_growth.py, line 1: ValueError: no such luck"
    )
    install(site, "zenith-growth", "zenith", source="Acme = 3")
    assert "is not a growbench.method.Method" in refusal("zenith")


def test_an_unknown_name_gets_a_suggestion_and_the_list() -> None:
    message = refusal("liggo")
    assert message.startswith("unknown method 'liggo': did you mean ligo? known: bert2bert, ")


def test_a_file_without_its_suffix_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    assert refusal("mine").startswith("unknown method 'mine': did you mean ./mine.py? known: ./mine.py, bert2bert, ")


def test_a_wrong_hyperparameter_is_refused(mine: Path) -> None:
    """Key, value and type are checked as those of an experiment are."""
    assert refusal("ligo", operator_stpes=3).startswith("unknown key ligo.operator_stpes: did you mean operator_steps?")
    assert refusal("ligo", operator_steps="many") == "ligo.operator_steps = 'many': must be a valid integer"
    assert refusal("ligo", order="both") == "ligo.order = 'both': must be 'depth_first' or 'width_first'"
    assert refusal(str(mine), share="half") == "mine.share = 'half': must be a valid number"
    assert refusal("scratch", lr=1.0).startswith("unknown key scratch.lr: ")


def test_a_method_may_have_a_learning_rate_and_a_warm_up_of_its_own() -> None:
    """No other key of [train], which all methods share."""
    found = registry.get("ligo", {"operator_steps": 3, "train": {"warmup": 0}})
    own = loading.load("gpt2-tiny").at(1.0, found.training).train
    assert (own.warmup, own.lr) == (0, loading.load("gpt2-tiny").train.lr) and found.method.operator_steps == 3
    assert dict(loading.load("bert-small-base").methods["ligo"]) == {"train": {"warmup": 0}}
    assert refusal("ligo", train={"steps": 5}).startswith("unknown key ligo.train.steps: ")
    assert refusal("ligo", train={"lr": "high"}) == "ligo.train.lr = 'high': must be a valid number"


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("ligo", "operator_steps", -1),
        ("ligo", "operator_lr", -1.0),
        ("stackbert", "shares", [0.5, 0.75]),
        ("stackbert", "shares", [-0.5]),
    ],
)
def test_an_impossible_hyperparameter_is_refused(method: str, option: str, value: object) -> None:
    """A value of the right type that the method cannot work with names the key, as one of the experiment does."""
    assert f"{option} = " in refusal(method, **{option: value})


def test_hyperparameters_of_an_unknown_method_are_refused(mine: Path) -> None:
    """A misspelt name would be ignored silently; a known method that does not take part may have some."""
    with pytest.raises(UsageError, match="no method and no table of an experiment: did you mean ligo"):
        registry.get_all(["scratch"], {"ligoo": {"operator_steps": 3}})
    registry.get_all(["scratch"], {"ligo": {"operator_steps": 3}})
    assert registry.get_all(["scratch", str(mine)], {"mine": {"share": 0.1}})[1].method.share == 0.1  # type: ignore[attr-defined]


def test_a_hyperparameter_without_default_says_how_to_give_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from growbench.method import Method\n\n\nclass Mine(Method):\n    gain: float\n\n    def phases(self, task): yield\n"
    )
    with pytest.raises(UsageError, match=r"mine\.gain is missing, and has no default: give it with --set mine\.gain=VALUE"):
        registry.get(str(tmp_path / "mine.py"))
    assert registry.get(str(tmp_path / "mine.py"), {"gain": 0.5}).name == "mine"


def test_a_method_named_twice_takes_part_once() -> None:
    assert [found.name for found in registry.get_all(["scratch", "ligo", "scratch", "ligo"], {})] == ["scratch", "ligo"]


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", ".hidden", "a\\b", ""])
def test_a_method_of_a_package_cannot_leave_the_results_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's folder bears its method's name."""
    point = EntryPoint(name, "growbench.methods.scratch:Scratch", "growbench.methods")
    monkeypatch.setattr(registry, "installed", lambda: {name: point})
    monkeypatch.setattr(registry, "_owner", lambda point: "somebody's 1.0")
    with pytest.raises(UsageError, match="a method cannot be named"):
        registry.get(name)


# --- origins: what counts as a method's code


EDITS = {  # of PLUGIN, or of a helper module: the text before and after, and whether it is another method then
    "a value": ("0.5", "0.75", True),
    "a statement": ("yield Phase(model=task.build())", "yield Phase(model=task.build(), share=0.5)", True),
    "a number's type": ("0.5", "'0.5'", True),
    "the card": ("'s card.", "'s card, in other words.", False),
    "a comment": ("share: float = 0.5", "share: float = 0.5  # of the budget", False),
    "empty lines": ("    def phases", "\n\n    def phases", False),
    "a line's break": ("Method, Phase, Phases, Task", "(Method, Phase,\n    Phases, Task)", False),
    "a note among the statements": ("    share:", "    'a note'\n    share:", False),
}


@pytest.mark.parametrize("edit", EDITS)
def test_code_makes_another_origin_and_prose_does_not(mine: Path, edit: str) -> None:
    before, after, another = EDITS[edit]
    origin = registry.get(str(mine)).origin
    text = mine.read_text()
    assert text.count(before) == 1
    mine.write_text(text.replace(before, after))
    assert (registry.get(str(mine)).origin != origin) == another


def read_anew(folder: Path) -> str:
    """The origin of ./mine.py as another run in this folder would find it, which imports what the method imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)  # as Python does for a command
        patch.setattr(sys, "dont_write_bytecode", True)  # a file that is as long and as old as before would count as the same
        try:
            return registry.get("./mine.py").origin
        finally:
            own = {path.stem for path in folder.iterdir()}
            for name in [name for name in sys.modules if name.partition(".")[0] in own]:
                del sys.modules[name]


HELPERS = {  # a file that is to change, the other ones, and how the method imports them
    "beside": ("helper.py", {}, "import helper"),
    "in a function": ("helper.py", {}, "def late():\n    from helper import VALUE"),
    "by another helper": ("further.py", {"helper.py": "import further"}, "import helper"),
    "in a folder": ("parts/helper.py", {}, "from parts import helper"),
    "in a folder's folder": ("parts/deep/helper.py", {}, "import parts.deep.helper"),
    "the package around": ("parts/__init__.py", {"parts/helper.py": ""}, "import parts.helper"),
    "in a package": ("parts/helper.py", {"parts/__init__.py": "from . import helper"}, "import parts"),
}


@pytest.mark.parametrize("case", HELPERS)
def test_a_helper_module_is_code_of_the_method(tmp_path: Path, case: str) -> None:
    """It is changed in prose, which does not count, then in code."""
    file, others, statement = HELPERS[case]
    for name, text in {**others, file: "VALUE = 1\n", "mine.py": f"{PLUGIN.format(name='Mine')}\n{statement}\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = read_anew(tmp_path)
    (tmp_path / file).write_text('"What it is."\nVALUE = 1  # one\n')
    assert read_anew(tmp_path) == before
    (tmp_path / file).write_text("VALUE = 2\n")
    assert read_anew(tmp_path) != before


def test_a_helper_of_a_packages_method_counts_and_another_package_does_not(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative imports are followed within the method's own package; what else is installed is another package's matter."""
    install(site, "other-package", "other")
    package = site / "acme"
    package.mkdir()
    (package / "__init__.py").write_text("from .method import Acme\n")
    (package / "method.py").write_text("from .parts import VALUE\nimport other_package\n" + PLUGIN.format(name="Acme"))
    (package / "parts.py").write_text("VALUE = 1\n")
    info = site / "acme-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[growbench.methods]\nacme = acme:Acme\n")
    (site / "other_package-1.0.dist-info" / "top_level.txt").write_text("other_package\n")
    monkeypatch.setattr(origins, "_of_distributions", cache(packages_distributions))

    before = registry.get("acme").origin
    assert before.startswith("acme 2.0 sha256:")
    (site / "other_package.py").write_text("VALUE = 3\n")
    assert registry.get("acme").origin == before
    (package / "parts.py").write_text("VALUE = 2\n")
    assert registry.get("acme").origin != before


def test_a_built_in_method_is_its_file_and_the_methods_that_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code, and that of another method; no other module of growbench."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "first.py").write_text(PLUGIN.format(name="First"))
    second = "from growbench.methods.first import First\nfrom growbench.growth import maps\n"
    (folder / "second.py").write_text(second + PLUGIN.format(name="Second"))
    package = importlib.import_module("growbench.methods")
    monkeypatch.setattr(package, "__path__", [str(folder)])
    monkeypatch.setattr(package.__spec__, "submodule_search_locations", [str(folder)])
    first, second = registry.get("first").origin, registry.get("second").origin
    (folder / "first.py").write_text(PLUGIN.format(name="First").replace("0.5", "0.25"))
    assert registry.get("first").origin != first and registry.get("second").origin != second
    (folder / "first.py").write_text('"A note."\n' + PLUGIN.format(name="First"))
    assert registry.get("first").origin == first and registry.get("second").origin == second
    for name in ("first", "second"):
        del sys.modules[f"growbench.methods.{name}"]


def test_a_wrapped_method_is_code_of_the_one_that_wraps_it(mine: Path) -> None:
    """Which one that is may be a hyperparameter."""
    like = {"like": str(mine)}
    before = registry.get("random_source", like).origin
    assert before != registry.get("random_source").origin
    mine.write_text(mine.read_text().replace("card", "page"))
    assert registry.get("random_source", like).origin == before
    mine.write_text(mine.read_text().replace("0.5", "0.25"))
    assert registry.get("random_source", like).origin != before


def test_methods_that_wrap_one_another_in_a_circle_are_refused(mine: Path) -> None:
    mine.write_text(PLUGIN.format(name="Mine") + f"    wraps = ({str(mine)!r},)\n")
    assert refusal(str(mine)).endswith("which wraps it in turn")


def test_a_method_without_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[type(registry.get("scratch").method).__module__], "__file__", None)
    assert refusal("scratch") == "Scratch is in no Python file, so no digest of its code can be made"
