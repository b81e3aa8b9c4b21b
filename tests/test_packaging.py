"""The package: what pyproject.toml lists is what there is, and a wheel holds nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = ("growbench", "methods", "experiments")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_dependencies() -> set[str]:
    """What pyproject.toml asks for, extras included, this package apart."""
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in asked} - {"growbench"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built, as pip would, from a copy of the sources: nothing is written to the repository."""
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "pyproject.toml", *ROOT.glob("README*"), *ROOT.glob("LICEN[CS]E*"), *ROOT.glob("NOTICE*")):
        shutil.copy(path, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").touch()  # what lies beside must not slip in
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run([sys.executable, "-c", code, str(out)], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_string(wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode())


def test_every_folder_of_code_is_listed() -> None:
    """The list is explicit: a forgotten folder would be missing from the wheel only."""
    folders = {path.parent.relative_to(ROOT) for name in SOURCES for path in (ROOT / name).rglob("__init__.py")}
    setuptools = PYPROJECT["tool"]["setuptools"]
    moved = {Path(folder): package for package, folder in setuptools["package-dir"].items()}
    expected = {moved.get(folder, ".".join(folder.parts)) for folder in folders}
    assert sorted(setuptools["packages"]) == sorted(expected)


def test_every_module_lies_in_a_listed_folder() -> None:
    for name in SOURCES:
        modules = list((ROOT / name).rglob("*.py"))
        assert modules, name
        for module in modules:
            assert (module.parent / "__init__.py").is_file(), module


def test_a_wheel_holds_growbench_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    outside = [name for name in wheel.namelist() if not re.match(r"growbench/|growbench-[^/]+\.dist-info/", name)]
    assert not outside


def test_a_wheel_holds_every_source_file(wheel: zipfile.ZipFile) -> None:
    """Methods and experiments included, which lie elsewhere in the repository; TOML, templates and scripts too."""
    names = set(wheel.namelist())
    assert {"growbench/methods/ligo.py", "growbench/experiments/gpt2-tiny.toml"} <= names
    assert {"growbench/report/templates/experiment.html", "growbench/report/templates/style.css"} <= names
    for name in SOURCES:
        for path in (path for kind in ("py", "toml", "html", "css", "js", "txt") for path in (ROOT / name).rglob(f"*.{kind}")):
            inside = path.relative_to(ROOT)
            assert str(inside if name == "growbench" else Path("growbench") / inside) in names


def test_the_wheel_says_what_pyproject_says(metadata: Message) -> None:
    """Licence, Python versions, and the command's name."""
    import growbench

    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == growbench.__version__
    assert {clause.strip() for clause in metadata["Requires-Python"].split(",")} == {">=3.11", "<3.14"}
    required = {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in metadata.get_all("Requires-Dist", [])}
    assert required - {"growbench"} == direct_dependencies()


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    points = wheel.read(next(name for name in wheel.namelist() if name.endswith("/entry_points.txt"))).decode()
    assert "growbench = growbench.cli:main" in points


def test_constraints_pin_every_direct_dependency_exactly() -> None:
    """What was tested can be installed again."""
    file = ROOT / "constraints.txt"
    if not file.is_file():
        pytest.skip("there is no constraints.txt")
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    pins = [line for line in lines if line and not line.startswith("-")]
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( *;.*)?", pin), pin
    assert direct_dependencies() <= {canonical(pin.partition("==")[0]) for pin in pins}
