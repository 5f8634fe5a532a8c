"""Small multiples show, for each method and place, the tokens that the trace has there."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from helpers.labs import noise
from helpers.small_labs import small_lab
from matplotlib.text import Text
from PIL import Image

import illava_lab as il
from illava_lab.views.multiples import layers_figure, layers_words
from illava_lab.views.pictures import to_png

IMAGE, QUESTION = noise(50, 60), "What is it?"


@pytest.fixture(scope="module")
def lab():
    return small_lab("llava")


@pytest.fixture(scope="module")
def answers(lab):
    cuts = {"fastv": il.Schedule(llm={2: 0.5}), "illava": il.Schedule({1: 0.7, 2: 0.6}, {2: 0.5})}
    return {name: lab.ask(IMAGE, QUESTION, name, schedule=cut) for name, cut in cuts.items()}


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_each_row_counts_what_its_trace_has_there(lab, answers):
    figure = layers_figure(lab, IMAGE, answers)
    steps = {name: [(s.stage, s.layer, s.after) for s in one.trace.steps] for name, one in answers.items()}
    (encoder1, encoder2, llm), (only,) = steps["illava"], steps["fastv"]
    whole = answers["fastv"].trace.sources(0, 0).weights.shape[0]
    assert titles(figure) == [
        f"encoder 1\n{whole}", f"encoder 2\n{whole}", f"LLM 2\n{only[2]}",
        str(encoder1[2]), str(encoder2[2]), str(llm[2]),
    ]  # fmt: skip
    drawn = [axes.images[0].get_array() for axes in figure.axes]
    assert drawn[0].mean() > drawn[2].mean(), "pale where a method does nothing"
    labels = [text.get_text() for text in figure.findobj(Text)]
    assert {"fastv", "illava"} <= set(labels)
    assert f"fastv {only[2]} tokens, “{answers['fastv'].text}”" in layers_words(answers)


def test_few_columns_keep_the_last_place(lab, answers):
    assert [title.partition("\n")[0] for title in titles(layers_figure(lab, IMAGE, answers, 2))[:2]] == [
        "encoder 1",
        "LLM 2",
    ]
    assert titles(layers_figure(lab, IMAGE, answers, 1))[0].startswith("LLM 2")


def test_a_palette_keeps_the_picture(lab, answers):
    figure = layers_figure(lab, il.data_dir() / "samples" / "shapes.png", answers)
    full, small = (
        np.asarray(Image.open(BytesIO(data)).convert("RGB"), float)
        for data in (to_png(figure), to_png(figure, colors=128))
    )
    assert len(to_png(figure, colors=128)) < len(to_png(figure)) / 2
    assert np.abs(full - small).mean() < 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(answers={}), "answers must hold at least one"),
        (dict(columns=0), "columns must be 1 or more, got 0"),
        (dict(answers=None), "a method that reduces, got 'bare'"),
    ],
)
def test_refusals(lab, answers, change, said):
    asked = {"answers": answers, **change}
    if asked["answers"] is None:
        asked["answers"] = {"bare": lab.ask(IMAGE, QUESTION)}
    with pytest.raises(il.LabError, match=said):
        layers_figure(lab, IMAGE, **asked)
