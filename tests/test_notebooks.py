"""Every notebook runs from top to bottom, as it stands and with its exercises solved; solutions satisfy the checks."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
sys.path.insert(0, str(FOLDER))  # the script there is no package

import execute  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 180  # what the notebooks promise


def text_of(cell: nbformat.NotebookNode) -> str:
    return "".join(out.get("text", "") for out in cell.outputs)


def checks(notebook: nbformat.NotebookNode) -> list[str]:
    """What the automatic checks of the exercises printed."""
    return [text_of(cell) for cell in notebook.cells if cell.cell_type == "code" and "print(check_" in cell.source]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_stands_in_the_promised_time(path, tmp_path):
    shutil.copy(path, tmp_path)
    start = time.perf_counter()
    notebook = execute.execute(nbformat.read(path, as_version=4), tmp_path)
    assert time.perf_counter() - start < SECONDS
    assert len(checks(notebook)) >= 3
    assert not any(text.startswith("Right") for text in checks(notebook)), "an exercise is solved before it is done"
    pictures = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_solutions_satisfy_the_checks(path, tmp_path):
    notebook = execute.execute(execute.solve(nbformat.read(path, as_version=4)), tmp_path)
    for text in checks(notebook):
        assert text.startswith("Right"), text
