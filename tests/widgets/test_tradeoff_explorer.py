"""The trade-off explorer: what is shown is what the run's answers say."""

from __future__ import annotations

import base64
import importlib
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.onevision import onevision_lab
from helpers.task_files import read
from PIL import Image

import illava_lab as il
from illava_lab import paths
from illava_lab.measuring.predict import correct
from illava_lab.measuring.tasks import Task
from illava_lab.widgets import tradeoff_explorer
from illava_lab.widgets.tradeoff_explorer import TradeoffExplorer, lost_picture
from illava_lab.widgets.tradeoff_run import lost, read_run, within

SECONDS = 1.0  # of this process, on the slowest machine; 0.2 s were measured


@pytest.fixture(scope="module")
def task() -> Task:
    return il.load_task("test").limited(40)


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A real comparison, and the table that it returned; fastv fails, as it cannot go so low."""
    folder = tmp_path_factory.mktemp("run")
    table = il.compare(
        il.load(), ["random", "fastv", "tome"], flops=[0.6, 0.4], task=task, timing=False, out=folder, progress=False
    )
    return folder, table


@pytest.fixture(scope="module")
def explorer(run: tuple[Path, pd.DataFrame], task: Task) -> TradeoffExplorer:
    return TradeoffExplorer(run[0], task)


# --------------------------------------------------------------------------------------------- plain functions
def test_the_rows_are_those_that_compare_returned(run: tuple[Path, pd.DataFrame], task: Task) -> None:
    rows, answers = read_run(run[0], task)
    assert (
        list(rows["point"])
        == list(answers)
        == ["none", *(f"{name} at FLOPs {share}" for name in ("random", "tome") for share in (0.6, 0.4))]
    )
    whole, table = within(rows, answers, task), run[1][run[1]["status"] == "ok"].reset_index(drop=True)
    for column in ("accuracy", "difference", "difference_low", "difference_high"):
        assert whole[column].to_numpy() == pytest.approx(table[column].to_numpy(dtype=float)), column
    for category in task.categories:
        one = within(rows, answers, task, [category])
        assert one["accuracy"].to_numpy() == pytest.approx(table[f"accuracy_{category}"].to_numpy(dtype=float)), (
            category
        )


def test_lost_are_the_questions_that_only_the_bare_model_gets_right(run: tuple[Path, pd.DataFrame], task: Task) -> None:
    _, answers = read_run(run[0], task)
    bare, point = correct(answers["none"], task), "random at FLOPs 0.4"
    wanted = task.samples[bare & ~correct(answers[point], task)]
    found = lost(answers, task, point)
    assert (
        len(found) > 3
        and list(found.index) == list(wanted.index)
        and (found["said"] == answers[point][found.index]).all()
    )
    some = lost(answers, task, point, ["count", "word"])
    assert list(some.index) == list(found.index[found["category"].isin(["count", "word"])])
    assert lost(answers, task, "none").empty


def test_bad_input_is_refused(run: tuple[Path, pd.DataFrame], task: Task, tmp_path: Path) -> None:
    rows, answers = read_run(run[0], task)
    with pytest.raises(il.LabError, match="must hold the run.jsonl"):
        read_run(tmp_path, task)
    with pytest.raises(il.LabError, match="other questions than the 20"):
        read_run(run[0], task.limited(20))
    with pytest.raises(il.LabError, match="point must be one of"):
        lost(answers, task, "illava at FLOPs 0.4")
    with pytest.raises(il.LabError, match="category must be one of"):
        within(rows, answers, task, ["smell"])
    with pytest.raises(il.LabError, match="at least one category"):
        within(rows, answers, task, [])


@pytest.mark.parametrize(("kind", "counts"), [("images", (2, 3)), ("frames", (8, 8))])
def test_lost_questions_show_every_picture(
    kind: str, counts: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("illava_lab.measuring.predict")  # `illava_lab.measuring.predict` is the function
    monkeypatch.setattr(module, "answer_tokens", lambda *_: 4)  # whatever is right, as what is right follows below
    lab, task = onevision_lab(), read(tmp_path, kind, counts)
    task = il.Task("own", task.samples.assign(answer=il.predict(lab, task)), task.images, kind)
    il.compare(lab, "random", 0.05, task=task, timing=False, out=tmp_path / "run", progress=False)
    explorer = TradeoffExplorer(tmp_path / "run", task)
    pages = [(one["address"].partition("base64,")[2], one["name"]) for one in explorer.widget.catalog["pictures"]]
    assert pages and [name for _, name in pages] == list(dict.fromkeys(explorer.lost["image_id"]))
    for data, image_id in pages:
        pictures = task.pictures(image_id)
        shown = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
        assert shown.shape == (64, 68 * len(pictures) - 4, 3)
        for number, picture in enumerate(pictures):
            assert np.array_equal(shown[:, 68 * number : 68 * number + 64], picture)
    assert sum(bool(axes.images) for axes in lost_picture(task, explorer.lost, "lost").axes) == len(explorer.lost)


# --------------------------------------------------------------------------------------------- the widget
def test_what_the_page_gets_is_what_the_run_says(
    explorer: TradeoffExplorer, run: tuple[Path, pd.DataFrame], task: Task
) -> None:
    rows, answers = read_run(run[0], task)
    catalog, names = explorer.widget.catalog, list(task.categories)
    explorer.set(strategies=["random"], categories=["count", "word"], point="random at FLOPs 0.4")
    shown = explorer.widget.shown
    assert shown == {"methods": [0], "categories": [names.index("count"), names.index("word")], "point": 1}
    wanted = within(rows, answers, task, ["count", "word"]).set_index("point")
    ends = explorer.widget.intervals[",".join(map(str, shown["categories"]))]
    questions = sum(catalog["categories"][number]["count"] for number in shown["categories"])
    for point, (low, high) in zip(catalog["points"], ends, strict=True):
        row = wanted.loc[point["name"]]
        assert sum(point["right"][number] for number in shown["categories"]) / questions == pytest.approx(
            row["accuracy"]
        )
        assert (low, high) == pytest.approx((row["difference_low"], row["difference_high"]), abs=1e-4)
        assert point["x"] == pytest.approx(100 * row["prefill_flops"] / wanted.loc["none", "prefill_flops"], abs=1e-3)
        for number, name in enumerate(names):
            own = lost(answers, task, point["name"], [name])
            told = [(catalog["questions"][at]["question"], said) for at, said in point["lost"][number]]
            assert point["count"][number] == len(own)
            assert told == list(zip(own["question"][:6], own["said"][:6], strict=True))
    assert explorer.lost.equals(lost(answers, task, "random at FLOPs 0.4", ["count", "word"]))
    # What a page tells is what the explorer says; a page may tick nothing.
    explorer.widget.shown = {"methods": [1], "categories": [], "point": 3}
    assert explorer.settings == {"strategies": ("tome",), "categories": (), "point": "tome at FLOPs 0.4"}
    assert explorer.lost.empty
    explorer.set(strategies=["tome"], point="random at FLOPs 0.6")
    assert explorer.settings["strategies"] == ("random", "tome"), "the chosen point is seen"
    with pytest.raises(il.LabError, match="point must be one of"):
        explorer.set(point="none")


def test_moves_are_fast(explorer: TradeoffExplorer) -> None:
    for move in ({"categories": ["count", "place"]}, {"strategies": ["tome"]}, {"point": "tome at FLOPs 0.6"}):
        start = time.process_time()
        explorer.set(**move)
        assert time.process_time() - start < SECONDS, move


def test_a_picture_stands_beside_the_widget(
    explorer: TradeoffExplorer, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple] = []
    monkeypatch.setattr(tradeoff_explorer, "show_widget", lambda *given: shown.append(given))
    explorer.show(point="random at FLOPs 0.4", categories=task.categories, strategies=["random", "tome"])
    assert explorer.widget.start == explorer.widget.shown, "Reset goes where the reader began"
    ((box, png, alt),) = shown
    image = Image.open(BytesIO(png))
    assert (
        box is explorer.widget
        and image.width < image.height * 2
        and "questions lost that the bare model answers" in alt
    )
    assert lost_picture(task, explorer.lost.head(0), "nothing").axes  # nothing lost is a picture too


# --------------------------------------------------------------------------------------------- what 04 reads
def test_the_table_in_data_joins_those_of_results() -> None:
    results = Path(__file__).parents[2] / "results" / "equal_flops"
    joined = pd.read_csv(paths.data_dir() / "equal_flops.csv")
    assert set(joined["task"]) == {path.parent.name for path in results.glob("*/table.csv")}
    for task, rows in joined.groupby("task"):
        own = pd.read_csv(results / str(task) / "table.csv")
        pd.testing.assert_frame_equal(rows[own.columns].reset_index(drop=True), own, check_dtype=False)
