"""Captured graphs on the device that has them: the answers are those without, to rounding."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from conftest import KINDS, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY
from hooks.test_graphs import REDUCTIONS
from PIL import Image

import illava_lab as il
from illava_lab.hooks.graphs import store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA device")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_with_graphs_equal_those_without(kind, dtype):
    model = copy.deepcopy(shared_llava(kind)).to("cuda", dtype)
    for name, schedule in REDUCTIONS.items():
        for prompts in ([Prompt(1, 8, seed=3)], [Prompt(1, 5, seed=1), Prompt(1, 8, seed=2)]):
            inputs = {key: x.to("cuda") for key, x in make_inputs(prompts, kind).items()}
            inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
            with torch.no_grad(), il.attach(model, name, schedule):
                wanted = model(**inputs, use_cache=True).logits[:, -1].float()
                tokens = model.generate(**inputs, max_new_tokens=7, **GREEDY)
            for _ in range(4):  # plainly, captured, replayed; each time attached anew
                torch.full((1 << 22,), torch.nan, device="cuda")  # what is free again must not be read
                with torch.no_grad(), il.attach(model, name, schedule, graphs=True):
                    logits = model(**inputs, use_cache=True).logits[:, -1].float()
                    again = model.generate(**inputs, max_new_tokens=7, **GREEDY)
                step = torch.finfo(dtype).eps
                assert torch.allclose(logits, wanted, rtol=16 * step, atol=16 * step * float(wanted.abs().max()))
                if dtype == torch.float32:
                    assert torch.equal(again, tokens)
    (graphs,) = store._stores.values()
    assert not graphs._refused
    assert len(graphs._kept) >= 2
    store._stores.clear()


@torch.no_grad()
def test_a_cache_keeps_its_bits_when_another_is_made():
    model = copy.deepcopy(shared_llava("clip-llama")).to("cuda")
    prompts = [make_inputs([Prompt(1, length, seed=length)], "clip-llama") for length in (40, 6, 40)]
    with il.attach(model, "illava", REDUCTIONS["illava"], graphs=True):
        held = []
        for _ in range(3):
            for inputs in prompts:
                out = model(**{key: x.to("cuda") for key, x in inputs.items()}, use_cache=True)
                own = [x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)]
                held.append((out.past_key_values, [x.clone() for x in own]))
                del own
        for cache, copies in held:
            own = [x for layer in cache.layers for x in (layer.keys, layer.values)]
            assert all(torch.equal(a, b) for a, b in zip(own, copies, strict=True))
    store._stores.clear()


def needed(model, inputs) -> int:
    """Bytes above what is there before, at the worst moment of a prefill."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        model(**inputs, use_cache=True, logits_to_keep=1)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.fixture(scope="module")
def onevision():
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("LLaVA-OneVision-7B and its bare prefill need a device of 40 GiB")
    yield il.load("random:llava-onevision-7b", device="cuda", dtype="bfloat16")
    store._stores.clear()


@pytest.mark.parametrize("preset", ["illava-image", "illava-video"])
def test_memory_with_graphs_is_well_below_that_of_the_bare_model(onevision, preset):
    """Ten crops, and 32 frames: what a prefill needs and what graphs hold, at most 0.55 of the bare model's prefill.

    What the store counts is what the allocator gives.
    """
    if preset == "illava-image":
        shown = Image.new("RGB", (1152, 1152))
    else:
        shown = il.read_video(np.zeros((32, 384, 384, 3), np.uint8), frames=32)
    model, inputs = onevision.model, onevision.inputs([shown], ["What is shown in this picture?"])
    strategy = il.get_strategy("illava")(**il.presets()[preset].settings)
    needed(model, inputs)
    bare = needed(model, inputs)
    before = torch.cuda.memory_reserved()
    with il.attach(model, strategy, il.Schedule.preset(preset, model), graphs=True):
        for _ in range(2):
            needed(model, inputs)
        (graphs,) = store._stores.values()
        assert not graphs._refused
        own = needed(model, inputs)
        gc.collect()
        torch.cuda.empty_cache()
        grown = torch.cuda.memory_reserved() - before
    assert abs(grown - graphs.memory) < 0.05 * bare, f"{grown} reserved, {graphs.held} counted"
    assert own + graphs.memory <= 0.55 * bare, f"{own} and {graphs.held}, bare {bare}"
    graphs.forget()
