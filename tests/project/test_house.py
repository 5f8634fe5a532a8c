"""The rules of the house: what is where, what may import what, and what the files that describe the project say of it."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import illava_lab

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLONE = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MOVED = SETUPTOOLS["package-dir"]  # package -> its folder in a clone, where that is another one
MODULES_ON_TOP, LINES_OF_A_MODULE = 7, 300


def modules() -> list[Path]:
    """Every module that is installed."""
    return [path for top in ("illava_lab", "strategies") for path in sorted((CLONE / top).rglob("*.py"))]


def public() -> list[str]:
    """What `illava_lab/__init__.pyi` lists."""
    stub = ast.parse((CLONE / "illava_lab" / "__init__.pyi").read_text(encoding="utf-8"))
    return [
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


# --------------------------------------------------------------------------------------------- what is where
def test_the_package_is_rooms_and_not_a_heap() -> None:
    on_top = sorted(path.name for path in (CLONE / "illava_lab").glob("*.py"))
    assert len(on_top) <= MODULES_ON_TOP, f"{on_top}: a module belongs into a room"


def test_a_module_is_read_in_one_sitting() -> None:
    long = {
        path.relative_to(CLONE).as_posix(): lines
        for path in modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LINES_OF_A_MODULE
    }
    assert not long, f"cut these where one idea ends: {long}"


def test_the_packages_are_the_folders() -> None:
    folders = {path.parent for path in modules()} | {CLONE / folder for folder in MOVED.values()}
    folders = {path.relative_to(CLONE).as_posix() for path in folders}
    assert {MOVED.get(name, name.replace(".", "/")) for name in SETUPTOOLS["packages"]} == folders
    assert len(SETUPTOOLS["packages"]) == len(folders)
    assert {name.split(".")[0] for name in SETUPTOOLS["packages"]} == {"illava_lab"}, "nothing else at the top level"


def test_types_are_installed() -> None:
    data = SETUPTOOLS["package-data"]
    stubs = [*(CLONE / "illava_lab").rglob("*.pyi"), CLONE / "illava_lab" / "py.typed"]
    assert len(stubs) >= 3
    for path in stubs:
        package = ".".join(path.parent.relative_to(CLONE).parts)
        assert any(path.match(pattern) for pattern in data.get(package, ())), f"{path.name} of {package} is left out"


# --------------------------------------------------------------------------------------------- what may import what
def lint_imports(folder: Path) -> tuple[int, str]:
    """Status and words of import-linter on the package in a folder."""
    run = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", run], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package and its contracts, to be spoiled."""
    shutil.copytree(CLONE / "illava_lab", tmp_path / "illava_lab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(CLONE / "pyproject.toml", tmp_path)
    return tmp_path


def add(house: Path, module: str, code: str) -> None:
    with (house / "illava_lab" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{code}\n")


def upwards(house: Path) -> None:
    add(house, "method/keep.py", "import illava_lab.session.lab")


def upwards_inside_a_function(house: Path) -> None:
    add(house, "models/images.py", "def late() -> None:\n    from illava_lab.views import plots")


def in_a_circle(house: Path) -> None:
    add(house, "sites/first.py", "from illava_lab.sites import second")
    add(house, "sites/second.py", "def late() -> None:\n    from illava_lab.sites import first")


def a_new_room(house: Path) -> None:
    (house / "illava_lab" / "attic").mkdir()
    add(house, "attic/__init__.py", "")


def test_imports_go_one_way(house: Path) -> None:
    status, words = lint_imports(house)
    assert status == 0, words


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (upwards, ["illava_lab.method.keep -> illava_lab.session.lab"]),
        (upwards_inside_a_function, ["illava_lab.models.images -> illava_lab.views"]),
        (in_a_circle, ["cycles are allowed in illava_lab.sites", ".second -> .first"]),
        (a_new_room, ["illava_lab.attic"]),
    ],
)
def test_other_imports_are_found(house: Path, spoil: Callable[[Path], None], named: list[str]) -> None:
    spoil(house)
    status, words = lint_imports(house)
    assert status == 1, words
    for name in named:
        assert name in words, words


def test_the_core_names_no_strategy() -> None:
    imports = re.compile(r"^\s*(?:from|import)\s+(?:illava_lab\.|\.+)?strategies\b", re.MULTILINE)
    for path in (CLONE / "illava_lab").rglob("*.py"):
        assert not imports.search(path.read_text(encoding="utf-8")), f"{path.name} imports a strategy"


# --------------------------------------------------------------------------------------------- what is public
def test_every_public_name_is_there_and_listed() -> None:
    names = public()
    assert len(names) == len(set(names)) > 30
    assert set(names) <= set(dir(illava_lab))
    for name in names:
        assert getattr(illava_lab, name) is not None


def test_importing_the_lab_costs_nothing() -> None:
    """The command line answers mistakes at once, because libraries are imported when something needs them."""
    code = "import sys, illava_lab; print([name for name in ('torch', 'numpy', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------- what others read
def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((CLONE / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (CLONE / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = [Version(release) for release in re.findall(r"^## \[(\d[^]]*)\]", changes, re.MULTILINE)]
    assert releases == sorted(releases, reverse=True)
    assert Version(illava_lab.__version__) == Version(citation["version"]) == releases[0]


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("github-workflows", ".github/workflows/tests.yml"),
        ("github-workflows", ".github/workflows/prerelease.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_that_machines_read_are_valid(schema: str, file: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", file]
    done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["compare", "chat", "attach", "bench", "fidelity", "load", "published"])
def test_no_function_hides_a_module_of_its_name(name: str) -> None:
    import illava_lab as il

    assert callable(getattr(il, name))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"illava_lab.{name}")
