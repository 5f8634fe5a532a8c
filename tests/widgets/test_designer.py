"""The schedule designer and the checks of chapter 03: closed forms agree with what is counted, what is stored with what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.checks import each_was_tried, says_what_is_wrong
from transformers import LlavaConfig, LlavaForConditionalGeneration

import illava_lab as il
from illava_lab.course import checks_stages
from illava_lab.course.checks_stages import check_amdahl, check_counts, check_schedule
from illava_lab.schedules.flops import flops_by_layer, prefill_flops
from illava_lab.widgets import front, schedule_designer
from illava_lab.widgets.schedule_designer import ScheduleDesigner
from illava_lab.widgets.schedule_forecast import forecast, schedule_figure, schedule_picture

TEXT = 10
BOTH = il.Schedule(encoder={2: 0.8, 5: 100}, llm={2: 0.5})


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def drawn(lab: il.Lab) -> ScheduleDesigner:
    return ScheduleDesigner(lab.model, text_tokens=TEXT, seconds={"encoder": 3.0, "projector": 0.0, "llm": 1.0})


# --------------------------------------------------------------------------------------------- what a schedule costs
def test_parts_add_up_to_the_whole(lab: il.Lab) -> None:
    for schedule in (il.Schedule(), BOTH):
        parts = flops_by_layer(lab.model, schedule, text_tokens=TEXT)
        assert (len(parts["encoder"]), len(parts["llm"])) == (8, 6)
        assert sum(map(sum, parts.values())) == prefill_flops(lab.model, None, schedule, text_tokens=TEXT)
    plan = forecast(lab.model, BOTH, text_tokens=TEXT)
    bare = prefill_flops(lab.model, text_tokens=TEXT)
    assert sum(plan.flops.values()) == pytest.approx(prefill_flops(lab.model, None, BOTH, text_tokens=TEXT) / bare)
    assert (
        plan.tokens == {"encoder": [196, 196, 196, 157, 157, 157, 100, 100], "llm": [100, 100, 50, 50, 50, 50]}
        and plan.time == {}
    )


def test_a_stage_that_is_not_touched_keeps_its_share(lab: il.Lab) -> None:
    bare, late = (forecast(lab.model, s, text_tokens=TEXT) for s in (il.Schedule(), il.Schedule(llm={2: 1})))
    assert late.flops["encoder"] == bare.flops["encoder"] and late.flops["llm"] < bare.flops["llm"]
    assert sum(bare.flops.values()) == pytest.approx(1)


def test_time_follows_the_seconds_of_each_part(lab: il.Lab) -> None:
    seconds = {"encoder": 3.0, "projector": 0.0, "llm": 1.0}
    plan = forecast(lab.model, il.Schedule(llm={1: 1}), text_tokens=TEXT, seconds=seconds)
    bare = forecast(lab.model, text_tokens=TEXT)
    assert plan.time["encoder"] == pytest.approx(0.75)
    assert plan.time["llm"] == pytest.approx(0.25 * plan.flops["llm"] / bare.flops["llm"])


def test_a_large_model_needs_no_weights() -> None:
    with torch.device("meta"):
        large = LlavaForConditionalGeneration(LlavaConfig())  # LLaVA-1.5-7B
    flops = forecast(large, text_tokens=64).flops
    assert flops["llm"] == pytest.approx(0.954, abs=0.002) and flops["encoder"] == pytest.approx(0.043, abs=0.002)
    assert len(ScheduleDesigner(large, text_tokens=64).widget.shown) == 23 + 31


# --------------------------------------------------------------------------------------------- the widget
def moved(designer: ScheduleDesigner, stage: str, layer: int, percent: int) -> None:
    """What the page sends where a slider was let go."""
    places = [tuple(place) for place in designer.widget.catalog["places"]]
    values = list(designer.widget.shown)
    values[places.index((stage, layer))] = percent
    designer.widget.shown = values


def bars(figure) -> list[list[float]]:
    return [np.asarray(trace.y, dtype=float).tolist() for trace in figure.data]


def test_both_pictures_draw_the_forecast(drawn: ScheduleDesigner) -> None:
    drawn.set(il.Schedule(encoder={0: 0.5}, llm={3: 0.25}))
    assert bars(schedule_figure(drawn.forecast))[1:3] == [[196, *[98] * 7], [98, 98, 98, 24, 24, 24]]
    heights = {round(patch.get_height(), 6) for axes in schedule_picture(drawn.forecast).axes for patch in axes.patches}
    assert {98.0, 24.0} <= heights and {round(100 * share, 6) for share in drawn.forecast.time.values()} <= heights
    assert "24 of 196 visual tokens" in str(drawn.forecast)


def test_sliders_and_presets(drawn: ScheduleDesigner, lab: il.Lab) -> None:
    drawn.set("fastv")
    assert drawn.schedule == il.Schedule(llm={1: 0.5})
    moved(drawn, "encoder", 7, 40)
    assert drawn.schedule == il.Schedule(encoder={7: 0.4}, llm={1: 0.5})
    drawn.set(il.Schedule(encoder={0: 98, 7: 49}))
    assert drawn.schedule == il.Schedule(encoder={0: 0.5, 7: 0.5}), "a count is a share of what the layer finds"
    drawn.set("illava-image")
    exact = forecast(lab.model, il.Schedule.preset("illava-image", lab.model), text_tokens=TEXT)
    assert sum(drawn.forecast.flops.values()) == pytest.approx(sum(exact.flops.values()), abs=0.01), (
        "whole percents are near enough"
    )
    shown = {one["name"]: one["values"] for one in drawn.widget.catalog["presets"]}
    assert list(shown) == list(drawn.presets) and shown["illava-image"] == drawn.widget.shown
    drawn.set(schedule_designer.NOTHING)
    assert drawn.schedule == il.Schedule() and sum(drawn.forecast.flops.values()) == pytest.approx(1)
    with pytest.raises(il.LabError, match="preset must be one of"):
        drawn.set("mine")
    with pytest.raises(il.LabError, match="no slider for llm layer 9"):
        drawn.set(il.Schedule(llm={9: 0.5}))
    with pytest.raises(il.LabError, match="no slider for the image stage"):
        drawn.set(il.Schedule(image=100))
    assert drawn.schedule == il.Schedule(), "a refused schedule moves nothing"


def test_picture_and_answer_are_those_of_the_schedule(lab: il.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    image, question = il.data_dir() / "samples" / "shapes.png", "What color is the circle?"
    designer = ScheduleDesigner(lab, image, question, "illava")
    shown: list[tuple] = []
    monkeypatch.setattr(schedule_designer, "show_widget", lambda *given: shown.append(given))
    designer.show(il.Schedule(encoder={0: 0.3}, llm={1: 0.1}))
    answer, bare = lab.ask(image, question, "illava", schedule=designer.schedule), lab.ask(image, question)
    first = designer.widget.answer
    for said in (first["words"], shown[0][2]):
        assert f"“{answer.text}”" in said and f"without reduction: “{bare.text}”" in said
        assert f"{answer.words[0][0].probability:.0%}" in said
    titles = [panel["title"] for panel in first["panels"]]
    assert titles == ["behind the image encoder: 59 tokens", "in the last LLM layer: 6 tokens"]
    assert first["values"] == designer.widget.start, "Reset goes where the reader began"
    moved(designer, "encoder", 0, 100)
    assert designer.widget.answer["panels"][0]["title"].endswith("196 tokens"), "it follows a slider"
    assert designer.widget.answer["values"] == designer.widget.shown


def test_what_a_strategy_refuses_is_said_with_its_reason(lab: il.Lab) -> None:
    pruned = ScheduleDesigner(lab, il.data_dir() / "samples" / "shapes.png", "What color is the circle?", "fastv")
    moved(pruned, "encoder", 0, 50)
    assert "serves llm" in pruned.widget.answer["error"] and "panels" not in pruned.widget.answer
    refused = pruned.widget.catalog["outcome"]["refused"]
    assert all("serves llm" in reason for reason in refused[:8]) and refused[8:] == [None] * 5


def test_what_a_page_stores(lab: il.Lab) -> None:
    designer = ScheduleDesigner(lab, il.data_dir() / "samples" / "shapes.png", "What color is the circle?", "fastv")
    designer.set(il.Schedule(llm={1: 0.5}))
    stored = designer.store([il.Schedule(), il.Schedule(encoder={0: 0.5}), "fastv"])
    values = [100] * 13
    assert [one["values"] for one in stored["answers"]] == [[*values[:8], 50, *values[9:]], values], "refused: left out"
    assert stored["start"] == designer.widget.shown and stored["catalog"] == designer.widget.catalog
    used = [panel["image"] for one in stored["answers"] for panel in one["panels"]]
    assert set(used) == set(range(len(stored["images"]))), "each picture once"
    assert all(image.startswith("data:image/webp") for image in stored["images"])
    assert used[0] == used[2], "behind the encoder, nothing was cut in either"
    assert "innerHTML" not in front.script("designer"), "questions and answers are words, whatever is in them"
    costs_only = ScheduleDesigner(lab.model).store()
    assert costs_only["answers"] == [] and costs_only["catalog"]["outcome"] is None


def test_a_shown_designer_has_a_picture(drawn: ScheduleDesigner, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[tuple] = []
    monkeypatch.setattr(schedule_designer, "show_widget", lambda *given: pictures.append(given))
    drawn.show("illava-image")
    drawn.show("fastv")
    assert pictures[0][0] is drawn.widget and pictures[0][1] != pictures[1][1] and "98 of 196" in pictures[1][2]


# --------------------------------------------------------------------------------------------- exercises
def counts(
    plan: dict, patches: int, depth: int, *, before: bool = False, original: bool = False, end: bool = False
) -> list[int]:
    out, count = [], patches
    for layer in range(depth):
        after = count
        if layer in plan:
            after = (patches if original else count) - round((patches if original else count) * (1 - plan[layer]))
        out.append(after if before else count)
        count = after
    return [*out, count] if end else out


GOOD = il.Schedule(encoder={0: 0.5}, llm={2: 0.9})
# check, answer, what the message must name (None: it is right)
ANSWERS = [
    (check_amdahl, lambda p, s: 1 / (1 - p + p / s), None),
    (check_amdahl, lambda p, s: 1 - p + p / s, "share 1"),
    (check_amdahl, lambda p, s: 1 + p * (s - 1), "no factor can make the whole more than twice as fast"),
    (check_amdahl, lambda p, s: s, "share 0 must give 1"),
    (check_amdahl, lambda p, s: 1 / (1 - p + p / s**0.5) if p < 1 else s, "so 1.333"),
    (check_amdahl, lambda p, s: ..., "nothing is returned yet"),
    (check_counts, counts, None),
    (check_counts, lambda *a: counts(*a, before=True), "layer 1 reduces inside itself"),
    (check_counts, lambda *a: counts(*a, original=True), "of the tokens that *enter*"),
    (check_counts, lambda *a: counts(*a, end=True), "what leaves the last layer enters none"),
    (check_counts, lambda plan, n, d: [n if i <= min(plan) else n * plan[min(plan)] if i <= max(plan) or len(plan) == 1 else n / 4 for i in range(d)],
     "6 whole tokens"),
    (check_counts, lambda *a: ..., "nothing is returned yet"),
    (check_schedule, GOOD, None),
    (check_schedule, il.Schedule(encoder={0: 0.5}), "your llm does not"),
    (check_schedule, il.Schedule(encoder={0: 0.3}, llm={2: 0.9}), "so cut less"),
    (check_schedule, il.Schedule(encoder={5: 0.5}, llm={2: 0.9}), "cut earlier"),
    (check_schedule, il.Schedule(encoder={0: 0.5}, llm={0: 0.9}), "layers that can reduce are 1 to 5"),
    (check_schedule, il.Schedule(encoder={0: 300}, llm={2: 0.9}), "cannot keep 300 of 196"),
    (check_schedule, ..., "a schedule such as"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "answer", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)]
)
def test_checks_name_the_fault(check, answer, fault: str | None, lab: il.Lab) -> None:
    says_what_is_wrong(check(answer, lab.model) if check is check_schedule else check(answer), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_stages)
