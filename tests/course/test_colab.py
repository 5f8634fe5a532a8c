"""On Colab: the cells of a chapter in a real kernel, with a stand-in for the part of `google.colab` that they meet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE / "notebooks"))  # the script there is no package

import execute  # noqa: E402

VIEW = "application/vnd.jupyter.widget-view+json"
# Colab draws widgets in frames of their own, which learn from the metadata of an output where the widgets' code is. Its module
# puts it there for whatever is displayed once widgets are enabled, and leaves values of a cell's last line as they are.
STAND_IN = f"""
from IPython import get_ipython

def enable_custom_widget_manager(version=""):
    def tagged(message):
        content = message["content"]
        if {VIEW!r} in content.get("data", {{}}):
            content["metadata"][{VIEW!r}] = {{"colab": {{"custom_widget_manager": {{"url": "https://example.org/manager.js"}}}}}}
        return message
    get_ipython().display_pub.register_hook(tagged)
"""
SHOW = """
from illava_lab.course import Prediction, Question, Quiz, feedback
from illava_lab.widgets import KeepSlider, MergeExplorer, show_plot
image, question = il.load_task("test").image("test-0006"), "What digit is shown?"
KeepSlider(lab, image, question, keeps=(1.0, 0.5)).show(0.5)
MergeExplorer(lab, image, question, ["illava"]).show(step=2)
Prediction("?", ["a", "b"]).show()
Quiz(Question("?", right=("a", "so"), wrong=[("b", "not so")])).show()
"""
WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            sys.meta_path.remove(self)
            print("torch finds", os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Watch())
"""
PLOT = """
import pandas as pd
from illava_lab.paths import data_dir
table = pd.read_csv(data_dir() / "equal_flops.csv").query("task == 'test'")
show_plot(il.plots.tradeoff(table), il.plots.tradeoff_picture(table), "accuracy")
"""


@pytest.mark.slow
def test_the_set_up_cell_makes_widgets_work_and_plots_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "output.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("COLAB_NOTEBOOK_ID", "a notebook")  # by which plotly knows Colab
    chapter = nbformat.read(CLONE / "notebooks" / "00_start_here.ipynb", as_version=4)
    set_up = next(cell.source for cell in chapter.cells if cell.cell_type == "code")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cells = [
        "import google.colab.output",
        WATCH,
        set_up,
        SHOW,
        PLOT,
    ]  # Colab has imported its own before the first cell
    ran = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    execute.execute(ran, tmp_path)
    assert ran.cells[2].outputs[0].text.startswith("torch finds passive\n"), "else it is slow on busy cores"
    widgets = [out for cell in ran.cells for out in cell.outputs if VIEW in out.get("data", {})]
    assert len(widgets) == 4
    for out in widgets:
        assert out.metadata[VIEW]["colab"]["custom_widget_manager"]["url"], "its frame would stay empty"
        assert {"image/png", "text/html"} & set(out.data), "and if it does, there is still something to see"
    (plot,) = [out for out in ran.cells[-1].outputs if "data" in out]
    assert "Plotly.newPlot" in plot.data["text/html"] and VIEW not in plot.data


@pytest.mark.slow
def test_how_threads_wait_is_the_users_choice(tmp_path: Path) -> None:
    code = f"{WATCH}\nimport illava_lab as il\nfrom illava_lab.course import set_up"
    env = {**os.environ, "OMP_WAIT_POLICY": "active"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "torch finds active\n", done.stderr
