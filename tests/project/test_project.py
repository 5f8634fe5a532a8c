"""The project's own files agree with each other: what one of them promises, the others keep."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLONE = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((CLONE / "notebooks").glob("*.ipynb"))
NOTEBOOK_BYTES = 1_000_000  # GitHub stops showing a notebook not far above this


def tracked_files() -> list[Path]:
    """What a clone brings. Without git (an unpacked sdist) there is no such list, so everything but made files."""
    git = subprocess.run(["git", "ls-files", "-z"], cwd=CLONE, capture_output=True, check=False)
    if git.returncode == 0:
        return [path for name in git.stdout.decode().split("\0") if name and (path := CLONE / name).is_file()]
    made = re.compile(r"^(\.venv|\.git|build|dist)/|__pycache__|\.egg-info|\.pytest_cache|\.hypothesis")
    return [p for p in CLONE.rglob("*") if p.is_file() and not made.search(p.relative_to(CLONE).as_posix())]


def requirements() -> list[Requirement]:
    """Every range that the project declares, for use, tests and data."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(line) for line in [*PROJECT["project"]["dependencies"], *(r for rows in extras for r in rows)]]


def pins() -> dict[str, Requirement]:
    """The constraints by canonical name."""
    lines = (line.strip() for line in (CLONE / "constraints.txt").read_text(encoding="utf-8").splitlines())
    rows = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(row.name) for row in rows}) == len(rows), "a package is pinned twice"
    return {canonicalize_name(row.name): row for row in rows}


def pinned_version(pin: Requirement) -> Version:
    (spec,) = pin.specifier
    assert spec.operator == "==" and "*" not in spec.version, f"{pin} is no exact version"
    return Version(spec.version)


# --------------------------------------------------------------------------------------------- versions
@pytest.mark.parametrize("wanted", requirements(), ids=lambda wanted: wanted.name)
def test_constraints_hold_every_range(wanted: Requirement) -> None:
    pin = pins().get(canonicalize_name(wanted.name))
    if wanted.marker is not None and not wanted.marker.evaluate({"python_version": "3.11", "extra": ""}):
        return  # not part of the environment that the constraints were taken from
    if wanted.name == "triton":
        assert pin is None, "a torch for CUDA needs one release of Triton, and a pin of another would shut it out"
        return
    assert pin is not None, f"constraints.txt does not pin {wanted.name}"
    assert wanted.specifier.contains(pinned_version(pin)), f"{pin} is outside {wanted}"


def test_constraints_are_exact_and_name_no_build() -> None:
    for pin in pins().values():
        assert pinned_version(pin).local is None, f"{pin} would refuse other builds, such as those for a GPU"


def test_constraints_do_not_shut_out_the_oldest_python() -> None:
    oldest = re.search(r">=\s*([\d.]+)", PROJECT["project"]["requires-python"])
    assert oldest is not None
    environment = {"python_version": oldest[1], "python_full_version": f"{oldest[1]}.0", "extra": ""}
    for name in ("numpy", "pandas", "scipy", "transformers"):  # their pinned releases have dropped it
        marker = pins()[name].marker
        assert marker is not None and not marker.evaluate(environment), f"{name} cannot be installed there"


# --------------------------------------------------------------------------------------------- conda
def test_conda_environment_cannot_drift() -> None:
    environment = yaml.safe_load((CLONE / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["project"]["name"]
    conda = [row for row in environment["dependencies"] if isinstance(row, str)]
    (pip,) = [row["pip"] for row in environment["dependencies"] if isinstance(row, dict)]
    assert pip == ["-c constraints.txt", "-e ."], "what pip installs is said in pyproject.toml and nowhere else"
    assert [re.split(r"[=<>]", row)[0] for row in conda] == ["python", "pip"]
    python = re.fullmatch(r"python=(\d+\.\d+)", conda[0])
    assert python is not None
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python[1])


# --------------------------------------------------------------------------------------------- licence
def test_licence() -> None:
    text = (CLONE / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


# --------------------------------------------------------------------------------------------- texts
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (CLONE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("text", ["README.md", "CONTRIBUTING.md"])
def test_named_make_targets_exist(text: str) -> None:
    # Commands stand in code: between backticks, or at the start of a line of a code block.
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", (CLONE / text).read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= make_targets()
    if text == "README.md":
        assert {"lab", "compare", "test"} <= named


@pytest.mark.parametrize("text", ["README.md", "CONTRIBUTING.md"])
def test_named_files_exist(text: str) -> None:
    prose = re.sub(r"```.*?```", "", (CLONE / text).read_text(encoding="utf-8"), flags=re.DOTALL)
    in_code = re.findall(r"`([\w./-]+(?:/|\.(?:py|toml|txt|yml|md|ipynb|json|csv|parquet)))`", prose)
    linked = [target.split("#")[0] for target in re.findall(r"\]\((?!\w+:|#)([^)\s]+)\)", prose)]
    for name in [*in_code, *linked]:
        assert (CLONE / name).exists(), f"{text} names {name}, which is not there"


def test_ci_runs_the_commands_that_people_run() -> None:
    script = CLONE / ".ci" / "run"
    assert script.read_text(encoding="utf-8").endswith("\nmake lint\nexec make test\n")
    assert script.stat().st_mode & 0o111, "must be executable"


def test_no_file_knows_a_machine() -> None:
    # Home and root folders of some machine. The look-behind leaves addresses and relative paths alone.
    path = re.compile(r"(?<![\w.}~-])/(?:root|home|Users|work)/[\w.]|[A-Z]:\\\\?Users\\")
    for file in tracked_files():
        content = file.read_bytes()
        if b"\0" in content[:8192]:
            continue
        found = path.search(content.decode("utf-8", errors="replace"))
        assert not found, f"{file.relative_to(CLONE)} names {found[0]}..."


# --------------------------------------------------------------------------------------------- notebooks
def test_there_is_a_first_notebook() -> None:
    assert NOTEBOOKS and NOTEBOOKS[0].name == "00_start_here.ipynb"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_fit_to_commit(path: Path) -> None:
    assert path.stat().st_size <= NOTEBOOK_BYTES, "clear large outputs"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"], "widget state is saved: megabytes that nobody can read"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3", "no other kernel exists on every machine"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    counts = [cell["execution_count"] for cell in code]
    assert counts in ([None] * len(code), list(range(1, len(code) + 1))), "run from top to bottom, or not at all"


def test_the_readme_lists_every_method_as_the_registry_has_it() -> None:
    made = runpy.run_path(str(CLONE / "docs" / "readme.py"))
    text = (CLONE / "README.md").read_text(encoding="utf-8")
    assert text == made["filled"](text), "`python docs/readme.py` writes the table anew"
    assert {"fastv", "evs", "stride"} <= set(re.findall(r"`([\w+-]+)`", made["table"]()))


# --------------------------------------------------------------------------------------------- pictures
def test_every_widget_is_pictured_in_two_states() -> None:
    from illava_lab import widgets

    page = (CLONE / "docs" / "widgets.md").read_text(encoding="utf-8")
    for name in widgets.__all__:
        if inspect.isclass(getattr(widgets, name)):
            assert f"{name}(" in page
    shown = re.findall(r"!\[.{20,}\]\((screenshots/[\w-]+)\.png\)", page)  # with a description each
    names = {name.rsplit("-", 1)[0] for name in shown}
    assert sorted(shown) == sorted(f"{name}-{state}" for name in names for state in (1, 2))
    there = {f"screenshots/{path.stem}": path for path in (CLONE / "docs" / "screenshots").glob("*.png")}
    assert set(there) == set(shown)
    for path in there.values():
        with Image.open(path) as picture:
            assert picture.width <= 1000 and path.stat().st_size < 150_000
