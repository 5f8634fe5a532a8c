"""The tasks that come with the lab, and where they are. Without pandas, for the command line answers at once."""

from __future__ import annotations

from pathlib import Path

from illava_lab.paths import data_dir, quoted

ONE_PICTURE = ("test", "validation")
OTHERS = ("multi-image", "video", "fine", "conversation")
EMBEDDED = (*ONE_PICTURE, *(f"{name}{split}" for name in OTHERS for split in ("", "-validation")))


def path_of(name: str) -> Path:
    """The file of a task: of an embedded one by its name, otherwise the name is the path."""
    if name not in EMBEDDED:
        return Path(name)
    return data_dir() / f"{name}.parquet" if name in ONE_PICTURE else data_dir() / "tasks" / f"{name}.parquet"


def missing(name: str) -> str:
    """What is said where a task has no file."""
    path = quoted(path_of(name))
    if name in EMBEDDED:
        return f"this installation of illava-lab lacks the task {name!r}, expected at {path}: install it again"
    return f"task must be {listed()} or a Parquet file; there is no file {path}"


def listed() -> str:
    """The names as a sentence lists them."""
    return ", ".join(map(repr, EMBEDDED))
