"""`illava-lab lab`: the copy of the notebooks loses nobody's work, and JupyterLab starts as promised."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
from helpers.lab_server import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from illava_lab import LabError, paths
from illava_lab.course import jupyter

CLONE = Path(__file__).resolve().parents[2]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notebooks of an installed package, small enough to see through."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in ("00_start_here.ipynb", "01_next.ipynb", "picture.png"):
        (folder / name).write_text(f"{name}, first version")
    (folder / "notes.txt").write_text("no notebook")
    (folder / ".ipynb_checkpoints").mkdir()
    monkeypatch.setattr(paths, "notebooks_dir", lambda: folder)
    return folder


# --------------------------------------------------------------------------------------------- where things are
def test_a_clone_uses_its_own_folders() -> None:
    assert paths.clone_dir() == CLONE
    assert paths.data_dir() == CLONE / "data"
    assert paths.notebooks_dir() == CLONE / "notebooks"


def test_an_installed_package_uses_what_it_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "illava_lab"
    for name in ("_data", "_notebooks"):
        (package / name).mkdir(parents=True)
    # Other packages' folders beside it must not be mistaken for ours.
    for name in ("data", "notebooks"):
        (package.parent / name).mkdir()
    (package.parent / "pyproject.toml").touch()
    monkeypatch.setattr(paths, "_PACKAGE", package)
    assert paths.clone_dir() is None
    assert paths.data_dir() == package / "_data"
    assert paths.notebooks_dir() == package / "_notebooks"


def test_an_incomplete_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "illava_lab")
    with pytest.raises(LabError, match="lacks its data folder"):
        paths.data_dir()


# --------------------------------------------------------------------------------------------- the copy
def test_first_copy_is_complete(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where"
    (line,) = jupyter.copy_notebooks(folder)
    assert str(folder) in line and "3" in line
    copied = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert copied == {"00_start_here.ipynb", "01_next.ipynb", "picture.png"}


def test_second_copy_says_and_does_nothing(published: Path, tmp_path: Path) -> None:
    jupyter.copy_notebooks(tmp_path / "mine")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").glob("*.*")}
    assert jupyter.copy_notebooks(tmp_path / "mine") == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").glob("*.*")} == before


def test_new_version_reaches_unchanged_files_only(published: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    jupyter.copy_notebooks(mine)
    (mine / "01_next.ipynb").write_text("my work")
    for path in published.glob("*.ipynb"):
        path.write_text(f"{path.name}, second version")
    lines = jupyter.copy_notebooks(mine)
    assert (mine / "00_start_here.ipynb").read_text() == "00_start_here.ipynb, second version"
    assert (mine / "01_next.ipynb").read_text() == "my work"
    assert any("01_next.ipynb" in line and "rename" in line for line in lines)


@pytest.mark.parametrize("record", ["", "[]", "null", "{broken"])
def test_without_a_record_nothing_is_overwritten(published: Path, tmp_path: Path, record: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "00_start_here.ipynb").write_text("something of the user's")
    (mine / ".illava-lab.json").write_text(record)
    jupyter.copy_notebooks(mine)
    assert (mine / "00_start_here.ipynb").read_text() == "something of the user's"
    assert (mine / "01_next.ipynb").exists()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(
        st.tuples(st.sampled_from(["user", "release", "delete", "copy"]), st.integers(0, 2)), min_size=1, max_size=12
    )
)
def test_no_history_loses_work(
    published: Path, tmp_path_factory: pytest.TempPathFactory, history: Sequence[tuple[str, int]]
) -> None:
    mine = tmp_path_factory.mktemp("history")
    notebook, source = mine / "01_next.ipynb", published / "01_next.ipynb"
    own: str | None = None  # the user's text, while it is the latest thing in the file
    for event, number in history:
        if event == "user":
            own = f"user {number}"
            notebook.write_text(own)
        elif event == "release":
            source.write_text(f"release {number}")
        elif event == "delete":
            notebook.unlink(missing_ok=True)
            own = None
        else:
            jupyter.copy_notebooks(mine)
        if own is not None:
            assert notebook.read_text() == own
        elif event == "copy":
            assert notebook.read_text() == source.read_text()


def test_impossible_folder_is_refused(published: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LabError, match="name another folder"):
        jupyter.copy_notebooks(tmp_path / "file")
    with pytest.raises(LabError, match="name another folder"):
        jupyter.copy_notebooks(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "in the way"


# --------------------------------------------------------------------------------------------- JupyterLab
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record command lines instead of starting servers."""
    from jupyterlab.labapp import LabApp

    calls: list[list[str]] = []
    monkeypatch.setattr(LabApp, "launch_instance", lambda argv: calls.append(argv))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    return calls


def test_clone_opens_a_copy_beside_its_own_notebooks(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = launched(monkeypatch)
    monkeypatch.setattr(paths, "clone_dir", lambda: tmp_path)
    assert jupyter.open_lab(extra=["--port=9000"]) == 0
    (argv,) = calls
    assert f"--ServerApp.root_dir={tmp_path}" in argv
    assert "--LabApp.default_url=/lab/tree/my-notebooks/00_start_here.ipynb" in argv
    assert (tmp_path / "my-notebooks" / "00_start_here.ipynb").exists()
    assert "--ServerApp.ip=127.0.0.1" in argv
    assert argv[-1] == "--port=9000", "the user's own options come last, so they win"
    assert not [option for option in argv if "token" in option.lower()], "the server keeps its token"


def test_named_folder_gets_a_copy(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = launched(monkeypatch)
    assert jupyter.open_lab(tmp_path / "mine") == 0
    assert f"--ServerApp.root_dir={tmp_path / 'mine'}" in calls[0]
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in calls[0]
    assert (tmp_path / "mine" / "00_start_here.ipynb").exists()


def test_package_without_a_folder_uses_the_default(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = launched(monkeypatch)
    monkeypatch.setattr(paths, "clone_dir", lambda: None)
    monkeypatch.chdir(tmp_path)
    jupyter.open_lab()
    assert f"--ServerApp.root_dir={tmp_path / 'illava-lab-notebooks'}" in calls[0]


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_root_is_allowed_only_for_root(monkeypatch: pytest.MonkeyPatch, user: int, allowed: bool) -> None:
    monkeypatch.setattr(jupyter.os, "geteuid", lambda: user, raising=False)
    assert ("--allow-root" in jupyter.lab_options(CLONE, "x.ipynb")) is allowed


def test_missing_jupyterlab_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)
    with pytest.raises(LabError, match="pip install"):
        jupyter.open_lab()


def test_settings_are_ones_that_jupyterlab_knows() -> None:
    """JupyterLab ignores a setting it does not know, or one of a wrong type, without a word."""
    from jupyterlab.commands import get_app_dir

    overrides = json.loads(
        (CLONE / "illava_lab" / "course" / "lab_settings" / "overrides.json").read_text(encoding="utf-8")
    )
    for plugin, values in overrides.items():
        package, name = plugin.split(":")
        schema = json.loads((Path(get_app_dir()) / "schemas" / package / f"{name}.json").read_text(encoding="utf-8"))
        for key, value in values.items():
            definition = {**schema["properties"][key], "definitions": schema.get("definitions", {})}
            jsonschema.validate(value, definition)


def git(clone: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *words], cwd=clone, check=True, capture_output=True, text=True).stdout


@pytest.mark.network
@pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")
def test_real_server_leaves_a_clone_as_it_is(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in ("notebooks", "strategies"):
        shutil.copytree(CLONE / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", "pyproject.toml"):
        shutil.copy(CLONE / name, clone / name)
    git(clone, "init", "--quiet")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=all")
    code = (
        "import sys; from pathlib import Path; from illava_lab import paths; from illava_lab.__main__ import main\n"
        "paths._PACKAGE = Path(sys.argv[1], 'illava_lab'); sys.exit(main(['lab', *sys.argv[2:]]))"
    )
    with serving([sys.executable, "-c", code, str(clone)], cwd=tmp_path, scratch=tmp_path / "scratch") as server:
        chapter = server.get("/api/contents/my-notebooks/00_start_here.ipynb")
        assert chapter["type"] == "notebook"
        names = {entry["name"] for entry in server.get("/api/contents/strategies")["content"]}
        assert "__init__.py" in names, "where the chapters' links lead"
        chapter["content"]["cells"] = []
        server.put("/api/contents/my-notebooks/00_start_here.ipynb", chapter)
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get("/api/contents", token="guess")
        assert refused.value.code == 403
        overridden = server.get("/lab/api/settings/@jupyterlab/apputils-extension:notification")
        assert overridden["schema"]["properties"]["fetchNews"]["default"] == "false"
    assert server.process.returncode == 0, "asked to stop, it stops in order"
    saved = json.loads((clone / "my-notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    assert saved["cells"] == []
    assert git(clone, "status", "--porcelain") == ""


KERNEL = """
import sys
from jupyter_client.manager import start_new_kernel
from jupyterlab.labapp import LabApp
from illava_lab.__main__ import main

def launch(argv):
    manager, client = start_new_kernel()
    client.execute_interactive("import os; print(os.environ.get('OMP_WAIT_POLICY'))", timeout=60)
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    assert "torch" not in sys.modules, "the server needs no torch, and starts seconds earlier without"

LabApp.launch_instance = launch
main(["lab", sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("own", "found"), [(None, "passive"), ("active", "active")])
def test_threads_of_kernels_sleep_while_they_wait(tmp_path: Path, own: str | None, found: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {} if own is None else {"OMP_WAIT_POLICY": own}
    command = [sys.executable, "-c", KERNEL, str(tmp_path / "mine")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == found
