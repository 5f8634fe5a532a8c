"""A chapter with its solutions after it: one run shows that it runs as it stands, and that they satisfy its checks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parents[2] / "notebooks"
sys.path.insert(0, str(FOLDER))  # the script there is no package

import execute  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
IN_BROWSER = ("00_start_here", "02_merging_step_by_step")
"""What `test_browser.py` runs in JupyterLab; where there is no browser, `test_notebooks.py` runs it as all others."""

SECONDS = 180  # what the notebooks promise
CLOCK = "import time\nprint(time.time())"


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: Mapping[str, Any]) -> str:
    return "".join("".join(out.get("text", "")) for out in cell["outputs"])


def with_solutions(path: Path) -> nbformat.NotebookNode:
    """The whole notebook, a cell that says the time, and each solution with its check, for one kernel to run."""
    notebook = read(path)
    solved = execute.solutions(notebook)
    exercises = [cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", [])]
    assert len(solved) == len(exercises) >= 3
    for source in (CLOCK, *(part for pair in solved for part in pair)):
        notebook.cells.append(nbformat.v4.new_code_cell(source))
    return notebook


def is_right(text: str) -> bool:
    """Whether a check says so, whatever its cell printed before."""
    return any(line.startswith("Right") for line in text.splitlines())


def check_run(cells: Sequence[Mapping[str, Any]], start: float, seconds: float = SECONDS) -> None:
    """What must hold of the code cells of `with_solutions` after a run that began at `start` and may take `seconds`.

    Raises:
        AssertionError: it took too long, an exercise was solved before its time, a solution is wrong, pictures lack.
    """
    sources = ["".join(cell["source"]) for cell in cells]
    own = sources.index(CLOCK)
    assert float(text_of(cells[own])) - start < seconds
    checks = cells[own + 2 :: 2]
    as_it_stands = [
        text_of(cell) for cell, source in zip(cells[:own], sources, strict=False) if "print(check_" in source
    ]
    assert len(as_it_stands) >= len(checks)
    assert not any(map(is_right, as_it_stands)), "an exercise is solved before it is done"
    for cell in checks:
        assert is_right(text_of(cell)), text_of(cell)
    pictures = [out for cell in cells for out in cell["outputs"] if "image/png" in out.get("data", {})]
    assert len(pictures) >= 4
