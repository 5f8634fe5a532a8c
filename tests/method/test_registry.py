"""The registry finds what is installed, explains what it cannot find, and survives a stranger's broken module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import illava_lab as il

REPOSITORY = Path(__file__).parents[2]


def test_every_file_in_strategies_is_found():
    files = {path.stem for path in (REPOSITORY / "strategies").glob("*.py")} - {"__init__"}
    modules = {
        cls.__module__.split(".")[-1]
        for cls in il.strategies().values()
        if cls.__module__.startswith("illava_lab.strategies.")
    }
    assert modules == files
    assert next(iter(il.strategies())) == "none"


@pytest.mark.parametrize(("typed", "near"), [("ilava", "illava"), ("fast-v", "fastv"), ("tom", "tome")])
def test_an_unknown_name_brings_the_nearest(typed, near):
    with pytest.raises(il.LabError, match=f"unknown strategy '{typed}'; did you mean {near}"):
        il.get_strategy(typed)


def test_register_refuses_what_is_no_strategy():
    with pytest.raises(il.LabError, match="expects a subclass of Strategy"):
        il.register(object)
    with pytest.raises(il.LabError, match="Nameless needs a name"):
        il.register(type("Nameless", (il.Scorer,), {}))
    with pytest.raises(il.LabError, match=r"the name 'fastv' is taken by illava_lab.strategies.fastv.FastV"):
        il.register(type("Mine", (il.Scorer,), {"name": "fastv"}))
    with pytest.raises(il.LabError, match="stages must be taken from"):
        il.register(type("Where", (il.Scorer,), {"name": "where", "stages": ("decoder",)}))


def test_a_class_can_be_defined_again_as_in_a_notebook_cell():
    def cell():
        @il.register
        class Again(il.Scorer):
            name = "again"

        return Again

    first, second = cell(), cell()
    assert il.get_strategy("again") is second is not first


def test_other_peoples_packages_are_found_and_broken_ones_are_named(tmp_path):
    """A package on the path with real metadata, as pip leaves it: one good module, one that fails, one bad entry."""
    package, metadata = tmp_path / "their_methods", tmp_path / "their_methods-1.0.dist-info"
    package.mkdir(), metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text(
        "import illava_lab as il\n@il.register\nclass Theirs(il.Scorer):\n    name = 'theirs'\n"
        "    def score(self, tokens): return tokens.hidden.norm(dim=-1)\n"
    )
    (package / "bad.py").write_text("import nothing_of_this_name\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[illava_lab.strategies]\ntheirs = their_methods\ngone = missing_package\n"
    )
    code = (
        "import illava_lab as il; from illava_lab.method.registry import broken_plugins; "
        "print('theirs' in il.strategies(), 'illava' in il.strategies(), sorted(broken_plugins()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert run.stdout.strip() == "True True ['gone', 'their_methods.bad']", run.stderr
