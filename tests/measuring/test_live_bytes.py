"""Bytes alive: exact where they can be counted by hand, and as torch's own profiler finds them in a whole prefill."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from helpers.checkpoints import scaled_down
from PIL import Image
from torch.profiler import ProfilerActivity, profile

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.measuring.live_bytes import LiveBytes
from illava_lab.measuring.shapes_only import ShapesOnly
from illava_lab.models.random_models import hollow


@pytest.mark.parametrize("inference", [False, True])
def test_views_are_free_and_what_is_dropped_no_longer_counts(inference: bool) -> None:
    outside = torch.zeros(1000)
    with torch.inference_mode(inference), LiveBytes() as live:
        outside += 1
        assert live.now == 0, "in place, on memory that was there"
        a = outside + 1
        part = a.view(10, 100)[2:]
        assert (live.now, live.peak) == (4000, 4000)
        del a
        assert live.now == 4000, "a view keeps all of it alive"
        b = (part * 2)[:1] + 1
        assert (live.now, live.peak) == (4000 + 400, 4000 + 3200 + 400)
        del part, b
    assert live.now == 0


def profiled_peak(lab: il.Lab, inputs: measure.Inputs) -> int:
    """The same from the allocations that torch's profiler records, those inside kernels included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        measure.prefill(lab.model, inputs)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.parametrize("strategy", [None, "illava", "tome"])
def test_the_peak_of_a_prefill_is_what_the_profiler_finds(strategy: str | None) -> None:
    lab, task = il.load(), il.load_task("test")
    inputs = lab.inputs([task.image("test-0006")] * 2, ["What digit is shown?"] * 2)
    configuration = None
    if strategy:
        chosen = il.get_strategy(strategy)()
        configuration = (chosen, il.Schedule.for_budget(chosen, lab.model, keep=0.5))
    with measure.attached(lab.model, configuration):
        measure.prefill(lab.model, inputs)  # what is made once and kept
        _, peak = measure.memory(lab.model, inputs)
        assert peak == pytest.approx(profiled_peak(lab, inputs), rel=0.1)


def test_shapes_alone_give_the_bytes_of_a_real_run() -> None:
    lab, task = il.load(), il.load_task("test")
    inputs = lab.inputs([task.image("test-0006")], ["What digit is shown?"])
    with il.attach(lab.model, "fastv", il.Schedule(llm={2: 0.5})):
        measure.prefill(lab.model, inputs)
        real = measure.memory(lab.model, inputs)
        with ShapesOnly():
            assert measure.memory(lab.model, inputs) == real
            assert not measure.prefill(lab.model, inputs).logits.any(), "nothing is computed"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("llava-1.5-7b", 336), ("llava-onevision-0.5b", 768)])
def test_illava_never_needs_more_than_the_bare_model(name: str, side: int) -> None:
    """At real size: in a toy, the lists of places and sizes weigh as much as the states."""
    model, processor = hollow(name)
    lab, strategy = il.Lab(model, processor, name), il.get_strategy("illava")()
    inputs, schedule = (
        lab.inputs([Image.new("RGB", (side, side))], ["What?"]),
        il.Schedule.preset("illava-image", model),
    )
    with ShapesOnly():
        bare_cache, bare = measure.memory(model, inputs)
        with il.attach(model, strategy, schedule):
            cache, peak = measure.memory(model, inputs)
    assert cache < 0.5 * bare_cache and peak <= 0.55 * bare


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], il.Lab]:
    """A published configuration with all its pictures and tokens, but few layers of width 256."""
    size = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}

    @cache
    def make(name: str) -> il.Lab:
        spec = scaled_down(name)
        spec["config"]["text_config"] |= size | {"num_key_value_heads": 4}
        spec["config"]["vision_config"] |= size
        path = tmp_path_factory.mktemp("narrow") / f"{name}.json"
        path.write_text(json.dumps(spec))
        return il.Lab(*hollow(str(path)), name)

    return make


def peak_ratio(lab: il.Lab, inputs: measure.Inputs, strategy: str) -> float:
    """Peak with half of the visual tokens over that of the bare model."""
    with ShapesOnly():
        _, bare = measure.memory(lab.model, inputs)
        with il.attach(lab.model, strategy, il.Schedule.for_budget(strategy, lab.model, keep=0.5)):
            return measure.memory(lab.model, inputs)[1] / bare


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["illava", "fastv", "tome", "visionzip", "sparsevlm"])
@pytest.mark.parametrize("prompts", [[1], [12], [1, 1, 1, 1], [3, 0, 2]], ids=str)
def test_no_number_of_images_needs_more_than_the_bare_model(narrow, prompts: list[int], strategy: str) -> None:
    """Scores are computed for prompts, not for images: nothing is copied for each."""
    lab, picture = narrow("llava-1.5-7b"), Image.new("RGB", (336, 336))
    inputs = lab.inputs([[picture] * images for images in prompts], ["What?"] * len(prompts))
    assert peak_ratio(lab, inputs, strategy) < 0.9


@pytest.mark.parametrize("strategy", ["illava", "tome"])
def test_no_number_of_frames_needs_more_than_the_bare_model(narrow, strategy: str) -> None:
    """Here the worst moment is in the first layers of the tower, those before anything is reduced among them."""
    lab = narrow("llava-onevision-0.5b")
    inputs = lab.inputs([il.read_video(np.zeros((8, 384, 384, 3), np.uint8), frames=8)], ["What?"])
    assert peak_ratio(lab, inputs, strategy) <= 1
