"""Run notebooks from top to bottom and store their outputs: the only way in which committed outputs are made.

    python notebooks/execute.py              # every notebook here
    python notebooks/execute.py 00_start_here.ipynb
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
CELL_SECONDS = 300


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run every cell in `folder`. Widget state is left out of the result: it would be megabytes that nobody can read.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the text holds its traceback.
    """
    NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _is_dead_widget(out)]
    return notebook


def _is_dead_widget(output: nbformat.NotebookNode) -> bool:
    """A widget with neither picture nor text, such as a finished progress bar: nothing to see without a kernel."""
    data = output.get("data", {})
    return "application/vnd.jupyter.widget-view+json" in data and not {"image/png", "text/html"} & set(data)


def solutions(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(solution, check) of every exercise: the code folded below a cell tagged "exercise", and the code that checks it."""
    found, check = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "print(check_" in cell.source:
            check = cell.source
        solution = re.search(r"<summary>Solution</summary>\s*```python\n(.*?)```", cell.source, re.DOTALL)
        if cell.cell_type == "markdown" and solution:
            found.append((solution[1], check))
    return found


def main() -> None:
    paths = [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        notebook = execute(nbformat.read(path, as_version=4), FOLDER)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
