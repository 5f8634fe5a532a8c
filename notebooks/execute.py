"""Run notebooks from top to bottom and store their outputs: the only way in which committed outputs are made.

    python notebooks/execute.py              # every notebook here
    python notebooks/execute.py 00_start_here.ipynb

The seconds that each section ran go into the notebook's table of times, with the machine named in its header: times are
always those of the run that made the outputs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from illava_lab.measuring.machine import machine

FOLDER = Path(__file__).parent
CELL_SECONDS = 300
SLOW_CELL, SLOW_NOTEBOOK = 20, 120  # seconds from which on a reader waits, and is warned about here
WIDGET = "application/vnd.jupyter.widget-view+json"
PAGES = """\
import json, sys
teaching = sys.modules.get("illava_lab.course.teaching")
print(json.dumps(teaching.pages() if teaching else {}))"""
START, END, TOTAL = "set-up and picture", "quiz and recap", "total"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> list[float]:
    """Run every cell in `folder`. Widget state is left out of the result: it would be megabytes that nobody can read.

    Returns:
        The seconds of each cell, 0 where nothing runs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the text holds its traceback.
    """
    notebook.cells.append(nbformat.v4.new_code_cell(PAGES))
    NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    pages = json.loads("".join(out.get("text", "") for out in notebook.cells.pop().outputs))
    notebook.metadata.pop("widgets", None)
    # The kernel's own times of day are popped: in a committed file they would change with every run.
    seconds = [_seconds(cell.metadata.pop("execution", {})) for cell in notebook.cells]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _is_dead_widget(out)]
            for out in cell.outputs:
                if WIDGET in out.get("data", {}):  # a prediction is stored with what was measured after it
                    page = pages.get(out.data.get("text/plain"), out.data.get("text/html"))
                    out.data |= {} if page is None else {"text/html": page}
    return seconds


def _seconds(times: dict[str, str]) -> float:
    ends = [times.get(f"iopub.status.{state}") for state in ("busy", "idle")]
    if not all(ends):
        return 0.0
    start, stop = (datetime.fromisoformat(end.replace("Z", "+00:00")) for end in ends)  # Python 3.10 reads no Z
    return (stop - start).total_seconds()


def _is_dead_widget(output: nbformat.NotebookNode) -> bool:
    """A widget with neither picture nor text, such as a finished progress bar: nothing to see without a kernel."""
    data = output.get("data", {})
    return WIDGET in data and not {"image/png", "text/html"} & set(data)


# --------------------------------------------------------------------------------------------- predictions
def fold(notebook: nbformat.NotebookNode) -> None:
    """Fold stored outputs that tell what a prediction above them asks, up to the text behind its measurement.

    JupyterLab unfolds an output when a reader runs its cell; the site shows all of them.
    """
    made, asked, telling = set(), set(), False
    for cell in notebook.cells:
        if cell.cell_type != "code":
            telling = False
            continue
        hidden = bool(asked) or telling
        compared = asked & set(re.findall(r"\b(\w+)\.compare\(", cell.source))
        asked, telling = asked - compared, telling or bool(compared)
        made |= set(re.findall(r"^(\w+) = Prediction\(", cell.source, re.MULTILINE))
        asked |= made & set(re.findall(r"^(\w+)\.show\(\)", cell.source, re.MULTILINE))
        cell.metadata.pop("collapsed", None)
        own = {name: value for name, value in cell.metadata.pop("jupyter", {}).items() if name != "outputs_hidden"}
        if hidden:
            cell.metadata["collapsed"], own["outputs_hidden"] = True, True
        if own:
            cell.metadata["jupyter"] = own


# --------------------------------------------------------------------------------------------- times
def sections(notebook: nbformat.NotebookNode) -> list[str]:
    """The section of each cell: START before the first numbered heading, its number after that, END after any other."""
    now, found = START, []
    for cell in notebook.cells:
        for heading in re.findall(r"^## (.*)", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []:
            number = re.match(r"\d+(?=\.)", heading)
            now = number[0] if number else END
        found.append(now)
    return found


def write_times(notebook: nbformat.NotebookNode, seconds: Sequence[float], where: str) -> None:
    """Write the seconds of each section into the third column of the table that starts "| section |", if there is one.

    Args:
        seconds: of each cell.
        where: the machine, for the header of that column.

    Raises:
        ValueError: the table has a row for a section that does not exist, or none for one that does.
    """
    spent = {START: 0.0, END: 0.0, TOTAL: sum(seconds)}
    for section, some in zip(sections(notebook), seconds, strict=True):
        spent[section] = spent.get(section, 0.0) + some
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and "| section |" in cell.source:
            cell.source = re.sub(
                r"^\| section \|.*\n(?:\|.*\n?)*",
                lambda table: _filled(table[0], spent, where),
                cell.source,
                flags=re.MULTILINE,
            )


def _filled(table: str, spent: dict[str, float], where: str) -> str:
    lines, missing = table.splitlines(), {section for section in spent if section != TOTAL}
    for i, line in enumerate(lines):
        columns = line.split("|")  # the first and the last are empty
        label = columns[1].strip()
        if label == "section":
            columns[3] = f" running, {where} "
        elif not set(label) <= set("-: "):
            section = number[0] if (number := re.match(r"\d+", label)) else label
            if section not in spent:
                raise ValueError(
                    f"the table of times has a row {label!r}, but the notebook has no such section; "
                    f"it has {', '.join(spent)}"
                )
            missing.discard(section)
            columns[3] = f" {spent[section]:.0f} s " if spent[section] >= 0.5 else " < 1 s "
        lines[i] = "|".join(columns)
    if missing:
        raise ValueError(f"the table of times has no row for {', '.join(sorted(missing))}")
    return "\n".join(lines) + ("\n" if table.endswith("\n") else "")


def waits(notebook: nbformat.NotebookNode, seconds: Sequence[float]) -> list[str]:
    """A warning for each cell, and for the whole notebook, at which a reader waits too long."""
    found = [
        f"cell {i} (section {section}) ran {some:.0f} s, more than {SLOW_CELL}: {cell.source.splitlines()[0]}"
        for i, (cell, section, some) in enumerate(zip(notebook.cells, sections(notebook), seconds, strict=True))
        if some > SLOW_CELL
    ]
    if sum(seconds) > SLOW_NOTEBOOK:
        found.append(f"the notebook ran {sum(seconds):.0f} s, more than {SLOW_NOTEBOOK}")
    return found


# --------------------------------------------------------------------------------------------- solutions
def solutions(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(solution, check) of every exercise: the code folded below a cell tagged "exercise", and what checks it."""
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
        notebook = nbformat.read(path, as_version=4)
        seconds = execute(notebook, FOLDER)
        write_times(notebook, seconds, machine())
        fold(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB, ran {sum(seconds):.0f} s")
        for warning in waits(notebook, seconds):
            print(f"  warning: {warning}")


if __name__ == "__main__":
    main()
