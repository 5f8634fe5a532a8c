"""What is built from the project is complete: installed away from the clone, without it, the lab works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.lab_server import serving

pytestmark = pytest.mark.slow

CLONE = Path(__file__).resolve().parents[2]
SOURCES = (
    "illava_lab", "strategies", "data", "notebooks", "tests",
    "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CONTRIBUTING.md", "Makefile", "constraints.txt", "environment.yml",
)  # fmt: skip
# A file of each kind in the folders of the second model and of its tasks.
STAND_INS = (
    "onevision/stand-in.json",
    "onevision/stand-in.safetensors",
    "onevision/stand-in.jinja",
    "tasks/stand-in.parquet",
)


def run(command: list[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end, five minutes at most; on failure show what was printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist, so that the sdist is proven complete as well.

    Built from a copy: setuptools leaves folders in its sources, and takes deleted files out of old ones.
    """
    copy = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in SOURCES:
        source = CLONE / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            shutil.copy2(source, copy / name)
    for name in STAND_INS:
        (copy / "data" / name).parent.mkdir(exist_ok=True)
        (copy / "data" / name).write_text("as in a clone that has everything", encoding="utf-8")
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy])
    assert len(list(out.glob("*.tar.gz"))) == 1
    (built,) = out.glob("*.whl")
    return built


def test_wheel_carries_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        (place / path.relative_to(CLONE / top)).as_posix()
        for top, place in (("illava_lab", Path("illava_lab")), ("strategies", Path("illava_lab/strategies")))
        for path in (CLONE / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    for folder in ("model", "onevision", "tasks"):
        files = (path for path in (CLONE / "data" / folder).glob("*") if path.is_file())
        wanted |= {f"illava_lab/_data/{folder}/{path.name}" for path in files}
    wanted |= {f"illava_lab/_data/{name}" for name in STAND_INS}
    wanted |= {f"illava_lab/_data/{path.name}" for path in (CLONE / "data").glob("*.parquet")}
    wanted |= {f"illava_lab/_data/{path.name}" for path in (CLONE / "data").glob("*.csv")}
    wanted |= {f"illava_lab/_data/configs/{path.name}" for path in (CLONE / "data" / "configs").iterdir()}
    wanted |= {f"illava_lab/_notebooks/{path.name}" for path in (CLONE / "notebooks").glob("*.ipynb")}
    assert not wanted - names
    for essential in (
        "illava_lab/_data/model/config.json",
        "illava_lab/_data/model/model.safetensors",
        "illava_lab/_data/test.parquet",
        "illava_lab/_notebooks/00_start_here.ipynb",
        "illava_lab/course/lab_settings/overrides.json",
        "illava_lab/py.typed",
        "illava_lab/__init__.pyi",
        "illava_lab/method/__init__.pyi",
        "illava_lab/strategies/illava.py",
    ):
        assert essential in names


def test_wheel_carries_nothing_else(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"illava_lab"}
    assert sum(entry.file_size for entry in archive.infolist()) < 60_000_000


@dataclass
class Installation:
    """An environment that holds the wheel, and an empty folder to work in.

    Attributes:
        scripts: where its commands are.
        site: where its packages are.
        empty: a folder that has nothing to do with the clone.
        env: the surroundings to run it in.
    """

    scripts: Path
    site: Path
    empty: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in an environment of its own.

    The packages it needs (1.5 GB) are borrowed from the environment that runs the tests, through a path file. A path
    file that is found that way is not read in turn, so the clone's editable installation there stays out of reach.
    """
    root = tmp_path_factory.mktemp("installed")
    venv.create(root, with_pip=False, symlinks=os.name != "nt")
    layout = {"base": str(root), "platbase": str(root)}
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else sysconfig.get_default_scheme()
    site = Path(sysconfig.get_path("purelib", scheme, vars=layout))
    scripts = Path(sysconfig.get_path("scripts", scheme, vars=layout))
    python = scripts / Path(sys.executable).name
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel])
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed), encoding="utf-8")

    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    share = Path(sys.prefix) / "share" / "jupyter"  # the front end and the kernel belong to the borrowed packages
    env |= {"JUPYTERLAB_DIR": str(share / "lab"), "JUPYTER_PATH": str(share), "HF_HUB_OFFLINE": "1"}
    return Installation(scripts, site, tmp_path_factory.mktemp("empty"), env)


def test_nothing_comes_from_the_clone(installed: Installation) -> None:
    code = (
        "import illava_lab, illava_lab.strategies as room; from illava_lab import paths;"
        "print(illava_lab.__file__, room.__file__, paths.data_dir(), paths.notebooks_dir(), paths.clone_dir(), sep='\\n')"
    )
    done = run([installed.scripts / "python", "-c", code], cwd=installed.empty, env=installed.env)
    *places, clone = done.stdout.split("\n")[:5]
    assert clone == "None"
    for place in places:
        assert Path(place).resolve().is_relative_to(installed.site.resolve()), f"{place} is outside the installation"


def test_strategies_are_found_and_nothing_stands_in_their_way(installed: Installation, tmp_path: Path) -> None:
    (tmp_path / "strategies.py").write_text("raise SystemExit('a file of somebody else')\n", encoding="utf-8")
    code = "import illava_lab; print(*illava_lab.strategies(), sep='\\n'); assert not illava_lab.broken_plugins()"
    done = run(
        [installed.scripts / "python", "-c", code], cwd=tmp_path, env={**installed.env, "PYTHONPATH": str(tmp_path)}
    )
    files = [path for path in (CLONE / "strategies").glob("*.py") if path.stem != "__init__"]
    found = set(done.stdout.split())
    assert {"none", "random", "fastv", "tome", "illava"} <= found and len(found) >= len(files)


def test_compare_runs(installed: Installation) -> None:
    command = [installed.scripts / "illava-lab", "compare", "--strategies", "none,illava"]
    command += ["--keep", "0.5", "--limit", "8", "--no-timing", "--out", "result"]
    done = run(command, cwd=installed.empty, env=installed.env)
    assert "illava" in done.stdout
    assert (installed.empty / "result" / "table.csv").is_file()


@pytest.mark.network
def test_lab_serves_a_copy(installed: Installation, tmp_path: Path) -> None:
    command = [str(installed.scripts / "illava-lab"), "lab", "mine"]
    with serving(command, cwd=tmp_path, scratch=tmp_path / "scratch", env=installed.env) as server:
        notebook = server.get("/api/contents/00_start_here.ipynb")
        assert notebook["content"]["cells"]
    assert server.process.returncode == 0
    published = installed.site / "illava_lab" / "_notebooks" / "00_start_here.ipynb"
    assert (tmp_path / "mine" / "00_start_here.ipynb").read_bytes() == published.read_bytes()
