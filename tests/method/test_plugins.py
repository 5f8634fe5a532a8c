"""Every way to bring a strategy of one's own, for real: a notebook's cell, a dropped file, an installed package.

And the ways in which that goes wrong, none of which may keep the lab from starting.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

import illava_lab as il
from illava_lab.method import registry

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "illava_lab")
# First an installation, then this clone, so that everything is tested on the code beside this file.
LISTED = """
import json
import illava_lab as il
try:
    il.get_strategy("fast-one")
except il.LabError as error:
    message = str(error)
classes = {name: f"{cls.__module__}.{cls.__qualname__}" for name, cls in il.strategies().items()}
print(json.dumps([classes, il.broken_plugins(), message]))
"""


def run(folder: Path, *command: str | Path, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY)))}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def scorer(name: object, score: str = "tokens.hidden.norm(dim=-1)", decorator: str = "@il.register\n") -> str:
    return f"""import illava_lab as il
{decorator}class Theirs(il.Scorer):
    name = {name!r}
    def score(self, tokens):
        return {score}
"""


# ---------------------------------------------------------------------------------------------- a notebook's cell
def cell(name: str, cls: str, score: str) -> str:
    return scorer(name, score).replace("Theirs", cls)


SETUP = """
import json
import illava_lab as il
lab = il.load()
task = il.load_task("test").limited(8)
sample = task.samples.iloc[0]

def tried(out):
    table = il.compare(lab, ["mine"], keep=0.5, limit=8, timing=False, progress=False, out=out)
    answer = lab.ask(task.image(sample["image_id"]), sample["question"], strategy="mine", keep=0.5)
    print(json.dumps([table.to_dict("records"), answer.trace.steps[0].scores[0, -3:].tolist(), answer.text]))
"""


@pytest.mark.slow
def test_a_class_in_a_cell_is_used_and_a_changed_cell_replaces_it(tmp_path: Path) -> None:
    first, last = "-tokens.position.float()", "tokens.position.float()"
    cells = [
        SETUP,
        cell("mine", "Mine", first), "tried('out')",
        cell("mine", "Mine", last), "tried('out')",
        cell("mine", "Renamed", first), "tried('out')",
        "try:\n" + indent(cell("fastv", "FastV", first), "    ") + "except il.LabError as error:\n    print(error)",
    ]  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    resources = {"metadata": {"path": str(tmp_path)}}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute(env=env)

    printed = ["".join(out.text for out in code.outputs if out.get("name") == "stdout") for code in notebook.cells]
    tables, scores, answers = zip(*(json.loads(printed[i]) for i in (2, 4, 6)), strict=True)
    for none, mine in tables:
        assert (none["strategy"], mine["strategy"], mine["status"]) == ("none", "mine", "ok")
        assert mine["tokens"] < none["tokens"]
    # The scores are those of the cell that ran last, and neither answers nor rows of the one before are shown again.
    assert scores[0][-1] < 0 < scores[1][-1] and scores[2] == scores[0]
    assert tables[0][1]["accuracy"] == tables[2][1]["accuracy"] and answers[0] == answers[2]
    log = (tmp_path / "out" / "run.jsonl").read_text().splitlines()
    measured = [entry["digest"] for entry in map(json.loads, log[1:]) if entry["row"]["strategy"] == "mine"]
    assert len(set(measured)) == 2, "the third call must keep the row of the second one, and add its own"
    assert (
        "the name 'fastv' is taken by illava_lab.strategies.fastv.FastV; give __main__.FastV another name" in printed[7]
    )


# ---------------------------------------------------------------------------------------------- a dropped file
def test_a_file_dropped_into_strategies_is_found(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for package in ("illava_lab", "strategies"):
        shutil.copytree(REPOSITORY / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "illava_lab" / "strategies").symlink_to(clone / "strategies")  # for `pip install -e`, which finds it there
    (clone / "strategies" / "dropped.py").write_text(scorer("dropped"))
    # What JupyterLab's "Duplicate" makes: the original keeps its name, the copy is told to take another.
    shutil.copy(clone / "strategies" / "fastv.py", clone / "strategies" / "fastv-Copy1.py")

    done = run(tmp_path, sys.executable, "-c", LISTED, path=(clone,))
    classes, broken, _ = json.loads(done.stdout)
    assert classes["dropped"] == "illava_lab.strategies.dropped.Theirs"
    assert classes["fastv"] == "illava_lab.strategies.fastv.FastV"
    assert list(broken) == ["illava_lab.strategies.fastv-Copy1"]
    assert not (REPOSITORY / "strategies" / "dropped.py").exists()


# ---------------------------------------------------------------------------------------------- installed packages
def project(folder: Path, name: str, entries: dict[str, str], files: dict[str, str]) -> Path:
    """The sources of a package as somebody else would publish it."""
    root = folder / name
    package = name.replace("-", "_")
    for file, text in {"__init__.py": "", **files}.items():
        path = root / package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = "".join(f'{entry} = "{value}"\n' for entry, value in entries.items())
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{name}"\nversion = "1.0"\n[project.entry-points."illava_lab.strategies"]\n{lines}'
        f'[tool.setuptools]\npackages = ["{package}"]\n'
    )
    return root


def install(folder: Path, *projects: Path) -> Path:
    """Build wheels and install them into a folder of their own."""
    wheels, site = folder / "wheels", folder / "site"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    offline = ("--no-deps", "--no-index")
    run(folder, *pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", wheels, *projects)
    built = sorted(wheels.glob("*.whl"))
    assert len(built) == len(projects)
    # Not compiled, because one of the broken ones cannot be.
    run(folder, *pip, "install", "--no-compile", *offline, "--target", site, *built)
    return site


@pytest.mark.slow
def test_an_installed_package_brings_its_strategies(tmp_path: Path) -> None:
    many = {"one.py": scorer("of-a-package"), "two.py": scorer("of-a-package-too"), "__main__.py": "exit(1)"}
    single = {"method.py": scorer("of-a-class", decorator="")}
    site = install(
        tmp_path,
        project(tmp_path, "many-methods", {"many": "many_methods"}, many),
        project(tmp_path, "one-class", {"one": "one_class.method:Theirs"}, single),
    )
    listed = run(tmp_path, *COMMAND, "strategies", path=(site,))
    rows = {line.split()[0]: line.split()[1] for line in listed.stdout.splitlines()}
    theirs = ["of-a-class", "of-a-package", "of-a-package-too"]
    assert {rows.get(name) for name in theirs} == {"prune"} and rows["illava"] == "merge"
    assert listed.stderr == ""

    words = "compare --strategies none,of-a-package,of-a-class --keep 0.5 --limit 8 --no-timing --out out"
    run(tmp_path, *COMMAND, *words.split(), path=(site,))
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("strategy")
    assert list(table.index) == ["none", "of-a-package", "of-a-class"] and set(table["status"]) == {"ok"}
    assert (table["tokens"] < table.loc["none", "tokens"]).tolist() == [False, True, True]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation of nine packages, most of them in some trouble."""
    folder = tmp_path_factory.mktemp("troubled")
    leaving = "import sys; sys.exit('no GPU\\nhere')"
    bad = {"absent.py": "import nothing_of_this_name", "typo.py": "class Theirs(:\n", "leaving.py": leaving}
    projects = {
        # Named to be found before the lab's own entry, by any order.
        "a-clash": ({"a": "a_clash"}, {"mine.py": scorer("fastv")}),
        "b-clash": ({"b": "b_clash:Theirs"}, {"__init__.py": scorer("illava", decorator="")}),
        "broken-modules": ({"modules": "broken_modules"}, {**bad, "whole.py": scorer("beside-broken-ones")}),
        "leaving-package": ({"leaving": "leaving_package"}, {"__init__.py": "raise SystemExit(3)"}),
        "no-strategy": ({"function": "no_strategy:Theirs"}, {"__init__.py": "def Theirs(): pass"}),
        "no-name": ({"number": "no_name:Theirs"}, {"__init__.py": scorer(5, decorator="")}),
        "same-one": ({"same": "same_one"}, {"method.py": scorer("same-one")}),
        "same-two": ({"same": "same_two:Absent"}, {"method.py": scorer("same-two")}),
        "twice": ({"twice": "twice", "again": "twice.method:Theirs"}, {"method.py": scorer("twice")}),
    }
    return install(folder, *(project(folder, name, *content) for name, content in projects.items()))


@pytest.mark.slow
def test_trouble_is_reported_by_name_and_the_lab_starts(troubled: Path, tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, "-c", LISTED, path=(troubled,))
    classes, broken, message = json.loads(done.stdout)
    taken = "the name {!r} is taken by illava_lab.strategies.{}; give {}.Theirs another name"
    assert broken == {
        "a_clash.mine": taken.format("fastv", "fastv.FastV", "a_clash.mine"),
        "b": taken.format("illava", "illava.ILLaVA", "b_clash"),
        "broken_modules.absent": "ModuleNotFoundError: No module named 'nothing_of_this_name'",
        "broken_modules.leaving": "SystemExit: no GPU here",
        "broken_modules.typo": broken["broken_modules.typo"],  # Python's words change from version to version
        "leaving": "SystemExit: 3",
        "function": broken["function"],
        "number": 'Theirs needs a name, for example: name = "theirs"',
        "same (same-two)": "AttributeError: module 'same_two' has no attribute 'Absent'",
    }
    assert re.match("SyntaxError: .*typo.py, line 1", broken["broken_modules.typo"])
    assert broken["function"].startswith("register expects a subclass of Strategy or Scorer, got <function Theirs")
    assert (
        classes["fastv"] == "illava_lab.strategies.fastv.FastV"
        and classes["illava"] == "illava_lab.strategies.illava.ILLaVA"
    )
    assert {"beside-broken-ones", "same-one", "twice"} <= set(classes) and "same-two" not in classes
    assert message.startswith("unknown strategy 'fast-one'; did you mean ")
    assert all(f"{plugin} ({reason})" in message for plugin, reason in broken.items())

    listed = run(tmp_path, *COMMAND, "strategies", path=(troubled,))
    note = "illava-lab: note: the plug-in {} could not be loaded: {}"
    address = re.compile(" at 0x[0-9a-fA-F]+")
    notes = [address.sub("", note.format(*item)) for item in broken.items()]
    assert address.sub("", listed.stderr).splitlines() == notes
    assert len(listed.stdout.splitlines()) == len(classes) + 1


def test_a_plugin_used_before_the_lab_looks_for_plugins_is_whole(troubled: Path, tmp_path: Path) -> None:
    """Its own import must not be mistaken for a broken one, nor the lab's classes lose their names to it."""
    code = "from twice.method import Theirs\nimport illava_lab.strategies.fastv\n" + LISTED
    classes, broken, _ = json.loads(run(tmp_path, sys.executable, "-c", code, path=(troubled,)).stdout)
    assert classes["twice"] == "twice.method.Theirs" and classes["fastv"] == "illava_lab.strategies.fastv.FastV"
    assert not {"twice", "again"} & set(broken)


def test_ctrl_c_while_a_plugin_loads_is_no_broken_plugin() -> None:
    def load() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry._attempt("stopped", load)
    assert "stopped" not in registry._broken


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": 5}, "Odd needs a name"),
        ({"name": "odd", "kind": "squash"}, "Odd.kind must be one of .* got 'squash'"),
        ({"name": "odd", "stages": "llm"}, "Odd.stages must be taken from .* got 'llm'"),
        ({"name": "odd", "stages": None}, "Odd.stages must be taken from .* got None"),
    ],
)
def test_what_would_break_every_list_of_strategies_is_refused(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(il.LabError, match=message):
        il.register(type("Odd", (il.Scorer,), attributes))
    assert "odd" not in il.strategies()
