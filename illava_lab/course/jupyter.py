"""Open JupyterLab at the first notebook: what ``illava-lab lab`` and ``make lab`` do.

The server listens on loopback only, keeps its access token, and never asks about news or updates, because a lecture
room may be offline. Our settings travel as a folder of their own, so nothing is written to the user's ``~/.jupyter``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from illava_lab import paths
from illava_lab.errors import LabError
from illava_lab.files import read_plain, write_whole

FIRST_NOTEBOOK = "00_start_here.ipynb"
DEFAULT_FOLDER = "illava-lab-notebooks"
FOLDER_IN_CLONE = "my-notebooks"  # which Git ignores

_SETTINGS = Path(__file__).resolve().parent / "lab_settings"
_RECORD = ".illava-lab.json"


def open_lab(folder: Path | None = None, extra: Iterable[str] = ()) -> int:
    """Serve JupyterLab until it is stopped, and return the exit status.

    What opens is a copy, so that running a chapter changes neither an installed package nor a clone, whose notebooks
    are published with the outputs that are stored in them. In a clone the copy is beside the published ones, with the
    strategies' folder in reach of the file browser and of the chapters' links.

    Args:
        folder: where the copy goes; by default `my-notebooks` at the top of a clone, else `illava-lab-notebooks` in the
            current folder.
        extra: further options for JupyterLab, such as ``--no-browser`` or ``--port=9000``.

    Raises:
        LabError: the folder cannot hold the notebooks, or JupyterLab is not installed.
    """
    try:
        from jupyterlab.labapp import LabApp
    except ImportError as error:
        raise LabError(f'JupyterLab is not installed here ({error}): run pip install "jupyterlab>=4.2"') from error

    clone = paths.clone_dir()
    if folder is None and clone is not None:
        root, copy = clone, clone / FOLDER_IN_CLONE
    else:
        root = copy = Path(folder or DEFAULT_FOLDER).expanduser().resolve()
    for line in copy_notebooks(copy):
        print(line)
    notebook = (copy / FIRST_NOTEBOOK).relative_to(root).as_posix()

    # A kernel called "python3" in the user's home may belong to another Python, one without illava_lab.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    LabApp.launch_instance(lab_options(root, notebook, extra))
    return 0


def lab_options(root: Path, notebook: str, extra: Iterable[str] = ()) -> list[str]:
    """JupyterLab's command line. What the user adds comes last, so it wins."""
    options = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url=/lab/tree/{notebook}",
        f"--LabServerApp.app_settings_dir={_SETTINGS}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")  # a container's only user is often root, and Jupyter refuses to start for it
    return [*options, *extra]


def copy_notebooks(folder: Path) -> list[str]:
    """Bring `folder` up to date with the published notebooks without losing anyone's work.

    A file that is missing is copied; one that is still as it was copied follows the package to its next version; one
    that the user changed is left alone. To tell the last two apart, the folder keeps a record of what was copied.

    Returns:
        What happened, in sentences for a person.

    Raises:
        LabError: the folder cannot be made, read or written.
    """
    source = paths.notebooks_dir()
    published = {path.name: path for path in sorted(source.iterdir()) if path.suffix in (".ipynb", ".png")}
    copied: list[str] = []
    kept: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _read_record(folder / _RECORD)
        record = dict(before)
        for name, path in published.items():
            target, new = folder / name, _digest(path)
            old = _found(target)
            if old == new:
                record[name] = new
            elif old is None or old == record.get(name):
                write_whole(target, path.read_bytes())  # whole: half a notebook would later look like the user's own
                record[name] = new
                copied.append(name)
            elif record.get(name) != new:
                kept.append(name)
        if record != before:
            write_whole(folder / _RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise LabError(f"cannot copy the notebooks to {str(folder)!r}: {reason}; name another folder") from error

    lines = [f"Copied {len(copied)} notebook files to {str(folder)!r}"] if copied else []
    return lines + [f"Kept your changed {name}; to get the new version, rename yours and start again" for name in kept]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _found(target: Path) -> str | None:
    """The digest of what is in a notebook's place; None for nothing, a word for a link or a folder, which stays."""
    if not os.path.lexists(target):
        return None
    return _digest(target) if target.is_file() and not target.is_symlink() else "no plain file"


def _read_record(path: Path) -> dict[str, str]:
    """What was copied earlier. An unreadable record means that nothing is known, so nothing is overwritten."""
    try:
        record = json.loads(read_plain(path).decode())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
