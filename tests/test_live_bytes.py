"""Bytes alive: exact where they can be counted by hand, and as torch's own profiler finds them in a whole prefill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

import illava_lab as il
from illava_lab import measure
from illava_lab.live_bytes import LiveBytes
from illava_lab.random_models import hollow
from illava_lab.shapes_only import ShapesOnly


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


@pytest.mark.parametrize(("name", "side"), [("llava-1.5-7b", 336), ("llava-onevision-0.5b", 768)])
def test_illava_never_needs_more_than_the_bare_model(name: str, side: int) -> None:
    """At real size: in a toy, the lists of places and sizes weigh as much as the states."""
    model, processor = hollow(name)
    lab, strategy = il.Lab(model, processor, name), il.get_strategy("illava")()
    inputs, schedule = lab.inputs([Image.new("RGB", (side, side))], ["What?"]), il.Schedule.preset("illava-image", model)
    with ShapesOnly():
        bare_cache, bare = measure.memory(model, inputs)
        with il.attach(model, strategy, schedule):
            cache, peak = measure.memory(model, inputs)
    assert cache < 0.5 * bare_cache and peak <= 0.55 * bare
