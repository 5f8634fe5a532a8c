"""What the chapters' figures and sentences say is what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import illava_lab as il
from illava_lab.course import figures_paper, figures_real
from illava_lab.course.checks_tradeoff import _contest
from illava_lab.course.figures_tradeoff import draws_figure, lost_by_kind
from illava_lab.course.paired import paired_figure
from illava_lab.course.talks import first_and_later, talks_figure, talks_words
from illava_lab.views.colors import MARKERS

CLONE = Path(__file__).resolve().parents[2]


def test_a_pair_is_drawn_with_its_own_interval() -> None:
    table = _contest()
    pairs = [("steady FLOPs 0.5", "first FLOPs 0.5"), ("other FLOPs 0.5", "first FLOPs 0.5")]
    axes = paired_figure(table, pairs).axes[0]
    drawn = [
        line.get_xdata()[0]
        for line in axes.lines
        if len(line.get_xdata()) == 1 and line.get_marker() in MARKERS.values()
    ]
    assert drawn == pytest.approx([-5.0, -5.0])
    ends = [bar.get_segments()[0][:, 0] for bar in axes.collections]
    apart = [max(end) < 0 for end in ends]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["other minus first, FLOPs 0.5", "steady minus first, FLOPs 0.5"]
    assert apart == [False, True], "from below: other, which cannot be told apart, then steady, which can"


def row(name: str, share: float, samples: int, difference: float, half: float, status: str = "ok") -> dict:
    ends = {"difference": difference, "difference_low": difference - half, "difference_high": difference + half}
    return {"strategy": name, "flops": share, "samples": samples, "status": status, **ends}


def test_intervals_of_few_questions_are_held_against_many() -> None:
    few = pd.DataFrame([row("tome", 0.5, 80, -0.1, 0.04), row("illava", 0.5, 80, -0.05, 0.04), row("x", 0.5, 80, 0, 0)])
    many = pd.DataFrame([row("tome", 0.5, 1280, -0.05, 0.01), row("illava", 0.5, 1280, -0.06, 0.01)])
    figure, told = draws_figure(few, many)
    assert told == "1 of 2 intervals from few questions hold the value from many; outside: tome FLOPs 0.5"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["tome FLOPs 0.5", "illava FLOPs 0.5"]


def test_losses_by_kind_are_those_of_one_task() -> None:
    bare = {"strategy": "none", "flops": np.nan, "status": "ok", "accuracy": 1.0}
    cut = {"strategy": "tome", "flops": 0.5, "status": "ok", "accuracy": 0.5}
    table = pd.DataFrame([bare | {"accuracy_count": 1.0, "accuracy_same": np.nan}, cut | {"accuracy_count": 0.75}])
    assert lost_by_kind(table, 0.5).to_dict() == {"tome": {"count": 25.0}}


def test_a_question_counts_first_and_later_but_not_the_first_of_a_picture() -> None:
    lab, task = il.load(), il.load_task("test").limited(8)
    cut = il.Schedule.for_budget("illava", lab.model, keep=0.15, stages=("llm",))
    table = first_and_later(lab, task, "illava", {"none": None, "LLM only": cut})
    alone, talked = (
        il.correct(said, task).reshape(2, 4)[:, 1:] for said in (il.predict(lab, task), il.converse(lab, task))
    )
    assert table.loc["none", "asked first"] == alone.mean() and table.loc["none", "asked later"] == talked.mean()
    assert table["change"].tolist() == pytest.approx((table["asked later"] - table["asked first"]).tolist())
    assert table.loc["LLM only", "asked first"] <= 1 and (table["low"] <= table["high"]).all()
    assert talks_words(table).count("points") == len(talks_figure(table).axes[0].get_xticks()) == 2


def test_the_gpu_s_figures_are_the_measured_ones() -> None:
    table = figures_real.measured_on_gpu("present")
    alone = table[(table["case"] == "LLaVA-1.5-7B, one picture") & ~table["graphs"]]
    busy = alone.set_index(alone["budget"].fillna("")).loc[["", "illava-image"], "busy_ms"]
    assert busy.iloc[0] == pytest.approx(figures_real.BUSY_MS["bare"], abs=0.05)
    assert busy["illava-image"] == pytest.approx(figures_real.BUSY_MS["illava-image"], abs=0.05)
    printed = (CLONE / "results" / "gpu" / "host_and_device.txt").read_text(encoding="utf-8")
    for name, host in figures_real.HOST_MS.items():
        assert re.search(rf"^b1 {name} .* host +{host:.2f} ", printed, re.MULTILINE), name
    labels = [text.get_text() for text in figures_real.gpu_figure().axes[0].get_yticklabels()]
    assert len(labels) == len(set(labels)) >= 8 and sum("earlier code" in label for label in labels) == 3


def test_how_far_methods_move_is_a_row_each_and_what_they_spend_is_a_share_of_the_bare_model() -> None:
    lab, task = il.load(), il.load_task("test").limited(8)
    shown, questions = [task.image(i) for i in task.samples["image_id"]], list(task.samples["question"])
    prompt = lab.inputs(shown[:1], questions[:1])
    plans, shares = figures_real.plans_at(lab, ["none", "fastv"], 0.2, prompt)
    assert shares["none"] == 1 and 0.5 < shares["fastv"] < 1 and plans["fastv"][1].llm
    table = pd.DataFrame(
        {"strategy": ["none"] * 4 + ["fastv"] * 4, "kl": [0.0] * 4 + [0.5, 0.1, 0, 0], "agreement": [1.0] * 4 + [0, 1, 1, 1]}
    ).assign(equal=[True] * 4 + [False, True, True, True])  # fmt: skip
    moved = figures_real.moved(table, shares, [0, 0, 1, 1])
    assert list(moved.index) == ["none", "fastv"] and moved.loc["fastv", "divergence"] == pytest.approx(0.15)
    assert moved.loc["fastv", "changed %"] == 25 and moved.loc["fastv", "low"] <= 25 <= moved.loc["fastv", "high"]
    assert moved.loc["none", ["changed %", "low", "high"]].tolist() == [0, 0, 0]
    costs = {name: il.measure.cost(lab.model, prompt, *plans[name]) for name in plans}
    runs = il.measure.speeds(lab.model, prompt, [None, plans["fastv"]], rounds=1, new_tokens=1)
    spent = figures_real.shares_of_bare(costs, runs)
    assert spent.loc["none"].tolist() == [1] * 5 and spent.loc["fastv", "cache"] < 1


def test_published_figures_stand_beside_what_was_measured_in_lines_that_fit() -> None:
    rows = figures_real.beside_published({"throughput ratio": "1.05 x", "score drop": "10 %"})
    assert set(rows["here"]) == {"1.05 x", "10 %"} and rows["published"].is_unique
    speeds = figures_real.speeds_table(figures_real.measured_on_gpu("present"))
    assert {"illava-image", "illava-2026-89"} <= set(speeds["budget"])
    for table in (rows, speeds):
        assert max(map(len, table.to_string(index=False).splitlines())) <= 100


def test_outcomes_say_what_changed_and_what_is_right() -> None:
    table = pd.DataFrame(
        {"number": [0, 1, 0, 1], "answer": ["Two.", "no", "3", "yes"], "equal": [True, True, False, False]}
    )
    assert list(figures_real.outcomes(table, ["two", "yes"])["outcome"]) == [
        "same, right", "same, wrong", "changed, wrong", "changed, right",
    ]  # fmt: skip


def test_sizes_are_those_of_published_shapes() -> None:
    table = figures_real.sizes("llava-1.5-7b", "llava-onevision-7b")
    assert list(table["GB in float16"].round()) == [14, 16]
    tokens = [2 * layers * heads * 128 * 2 / 1000 for layers, heads in ((32, 32), (28, 4))]  # keys and values, 2 bytes
    assert list(table["cache, KB a token"]) == pytest.approx(tokens, abs=0.05)


def test_published_differences_are_those_of_the_readme() -> None:
    scores = figures_paper.published_differences()
    assert scores["points"].is_monotonic_decreasing and {True, False} == set(scores["video"])
    assert scores["points"].min() < -2 and scores.loc[scores["video"], "points"].min() > -0.5
