"""What no widget can show: one sentence, before the model runs."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from helpers.labs import noise

import illava_lab as il
from illava_lab.views import pictures, plots
from illava_lab.widgets import KeepSlider, MergeExplorer, RedundancyExplorer, ScheduleDesigner, forecast


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(autouse=True)
def idle(lab: il.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))


TWICE = [il.get_strategy("random")(seed=1), il.get_strategy("random")(seed=1)]
SECONDS = {"encoder": 1.0, "projector": 0.1, "llm": 2.0}
CASES: list[tuple[Any, dict[str, Any], str]] = [
    (KeepSlider, {"keeps": []}, "keeps must hold at least one"),
    (KeepSlider, {"keeps": None}, "keeps must hold at least one"),
    (KeepSlider, {"keeps": [0.5, 0.5]}, "keeps holds one twice"),
    (KeepSlider, {"keeps": [0.5, 0]}, r"keeps must be a fraction in \(0, 1\], got 0"),
    (KeepSlider, {"keeps": "0.5"}, r"keeps must be a fraction in \(0, 1\], got '0.5'"),
    (KeepSlider, {"image": []}, "image must show at least one image"),
    (KeepSlider, {"question": ""}, "question must be a sentence"),
    (MergeExplorer, {"strategies": []}, "strategies must hold at least one"),
    (MergeExplorer, {"strategies": {}}, "strategies must name at least one strategy"),
    (MergeExplorer, {"strategies": ["tome", "tome"]}, "strategies holds one twice"),
    (MergeExplorer, {"strategies": ["tome", il.get_strategy("tome")]}, "strategies holds one twice: tome, tome"),
    (MergeExplorer, {"strategies": TWICE}, "strategies holds one twice"),
    (MergeExplorer, {"strategies": [5]}, "strategy must be a name, a Strategy class or an instance, got 5"),
]


@pytest.mark.parametrize(("widget", "arguments", "says"), CASES)
def test_explorers_of_an_image(lab: il.Lab, widget: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(il.LabError, match=says):
        widget(lab, **{"image": noise(), "question": "What is it?", **arguments})


@pytest.mark.parametrize("images", [{}, [], [noise()], "photo.jpg", None])
def test_images_have_names(lab: il.Lab, images: Any) -> None:
    with pytest.raises(il.LabError, match="images must name at least one image, for example"):
        RedundancyExplorer(lab, images)


@pytest.mark.parametrize("count", [-1, 1.5, "10", None, True])
def test_text_is_counted(lab: il.Lab, count: Any) -> None:
    for made in (ScheduleDesigner, forecast):
        with pytest.raises(il.LabError, match="text_tokens must be a whole number of at least 0, got"):
            made(lab.model, text_tokens=count)


@pytest.mark.parametrize(
    "seconds",
    [{}, {"encoder": 1.0}, SECONDS | {"llm": -1.0}, SECONDS | {"llm": "2"}, [1, 2, 3], dict.fromkeys(SECONDS, 0)],
)
def test_seconds_are_those_of_every_part(lab: il.Lab, seconds: Any) -> None:
    for made in (ScheduleDesigner, forecast):
        with pytest.raises(il.LabError, match="seconds must be times of encoder, projector, llm"):
            made(lab.model, text_tokens=10, seconds=seconds)


def test_a_designer_shows_schedules(lab: il.Lab) -> None:
    designer = ScheduleDesigner(lab.model)
    for given in ({"image": "a.png", "question": "What?"}, {"question": "What?"}):
        with pytest.raises(il.LabError, match="image and question need a Lab"):
            ScheduleDesigner(lab.model, **given)
    with pytest.raises(il.LabError, match="image and question must be given together, got no image"):
        ScheduleDesigner(lab, question="What?")
    for schedule in (None, {2: 0.5}, 5):
        with pytest.raises(il.LabError, match="schedule must be a Schedule or the name of a preset, got"):
            designer.set(schedule)


def test_pictures_and_plots_show_something() -> None:
    with pytest.raises(il.LabError, match="panels must hold at least one picture"):
        pictures.side_by_side([])
    profile = pd.DataFrame({"stage": ["llm"], "layer": [0], "rank": [1.0]})
    for tables in ({}, [profile], profile, None):
        with pytest.raises(il.LabError, match="tables must name at least one table|column must be one of"):
            plots.layers(tables, "rank", "rank")
