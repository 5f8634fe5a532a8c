"""Where the embedded models, the tasks and the notebooks are, in a clone and in an installed package; and names.

A clone (also one installed with ``pip install -e .``) keeps ``data/`` and ``notebooks/`` at its top. A wheel has no
top level of its own, so there they are installed inside this package as ``_data`` and ``_notebooks``. Nothing else in
the lab needs to know which of the two it runs from.
"""

from __future__ import annotations

import os
from pathlib import Path

from illava_lab.errors import LabError

_PACKAGE = Path(__file__).resolve().parent
EMBEDDED = "embedded:"
EMBEDDED_MODELS = {"embedded:onevision": "onevision"}
"""Names of checkpoints that come with the lab, beside the one without a name -> their folders in `data_dir()`."""
LONGEST = 200
"""Characters of a name that a message shows; of a longer one (a whole picture as a data: address) only both ends."""


def quoted(name: str | os.PathLike[str]) -> str:
    """A file's name as a message shows it: in quotes, on one line, without anything that a terminal obeys."""
    text = os.fsdecode(name)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}...{text[-LONGEST // 4 :]}"
    return repr(text)


def is_file(name: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; no name is so odd or so long that asking fails."""
    try:
        return Path(os.fsdecode(name)).is_file()
    except (OSError, ValueError):
        return False


def is_folder(name: str | os.PathLike[str]) -> bool:
    """Whether there is such a folder; no name is so odd or so long that asking fails."""
    try:
        return Path(os.fsdecode(name)).is_dir()
    except (OSError, ValueError):
        return False


def clone_dir() -> Path | None:
    """The top of the clone that this code runs from, or None if it runs from an installed package."""
    # Only an installed package has the data inside it. Other people's packages lie beside it, so a folder called "data"
    # or a stray project file next to this package would prove nothing.
    if (_PACKAGE / "_data").is_dir():
        return None
    return _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None


def data_dir() -> Path:
    """The folder with the embedded checkpoints (``model/``, ``onevision/``) and the tasks.

    Raises:
        LabError: the installation lacks it.
    """
    return _folder("data")


def embedded_model(name: str) -> Path:
    """The folder of an embedded model, by the name that `illava_lab.load` takes.

    Raises:
        LabError: there is none of that name, or this release comes without it.
    """
    here = [known for known, folder in EMBEDDED_MODELS.items() if (data_dir() / folder).is_dir()]
    if name not in EMBEDDED_MODELS:
        known = " and ".join(["the one without a name", *map(repr, here)])
        raise LabError(f"there is no embedded model {quoted(name)}; there is {known}")
    folder = data_dir() / EMBEDDED_MODELS[name]
    if name not in here:
        raise LabError(
            f"this release of illava-lab comes without {name!r}, which would be at {quoted(folder)}; "
            "leave the name out for the other embedded model"
        )
    return folder


def notebooks_dir() -> Path:
    """The folder with the notebooks as they were published. In an installed package, treat it as read-only.

    Raises:
        LabError: the installation lacks it.
    """
    return _folder("notebooks")


def _folder(name: str) -> Path:
    clone = clone_dir()
    folder = clone / name if clone else _PACKAGE / f"_{name}"
    if not folder.is_dir():
        raise LabError(
            f"this installation of illava-lab lacks its {name} folder, expected at {folder}: install it again"
        )
    return folder
