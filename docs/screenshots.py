"""Photograph every widget in JupyterLab, as it first appears and after it was moved: docs/screenshots/*.png.

    python docs/screenshots.py                    # all of them, in three to five minutes
    python docs/screenshots.py merge-explorer     # one

It needs what the tests need (`pip install -e ".[test]"`) and chromium on the PATH.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
from PIL import Image

CLONE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE / "tests"))  # whose helpers these are

from helpers.browser import WIDTH, Reader, jupyterlab, launched  # noqa: E402
from playwright.sync_api import Locator, expect  # noqa: E402

FOLDER = CLONE / "docs" / "screenshots"
SET_UP = """
import tempfile
import illava_lab as il
from illava_lab import course, widgets

lab, task = il.load(), il.load_task("test")
image, question = task.image("test-0006"), "What digit is shown?"
"""


class Widget(NamedTuple):
    """A cell that shows a widget, and what a person then does to it."""

    code: str
    move: Callable[[Reader, Locator], None]


def move_machine(reader: Reader, output: Locator) -> None:
    output.locator(".im-map").last.hover(position={"x": 38, "y": 44})
    expect(output.locator(".im-said")).to_contain_text("stands for")


def cell(panel: Locator, patch: int) -> dict[str, float]:
    """Where a patch lies in a panel of 14 x 14 patches."""
    row, column = divmod(patch, 14)
    side = panel.bounding_box()["width"] / 14
    return {"x": (column + 0.5) * side, "y": (row + 0.5) * side}


def move_keep_slider(reader: Reader, output: Locator) -> None:
    reader.press(output.get_by_role("slider"), "Home")
    expect(output.locator(".im-kept")).to_have_text("5 %")


def move_tradeoff_plot(reader: Reader, output: Locator) -> None:
    plot = output.locator(".js-plotly-plot")
    plot.locator(".traces", has_text="random").locator(".legendtoggle").click()
    expect(plot.locator(".scatterlayer .trace")).to_have_count(3)  # none, tome and illava are left
    reader.point(plot, *reader.marker(plot, "illava", 1))


def move_redundancy_explorer(reader: Reader, output: Locator) -> None:
    output.get_by_role("combobox", name="stage").select_option("LLM")
    likeness, groups = (output.locator(".im-over").nth(panel) for panel in (1, 2))
    likeness.click(position=cell(likeness, 36))
    expect(output.get_by_role("status")).to_contain_text("of the LLM: patch 36")
    groups.hover(position=cell(groups, 86))
    expect(output.locator(".im-tip")).to_contain_text("in a group of")


def move_merge_explorer(reader: Reader, output: Locator) -> None:
    reader.press(output.get_by_role("slider"), "End")
    tokens = output.locator(".im-over").nth(2)
    tokens.click(position=cell(tokens, 76))
    expect(output.get_by_role("status")).to_contain_text("Patch 76")
    tokens.hover(position=cell(tokens, 143))
    expect(output.locator(".im-tip")).to_contain_text("patch 143")


def move_schedule_designer(reader: Reader, output: Locator) -> None:
    reader.press(output.get_by_role("slider").first, *["PageDown"] * 4)
    expect(output).to_contain_text("encoder={0: 0.8,")
    expect(output).to_contain_text("in the last LLM layer: 55 tokens")


def move_tradeoff_explorer(reader: Reader, output: Locator) -> None:
    output.get_by_role("checkbox", name="random").uncheck()
    output.get_by_role("button", name="none: kinds of question").click()
    for kind in ("count", "word"):
        output.get_by_role("checkbox", name=kind).check()
    output.get_by_role("combobox", name="point").select_option("tome at FLOPs 0.35")
    expect(output.get_by_role("status")).to_contain_text("in count, word")


def choose(reader: Reader, output: Locator) -> None:
    for choices in output.locator(".widget-radio-box").all():
        reader.press(choices.get_by_role("radio").nth(1), "Space")
        expect(choices.get_by_role("radio").nth(1)).to_be_checked()


def commit(reader: Reader, output: Locator) -> None:
    choose(reader, output)
    output.get_by_role("button", name="Commit").click()
    expect(output).to_contain_text("Measured:")


WIDGETS = {
    "machine": Widget(
        'widgets.Machine(lab, image, [question, "What is the word?"], "tome", keep=0.3).show()', move_machine
    ),
    "keep-slider": Widget('widgets.KeepSlider(lab, image, question, "illava").show(0.5)', move_keep_slider),
    "redundancy-explorer": Widget(
        'widgets.RedundancyExplorer(lab, {"scene": image}, "What is the word?", patch=20).show(stage="encoder", layer=4)',
        move_redundancy_explorer,
    ),
    "merge-explorer": Widget(
        'widgets.MergeExplorer(lab, image, "What is the word?", ("illava", "tome", "fastv"), keep=0.3, patch=20).show(strategy="illava")',
        move_merge_explorer,
    ),
    "schedule-designer": Widget(
        "seconds = il.measure.stage_seconds(lab.model, lab.inputs([image], [question]))\n"
        'widgets.ScheduleDesigner(lab, image, question, seconds=seconds).show("illava-image")',
        move_schedule_designer,
    ),
    "tradeoff-explorer": Widget(
        "few, folder = task.limited(80), tempfile.mkdtemp()\n"
        'table = il.compare(lab, ["random", "tome", "illava"], flops=[0.7, 0.5, 0.35], task=few, timing=False, out=folder, progress=False)\n'
        'widgets.TradeoffExplorer(folder, few).show(point="illava at FLOPs 0.35")',
        move_tradeoff_explorer,
    ),
    "tradeoff-plot": Widget(
        'widgets.show_plot(il.plots.tradeoff(table), il.plots.tradeoff_picture(table), "Accuracy against prefill FLOPs")',
        move_tradeoff_plot,
    ),
    "prediction": Widget(
        'guess = course.Prediction("Where do tokens use fewest directions?", ["in the encoder", "in the LLM"])\n'
        'guess.show()\nsaid = guess.compare("in the LLM")',
        commit,
    ),
    "quiz": Widget(
        'course.Quiz(course.Question("A reduction\'s matrix W has a column of zeros. That means:",\n'
        '    right=("this token is gone", "It has no weight in any token that leaves."),\n'
        '    wrong=[("this token was merged", "Then it would have a weight in some row."),\n'
        '           ("the rows cannot sum to 1", "They can: the other columns carry the weight, as in all pruning.")])).show()',
        choose,
    ),
}


def notebook(cells: list[str]) -> nbformat.NotebookNode:
    """Code cells for our kernel."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
    )


def photograph(reader: Reader, output: Locator, name: str) -> None:
    """One output, with a little of the page around it."""
    output.scroll_into_view_if_needed()
    box, path = output.bounding_box(), FOLDER / f"{name}.png"
    reader.page.screenshot(
        path=path, clip={"x": box["x"] - 8, "y": box["y"] - 4, "width": box["width"] + 8, "height": box["height"] + 5}
    )
    with Image.open(path) as picture:
        # In 256 colours, found well: a third of the bytes, and colour scales stay smooth.
        picture.convert("RGB").quantize(256, kmeans=4, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size / 1000
    print(f"{name}.png: {size:.0f} KB")
    assert size < 150, "too large to keep"


def main(names: list[str]) -> None:
    names = names or list(WIDGETS)
    if "tradeoff-plot" in names and "tradeoff-explorer" not in names:
        names.insert(0, "tradeoff-explorer")  # its comparison is what the plot shows
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "notebooks"
        folder.mkdir()
        nbformat.write(notebook([SET_UP, *(WIDGETS[name].code for name in names)]), folder / "widgets.ipynb")
        with jupyterlab(folder, Path(scratch) / "jupyter") as server, launched() as browser:
            reader = Reader(browser, server)
            reader.page.set_viewport_size({"width": WIDTH, "height": 1300})  # the tallest widget, whole
            reader.open("widgets.ipynb")
            reader.run_all()
            for name, cell in zip(names, reader.page.locator(".jp-CodeCell").all()[1:], strict=True):
                output = cell.locator(".jp-OutputArea-output").last
                photograph(reader, output, f"{name}-1")
                WIDGETS[name].move(reader, output)
                photograph(reader, output, f"{name}-2")
            assert not reader.complaints, reader.complaints


if __name__ == "__main__":
    main(sys.argv[1:])
