"""Methods for video inside of models: frames as they see them, pictures beside a video, and what is refused."""

from __future__ import annotations

import pytest
import torch
from conftest import Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY

import illava_lab as il
from illava_lab.models.families import describe

SCHEDULES = {"evs": {0: 0.5}, "dycoke": {0: 0.6}, "framefusion": {0: 0.8, 1: 0.6}}


@pytest.mark.parametrize("kind", ["onevision", "qwen2.5-vl"])
@pytest.mark.parametrize("name", SCHEDULES)
@torch.no_grad()
def test_a_batch_is_its_prompts_and_a_picture_beside_a_video_stays_whole(kind: str, name: str) -> None:
    model, schedule, seen = shared_llava(kind), il.Schedule(llm=SCHEDULES[name]), []
    Method = il.get_strategy(name)

    class Look(Method):
        """Note what the strategy was shown."""

        def map(self, tokens, keep):
            seen.append(tokens.frames)
            return Method.map(self, tokens, keep)

    prompts = [Prompt(videos=1, seed=1), Prompt(videos=1, seed=1, images=0)]
    with il.attach(model, Look(), schedule) as trace:
        inputs = make_inputs(prompts, kind)
        together = model.generate(**inputs, max_new_tokens=4, **GREEDY)
        uncached = model.generate(**inputs, max_new_tokens=4, use_cache=False, **GREEDY)
        assert torch.equal(together, uncached)
        model(**inputs)
        kept = [trace.left(image) / trace.layout(image).tokens for image in range(3)]
        layouts = [trace.layout(image) for image in range(3)]
        sources = [trace.sources(image) for image in range(3)]
        for row, prompt in enumerate(prompts):
            alone = model.generate(**make_inputs([prompt], kind), max_new_tokens=4, **GREEDY)
            assert torch.equal(alone[0, -4:], together[row, -4:])
    video, picture, other = (0, 1, 2) if kind == "onevision" else (1, 0, 2)
    assert kept[picture] == 1 and kept[video] < 0.7 and kept[other] < 0.7
    assert len(sources[picture].anchor) == layouts[picture].tokens
    assert {*seen} == {layouts[video].frames, layouts[other].frames}, "only videos are asked about"
    if name == "evs" and kind == "onevision":  # one video in both prompts
        first = layouts[video].frames[1]
        assert sources[video].anchor.tolist()[:first] == sources[other].anchor.tolist()[:first]


@torch.no_grad()
def test_evs_keeps_the_frame_after_a_cut() -> None:
    """Of three frames, of which the first two are alike, two are left: the first, and the one behind the cut."""
    model = shared_llava("onevision")
    inputs = make_inputs([Prompt(videos=1, images=0, seed=3)], "onevision")
    pixels = inputs["pixel_values_videos"]
    pixels[0, 1] = pixels[0, 0]
    with il.attach(model, "evs", il.Schedule(llm={0: 2 / 3})) as trace:
        model(**inputs)
    patches = describe(model).patches
    assert sorted({int(anchor) // patches for anchor in trace.sources(0).anchor}) == [0, 2]


def test_without_a_video_it_is_refused_before_any_work() -> None:
    model = shared_llava("onevision")
    with il.attach(model, "evs", il.Schedule(llm={0: 0.5})):
        with pytest.raises(il.LabError, match="strategy 'evs' reduces videos, and these prompts show none"):
            model(**make_inputs([Prompt()], "onevision"))
        model(input_ids=torch.tensor([[1, 5, 6]]))  # text alone has nothing to reduce
    with pytest.raises(il.LabError, match="strategy 'evs' reduces videos, which this model does not take"):
        il.attach(shared_llava("clip-llama"), "evs", il.Schedule(llm={0: 0.5})).__enter__()
    both = il.compose(encoder="stride", llm={0: "evs", 2: "fastv"})
    with il.attach(model, both, il.Schedule({1: 0.9}, {2: 0.5})) as trace:
        model(**make_inputs([Prompt()], "onevision"))  # at the layer of evs nothing is to go
    assert trace.left(0) < trace.entered(0) < trace.layout(0).tokens


@torch.no_grad()
def test_frame_by_frame_each_keeps_its_part() -> None:
    model = shared_llava("qwen2.5-vl")
    strategy = il.compose(encoder="stride", llm="fastv", frames="each")
    inputs = make_inputs([Prompt(videos=1, images=1, seed=2), Prompt(videos=1, images=0, seed=2)], "qwen2.5-vl")
    with il.attach(model, strategy, il.Schedule({1: 0.75}, {2: 0.5, 3: 0.6})) as trace:
        model(**inputs)
    for film in (1, 2):
        frames, each = trace.layout(film).frames
        left = round(round(round(each * 0.75) * 0.5) * 0.6)
        kept = [sum(int(anchor) // each == frame for anchor in trace.sources(film).anchor) for frame in range(frames)]
        assert frames > 1 and kept == [left] * frames
    assert trace.left(0) == round(round(trace.entered(0) * 0.5) * 0.6)
    assert il.Schedule.for_budget(strategy, model, flops=0.7).reduces


@torch.no_grad()
def test_over_time_and_then_over_space() -> None:
    """In one model: tokens that stand still go in front of the LLM, then those that nobody attends to."""
    model = shared_llava("qwen2.5-vl")
    strategy = il.compose(encoder="stride", llm={0: "evs", 2: "fastv"})
    with il.attach(model, strategy, il.Schedule({1: 0.75}, {0: 0.6, 2: 0.5})) as trace:
        model(**make_inputs([Prompt(videos=1, images=1, seed=2)], "qwen2.5-vl"))
    film, picture = 1, 0
    steps = {(step.layer, step.before, step.after) for step in trace.steps if step.stage == "llm" and film in step.rows}
    (_, entered, left), (_, _, last) = sorted(steps)
    assert entered == trace.entered(film) and left == round(entered * 0.6) and last == round(left * 0.5)
    assert trace.left(picture) == round(trace.entered(picture) * 0.5)
