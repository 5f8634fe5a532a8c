"""Every notebook runs from top to bottom as it stands, and then its folded solutions satisfy its checks."""

from __future__ import annotations

import re
import shlex
import shutil
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.browser import chromium
from helpers.chapters import FOLDER, IN_BROWSER, NOTEBOOKS, check_run, code_cells, execute, read, with_solutions
from IPython.core.interactiveshell import InteractiveShell

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
RUN_HERE = [path for path in NOTEBOOKS if not (chromium() and path.stem in IN_BROWSER)]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_it_runs_as_it_stands_and_its_solutions_are_right(path: Path, tmp_path: Path) -> None:
    for file in FOLDER.glob("*.ipynb"):
        shutil.copy(file, tmp_path)
    notebook, start = with_solutions(path), time.time()
    execute.execute(notebook, tmp_path)
    check_run(code_cells(notebook), start)


@by_name
def test_committed_outputs_belong_to_the_committed_code(path: Path) -> None:
    """They are made by `notebooks/execute.py`, which runs everything, widgets with their pictures included."""
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        f"run notebooks/execute.py {path.name}"
    )
    for cell in cells:
        if re.search(r"\bshow(_\w+)?\(|feedback\(", cell.source) and "def " not in cell.source:
            assert any({"image/png", "text/html"} & set(out.get("data", {})) for out in cell.outputs), cell.source
        for out in cell.outputs:
            if {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(out.get("data", {})):
                assert out.metadata["image/png"]["alt"], "a picture needs a description"


# --------------------------------------------------------------------------------------------- set-up
SET_UP = code_cells(read(NOTEBOOKS[0]))[0].source
WEB = "git+https://github.com/illava-lab/illava-lab"


def test_the_set_up_is_the_same_everywhere() -> None:
    assert {code_cells(read(path))[0].source for path in NOTEBOOKS} == {SET_UP}
    assert len([line for line in SET_UP.splitlines() if line and not line.startswith("#")]) <= 16


def run_set_up(
    monkeypatch: pytest.MonkeyPatch, folder: Path, installs: bool
) -> tuple[list[str], InteractiveShell, Any]:
    """Run the cell in a folder where the lab is missing. Returns what pip was asked, the shell, and how it ended."""
    shell, asked, lab = InteractiveShell(), [], sys.modules["illava_lab"]

    def pip(line: str) -> None:
        asked.append(line)
        if installs:
            sys.modules["illava_lab"] = lab

    shell.register_magic_function(pip, magic_name="pip")
    monkeypatch.setitem(sys.modules, "illava_lab", None)  # type: ignore[arg-type]
    monkeypatch.chdir(folder)
    return asked, shell, shell.run_cell(SET_UP)


def test_the_set_up_installs_nothing_where_the_lab_is() -> None:
    shell, asked = InteractiveShell(), []
    shell.register_magic_function(lambda line: asked.append(line), magic_name="pip")
    shell.run_cell(SET_UP).raise_error()
    assert shell.user_ns["lab"].source == "embedded" and asked == []


@pytest.mark.parametrize("home", ["a wheel", "a clone", "the web"])
def test_the_set_up_installs_from_what_is_near_and_keeps_what_must_not_change(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "a clone" / "my notebooks"
    folder.mkdir(parents=True)
    source = WEB
    if home != "the web":
        (folder.parent / "illava_lab").mkdir()
        source = str(folder.parent)
    if home == "a wheel":  # the nearest
        source = str(folder / "illava_lab-0.1.0-py3-none-any.whl")
        Path(source).touch()
    asked, shell, done = run_set_up(monkeypatch, folder, installs=True)
    done.raise_error()
    assert shell.user_ns["lab"].source == "embedded"
    (line,) = asked
    keeps = [f"{name}=={version(name)}" for name in ("torch", "numpy", "jupyter_server")]
    assert sorted(shlex.split(line)) == sorted(["install", "--quiet", source, *keeps])


def test_the_set_up_says_in_one_sentence_that_the_lab_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, shell, done = run_set_up(monkeypatch, tmp_path, installs=False)  # as where there is no network
    assert isinstance(done.error_in_exec, SystemExit) and "lab" not in shell.user_ns
    assert str(done.error_in_exec) == (
        f"{WEB} cannot be installed: put a clone or wheel of the lab beside this notebook, then run this again."
    )


# --------------------------------------------------------------------------------------------- form
@by_name
def test_a_chapter_has_what_a_chapter_needs(path: Path) -> None:
    notebook = read(path)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.match(r"# .*\?\n", notebook.cells[0].source), "the title is a question"
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    for part in ("**After this chapter you can**", "**You need**", "| section |", "**What you will not learn here:**", "> **Paper and code.**",
                 "## Quiz", "## Recap", "**References**", "**Next:**"):  # fmt: skip
        assert part in prose, part
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert max(lengths) <= 25 and statistics.median(lengths) <= 8
    assert (
        prose.count("<summary>Hint 1</summary>")
        == prose.count("<summary>Hint 2</summary>")
        == len(execute.solutions(notebook))
    )
    code = "\n".join(cell.source for cell in code_cells(notebook))
    assert code.count("Prediction(") == code.count(".compare(") - code.count("il.compare(") >= 3, (
        "every prediction meets its measurement"
    )
    assert "assert " in code and "feedback(" in code


@by_name
def test_its_times_are_those_of_a_run(path: Path) -> None:
    head = next(cell.source for cell in read(path).cells if "| section |" in cell.source)
    table = [
        [column.strip() for column in line.split("|")[1:-1]]
        for line in head[head.index("| section |") :].split("\n\n")[0].splitlines()
    ]
    assert table[0][:2] == ["section", "reading and exercises"] and len(table[0]) == 3
    assert re.fullmatch(r"running, .+, \d+ cores", table[0][2]), f"run notebooks/execute.py {path.name}"
    assert all(re.fullmatch(r"(< 1|\d+) s", row[2]) for row in table[2:])
    assert {row[0] for row in table} >= {execute.START, execute.END, execute.TOTAL}


@by_name
def test_colab_opens_this_very_notebook(path: Path) -> None:
    repository = re.search(r'REPOSITORY = "git\+https://github.com/([^"@]+)"', code_cells(read(path))[0].source)[1]
    assert (
        f"](https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name})"
        in read(path).cells[0].source
    )


@by_name
def test_links_between_files_lead_somewhere(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", cell.source):
                assert (FOLDER / target).exists(), target


# --------------------------------------------------------------------------------------------- predictions
def hidden(cell: nbformat.NotebookNode) -> bool:
    return cell.metadata.get("jupyter", {}).get("outputs_hidden", False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_stored_output_tells_what_a_prediction_above_it_asks(path: Path) -> None:
    notebook = read(path)
    cells = notebook.cells
    code = "\n".join(cell.source for cell in code_cells(notebook))
    names = re.findall(r"^(\w+) = Prediction\(", code, re.MULTILINE)
    assert len(names) == code.count(" = Prediction(") >= 4, "each has a name by which it is found"
    for name in names:
        show, compare = (
            next(i for i, c in enumerate(cells) if f"{name}.{call}(" in c.source) for call in ("show", "compare")
        )
        behind = next(i for i in range(compare, len(cells)) if cells[i].cell_type == "markdown")
        assert show < compare
        assert all(hidden(cell) for cell in cells[show + 1 : behind] if cell.cell_type == "code"), name
    before = [dict(cell.metadata) for cell in cells]
    execute.fold(notebook)
    assert [dict(cell.metadata) for cell in cells] == before


def test_outputs_are_folded_from_a_prediction_to_the_text_behind_its_measurement() -> None:
    sources = ["guess = Prediction(", "guess.show()", "1", "#", "guess.compare(2)", "plot()", "#", "3"]
    cells = [nbformat.v4.new_markdown_cell(s) if s == "#" else nbformat.v4.new_code_cell(s) for s in sources]
    cells[-1].metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
    execute.fold(nbformat.v4.new_notebook(cells=cells))
    assert [hidden(cell) for cell in cells] == [False, False, True, False, True, True, False, False]
    assert cells[-1].metadata["jupyter"] == {"source_hidden": True} and cells[2].metadata["collapsed"]


def test_a_prediction_is_stored_with_what_was_measured_after_it(tmp_path: Path) -> None:
    sources = [
        'from illava_lab.course import Prediction\nguess = Prediction("Which?", ["left", "right"])\nguess.show()',
        'said = guess.compare("right")',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    assert len(execute.execute(notebook, tmp_path)) == len(notebook.cells) == 2
    (shown,) = notebook.cells[0].outputs
    assert "Measured: right (you predicted: left)." in shown.data["text/html"] and not notebook.cells[1].outputs


# --------------------------------------------------------------------------------------------- times
def small_notebook(rows: str) -> nbformat.NotebookNode:
    table = f"| section | reading and exercises | running |\n|---|---|---|\n{rows}"
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"# Why?\n\n{table}\n\n| 3 | another | table | here |"),
            nbformat.v4.new_code_cell("import time\n\ntime.sleep(0.3)"),
            nbformat.v4.new_markdown_cell("## 1. Wait\n\n### Exercise 1"),
            nbformat.v4.new_code_cell("time.sleep(0.7)"),
            nbformat.v4.new_markdown_cell("Seen.\n\n## 10. Wait more"),
            nbformat.v4.new_code_cell("1"),
            nbformat.v4.new_markdown_cell("## Quiz"),
            nbformat.v4.new_code_cell("2"),
        ]
    )


ROWS = "".join(
    f"| {label} | 2 min | 9 s |\n"
    for label in ("set-up and picture", "1 wait", "10 wait more", "quiz and recap", "total")
)


def test_the_seconds_of_each_section_go_into_the_table(tmp_path: Path) -> None:
    notebook = small_notebook(ROWS)
    seconds = execute.execute(notebook, tmp_path)
    assert [some > 0 for some in seconds] == [cell.cell_type == "code" for cell in notebook.cells]
    assert seconds[1] >= 0.3 and seconds[3] >= 0.7 and "execution" not in notebook.cells[3].metadata
    execute.write_times(notebook, [0, 1.6, 0, 25.2, 0, 100, 0, 0.2], "Fast, 2 cores")
    lines = notebook.cells[0].source.splitlines()
    assert lines[2] == "| section | reading and exercises | running, Fast, 2 cores |"
    assert [line.split("|")[3].strip() for line in lines[4:9]] == ["2 s", "25 s", "100 s", "< 1 s", "127 s"]
    assert lines[-1] == "| 3 | another | table | here |"


def test_a_table_that_does_not_fit_the_sections_is_refused() -> None:
    with pytest.raises(ValueError, match="row '2 rest', but the notebook has no such section"):
        execute.write_times(small_notebook(ROWS + "| 2 rest | 1 min | | |\n"), [0.0] * 8, "here")
    with pytest.raises(ValueError, match="no row for 10"):
        execute.write_times(small_notebook(ROWS.replace("| 10 wait more | 2 min | 9 s |\n", "")), [0.0] * 8, "here")


def test_long_waits_are_told() -> None:
    notebook = small_notebook(ROWS)
    assert execute.waits(notebook, [0, 20, 0, 19, 0, 0, 0, 0]) == []
    assert execute.waits(notebook, [0, 1, 0, 21, 0, 0, 0, 100]) == [
        "cell 3 (section 1) ran 21 s, more than 20: time.sleep(0.7)",
        "cell 7 (section quiz and recap) ran 100 s, more than 20: 2",
        "the notebook ran 122 s, more than 120",
    ]
