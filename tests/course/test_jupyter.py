"""`illava-lab lab`: the copy of the notebooks loses nobody's work, and JupyterLab starts as promised."""

from __future__ import annotations

import json
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


def test_clone_opens_its_own_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = launched(monkeypatch)
    assert jupyter.open_lab(extra=["--port=9000"]) == 0
    (argv,) = calls
    assert f"--ServerApp.root_dir={CLONE}" in argv
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in argv
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

    overrides = json.loads((CLONE / "illava_lab" / "lab_settings" / "overrides.json").read_text(encoding="utf-8"))
    for plugin, values in overrides.items():
        package, name = plugin.split(":")
        schema = json.loads((Path(get_app_dir()) / "schemas" / package / f"{name}.json").read_text(encoding="utf-8"))
        for key, value in values.items():
            definition = {**schema["properties"][key], "definitions": schema.get("definitions", {})}
            jsonschema.validate(value, definition)


@pytest.mark.network
def test_real_server_in_a_clone(tmp_path: Path) -> None:
    code = "import sys; from illava_lab.course.jupyter import open_lab; sys.exit(open_lab(None, sys.argv[1:]))"
    with serving([sys.executable, "-c", code], cwd=tmp_path, scratch=tmp_path / "scratch") as server:
        notebook = server.get("/api/contents/notebooks/00_start_here.ipynb?content=0")
        assert notebook["type"] == "notebook"
        assert {entry["name"] for entry in server.get("/api/contents/strategies")["content"]} >= {"__init__.py"}
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get("/api/contents", token="guess")
        assert refused.value.code == 403
        overridden = server.get("/lab/api/settings/@jupyterlab/apputils-extension:notification")
        assert overridden["schema"]["properties"]["fetchNews"]["default"] == "false"
    assert server.process.returncode == 0, "asked to stop, it stops in order"
    assert not list(tmp_path.glob("*.ipynb")), "a clone needs no copy"
