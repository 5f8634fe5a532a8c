"""What only Qwen-VL has: images of any size, cells of 2 x 2 patches, windows, positions on three axes, deepstack."""

from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, VIDEO_TOKEN, shared_llava
from helpers import reference_qwen
from helpers.attached import GREEDY, forward, told_apart
from helpers.checkpoints import scaled_down
from helpers.qwen import PATCH, QWENS, qwen_inputs, random_qwen
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import illava_lab as il
from illava_lab.models import families

RANDOM = ("random", il.Schedule({0: 0.6, 1: 0.7, 3: 0.8}, {2: 0.5}))


@pytest.fixture(params=QWENS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return shared_llava(kind)


def show(kind: str, *sizes: tuple[int, int, int], seed: int = 0) -> dict[str, Tensor]:
    """One prompt of (time, height, width) in cells, text between; time 0 is an image."""
    return qwen_inputs(kind, [[2, *(piece for size in sizes for piece in (part(size), 2)), 3]], [seed])


def part(size: tuple[int, int, int]) -> tuple[int, int, int, int]:
    return (VIDEO_TOKEN, *size) if size[0] else (IMAGE_TOKEN, 1, *size[1:])


SIZES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 6)), max_size=3)


@given(
    sizes=st.lists(SIZES, min_size=2, max_size=3),
    keep=st.floats(0.05, 1.0),
    name=st.sampled_from(["random", "tome", "fastv"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_of_any_sizes_equals_its_prompts_alone(kind, model, sizes, keep, name):
    """From a single cell to several windows: every image and every temporal slice is reduced on its own."""
    strategy = il.get_strategy(name)()
    keep = max(keep, strategy.smallest_keep + 0.01)
    plans = {"encoder": {0: keep, 1: keep}, "llm": {2: keep}}
    schedule = il.Schedule(**{stage: plans[stage] for stage in strategy.stages if stage in plans})
    prompts = [[2, *map(part, own), 1 + len(own)] for own in sizes]
    seeds = list(range(len(prompts)))
    with il.attach(model, strategy, schedule) as trace:
        together = forward(model, qwen_inputs(kind, prompts, seeds))
        assume(told_apart(trace))
        alone = [
            forward(model, qwen_inputs(kind, [prompt], [seed])) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
    bound = 5e-4 if kind == "qwen3.5-vl" else 1e-4  # its rule in chunks rounds otherwise in other lengths
    torch.testing.assert_close(together, torch.cat(alone), atol=bound, rtol=1e-4)


def test_a_kept_cache_continues_at_the_original_positions(kind, model):
    """A second turn on the returned cache equals both turns at once, on the same kept tokens, and text of each is kept."""
    first, turn = show(kind, (0, 3, 4), (2, 2, 3), seed=6), torch.tensor([[9, 10, 11]])
    both = {**first, "input_ids": torch.cat([first["input_ids"], turn], 1)}
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    both["mm_token_type_ids"] = torch.nn.functional.pad(first["mm_token_type_ids"], (0, 3))
    grids = {name: value for name, value in both.items() if not name.startswith("pixel")}
    positions = model.model.get_rope_index(**grids)[0][..., -3:]
    with il.attach(model, *RANDOM), torch.no_grad():
        cache = model(**first).past_key_values
        got = model(input_ids=turn, past_key_values=cache, position_ids=positions).logits
        want = model(**both).logits[:, -3:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_chat_continues_on_its_cache(kind, model):
    """Two turns of generate on one cache, the second without pixels: as the whole conversation at once."""
    first, settings = (
        show(kind, (0, 3, 4), (2, 2, 3), seed=6),
        dict(max_new_tokens=3, return_dict_in_generate=True, **GREEDY),
    )
    with il.attach(model, *RANDOM):
        answer = model.generate(**first, **settings)
        ids = torch.cat([answer.sequences, torch.tensor([[9, 10, 11]])], dim=1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        on_cache = model.generate(**more, past_key_values=answer.past_key_values, **settings).sequences
        types = torch.nn.functional.pad(first["mm_token_type_ids"], (0, ids.shape[1] - first["input_ids"].shape[1]))
        at_once = model.generate(**{**first, **more, "mm_token_type_ids": types}, **settings).sequences
    assert torch.equal(on_cache, at_once)


def test_survivors_keep_their_positions_on_all_axes(kind, model):
    """What the rotary tables of the language model are made from, and that text and markers are all there."""
    inputs, seen = show(kind, (0, 3, 4), (2, 3, 3), seed=1), {}
    rotary = model.model.language_model.rotary_emb
    hook = rotary.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs or {}, args=args), with_kwargs=True
    )
    with il.attach(model, "illava", il.Schedule({1: 0.5})) as trace, torch.no_grad():
        model(**inputs)
    hook.remove()
    positions = seen.get("position_ids", seen["args"][-1])[:, 0]
    grids = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    full = model.model.get_rope_index(**grids)[0][:, 0]
    ids, left = inputs["input_ids"][0], torch.ones(full.shape[1], dtype=torch.bool)
    for image, token in enumerate((IMAGE_TOKEN, VIDEO_TOKEN)):
        slots = torch.nonzero(ids == token)[:, 0]
        left[slots] = False
        left[slots[trace.sources(image).anchor]] = True
    assert torch.equal(positions, full[:, left])
    assert int((~left).sum()) == 6 + 2 * (9 - 5), "half of the image and of each temporal slice, and no text"


class LargestNorm(il.Scorer):
    """Keeps the cells with the largest hidden states: those that are not black, if nothing else has been added yet."""

    name = "largest-norm"

    def score(self, tokens):
        return tokens.hidden.norm(dim=-1)


def test_sources_point_at_the_pixels_that_were_kept(kind, model):
    """From the processor's pixels to the boxes of the trace: two images of different size and a video, black but for the
    last patch of a few cells, which are what the strategy keeps."""
    model = copy.deepcopy(model)
    model.model.visual.blocks[0].attn.proj.weight.data.zero_()
    model.model.visual.blocks[0].attn.proj.bias.data.zero_()
    shown, white = ((0, 6, 5), (0, 2, 5), (2, 3, 2)), [{1, 10, 14, 18, 22, 29}, {0, 7}, {3, 8}]
    pictures = []
    for (time, height, width), cells in zip(shown, white, strict=True):
        picture = np.zeros((max(time, 1), height, width), dtype=np.uint8)
        picture.ravel()[list(cells)] = 255
        pictures.append(
            np.kron(picture, np.pad(np.ones((1, PATCH, PATCH), dtype=np.uint8), ((0, 0), (PATCH, 0), (PATCH, 0))))
        )
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, do_resize=False, do_normalize=False)
    inputs = show(kind, *shown, seed=8)
    images = processor([Image.fromarray(pictures[0][0]), Image.fromarray(pictures[1][0])], return_tensors="pt")
    frames = processor([Image.fromarray(frame) for frame in pictures[2]], return_tensors="pt")
    assert torch.equal(images["image_grid_thw"], inputs["image_grid_thw"])
    inputs |= {"pixel_values": images["pixel_values"], "pixel_values_videos": frames["pixel_values"]}
    with il.attach(model, LargestNorm(), il.Schedule({0: 0.2})) as trace:
        forward(model, inputs)
    for image, (picture, cells) in enumerate(zip(pictures, white, strict=True)):
        sources, shown_again = trace.sources(image), np.zeros_like(picture)
        assert sources.anchor.tolist() == sorted(cells)
        for survivor in range(len(sources.anchor)):
            for cell in sources.patches(survivor):
                pixels = sources.boxes[cell] * torch.tensor([*picture.shape[:0:-1]] * 2)
                left, top, right, bottom = pixels.round().int().tolist()
                assert (right - left, bottom - top) == (2 * PATCH, 2 * PATCH)
                where = cell // (sources.grid[0] * sources.grid[1]), slice(top, bottom), slice(left, right)
                shown_again[where] = picture[where]
        assert np.array_equal(shown_again, picture)


class FirstPlaces(il.Scorer):
    name = "first-places"

    def score(self, tokens):
        return -tokens.position.float()


def test_both_stages_count_cells_in_raster_order(kind, model):
    """Also where the tower sorts cells by windows, and where a video is one image for the LLM but two for the encoder."""
    with il.attach(model, FirstPlaces(), il.Schedule({0: 6}, {2: 4})) as trace:
        forward(model, show(kind, (0, 5, 6), (2, 3, 3), (0, 6, 5)))
    assert [(s.stage, s.layer, len(s.rows), s.before, s.after) for s in trace.steps] == [
        ("encoder", 0, 1, 30, 6), ("encoder", 0, 1, 30, 6), ("encoder", 0, 2, 9, 6), ("llm", 2, 1, 6, 4), ("llm", 2, 1, 12, 4),
        ("llm", 2, 1, 6, 4),
    ]  # fmt: skip
    assert trace.sources(1, 3).anchor.tolist() == [*range(6), *range(9, 15)]
    assert [trace.sources(i).anchor.tolist() for i in range(3)] == [list(range(4))] * 3


class Received(il.Scorer):
    name = "received"

    def score(self, tokens):
        Received.seen.append(tokens.attention_received)
        return tokens.attention_received


def test_attention_received_is_a_share_of_the_whole_image_also_in_windows():
    """In a layer with windows it sums to the same over each cell of a window, however small: 1 / patches on average."""
    model, Received.seen = shared_llava("qwen2.5-vl"), []
    with il.attach(model, Received(), il.Schedule({0: 1.0, 1: 1.0})):
        forward(model, show("qwen2.5-vl", (0, 6, 7)))
    windowed, full = Received.seen
    assert float(windowed.sum()) * 4 == pytest.approx(1.0) == float(full.sum()) * 4
    grid = windowed.view(6, 7)
    for window in (grid[:4, :4], grid[:4, 4:], grid[4:, :4], grid[4:, 4:]):
        assert float(window.mean()) * 4 * 42 == pytest.approx(1.0)


def test_a_budget_holds_for_images_of_any_size(kind, model):
    """It is made for a typical image and kept in fractions."""
    for name in ("illava", "fastv", "random"):
        schedule = il.Schedule.for_budget(name, model, keep=0.5)
        with il.attach(model, name, schedule) as trace:
            forward(model, show(kind, (0, 6, 6), (0, 4, 10), (2, 5, 6)))
        assert [len(trace.sources(image).anchor) for image in range(3)] == pytest.approx([18, 20, 30], abs=2)


def test_features_of_several_layers_reach_the_layers_they_are_for():
    """Qwen3-VL with two deepstack features, one from before the first reduction in the encoder, one from between two; the
    LLM may reduce only after both are in."""
    model, inputs = random_qwen("qwen3-vl", deepstack=(0, 2)), show("qwen3-vl", (0, 6, 6), (2, 4, 9), seed=3)
    plan = dict(encoder={1: 24, 3: 16}, llm={2: 0.5, 3: 5})
    with pytest.raises(il.LabError, match="llm layer 1 is out of range; this model allows 2 to 3"):
        il.attach(model, "illava", il.Schedule(llm={1: 0.5})).__enter__()
    assert list(il.Schedule.for_budget("fastv", random_qwen("qwen3-vl", deepstack=(0, 1, 2)), keep=0.5).llm) == [3]
    with il.attach(model, "illava", il.Schedule(**plan)):
        got = forward(model, inputs)[-1]
    ids = inputs["input_ids"][0].tolist()
    want = reference_qwen.logits(model, ids, inputs, prompt=len(ids), rule="illava", **plan)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


hybrids = pytest.mark.skipif(not families.STATES_GO_ON, reason="this transformers is too old for linear attention")


@hybrids
@pytest.mark.parametrize(
    ("rule", "encoder", "llm"),
    [("illava", {0: 28, 2: 20}, {4: 0.7}), ("fastv", {}, {4: 0.5}), ("tome", {0: 25, 2: 15}, {})],
)
def test_behind_a_reduction_linear_attention_is_that_of_what_is_left(rule, encoder, llm):
    """Qwen3.5 in its own order: three layers with a state, one with attention. Each step of cached generation is what the
    whole gives token by token on what is left, and a batch is its prompts."""
    model, schedule = shared_hybrid(), il.Schedule(encoder, llm)
    inputs = show("qwen3.5-vl", (0, 5, 8), (2, 6, 6), seed=9)
    prompt = inputs["input_ids"].shape[1]
    with il.attach(model, rule, schedule):
        out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **GREEDY)
    for step, got in enumerate(out.logits):
        ids = out.sequences[0, : prompt + step].tolist()
        want = reference_qwen.logits(model, ids, inputs, prompt=prompt, rule=rule, encoder=encoder, llm=llm)
        # Logits reach 6, and transformers' rule in chunks rounds otherwise on each kind of processor.
        torch.testing.assert_close(got[0], want, atol=5e-4, rtol=1e-4)
    check_calls(model, rule, schedule)


@hybrids
@pytest.mark.parametrize("llm", [{0: 0.6, 2: 0.5, 5: 0.6}, {1: 9, 3: 0.5, 4: 0.7, 6: 2}])
def test_who_needs_no_attention_reduces_before_any_layer(llm):
    """Also in front of the first layer that has any, by which a cache counts."""
    model, schedule, settings = shared_hybrid(), il.Schedule({1: 0.8}, llm), dict(max_new_tokens=3, **GREEDY)
    check_calls(model, "stride", schedule)
    first = qwen_inputs("qwen3.5-vl", [[2, part((0, 5, 8)), 4], [3, part((0, 6, 6)), 9]], [1, 2])
    with il.attach(model, "stride", schedule):  # a second turn, on the cache and both at once
        answer = model.generate(**first, return_dict_in_generate=True, **settings)
        more = {"input_ids": torch.cat([answer.sequences, torch.tensor([[9, 10], [11, 12]])], 1)}
        new = more["input_ids"].shape[1] - first["input_ids"].shape[1]
        more["attention_mask"] = torch.nn.functional.pad(first["attention_mask"], (0, new), value=1)
        on_cache = model.generate(**more, past_key_values=answer.past_key_values, **settings)
        types = torch.nn.functional.pad(first["mm_token_type_ids"], (0, new))
        assert torch.equal(on_cache, model.generate(**{**first, **more, "mm_token_type_ids": types}, **settings))


def check_calls(model, rule, schedule) -> None:
    """Cached is recomputed, with beams too, and a batch is its prompts alone."""
    several = [[2, part((0, 5, 8)), 4], [3, part((0, 6, 6)), 2, part((2, 6, 6)), 9]]
    together, alone = (qwen_inputs("qwen3.5-vl", own, seeds) for own, seeds in ((several, [1, 2]), (several[:1], [1])))
    settings = dict(max_new_tokens=3, **GREEDY)
    with il.attach(model, rule, schedule):
        tokens = model.generate(**together, **settings)
        assert torch.equal(tokens, model.generate(**together, use_cache=False, **settings))
        assert torch.equal(tokens[:1, -3:], model.generate(**alone, **settings)[:, -3:])
        beams = [model.generate(**together, num_beams=2, use_cache=use, **settings) for use in (True, False)]
        assert torch.equal(*beams)
        with pytest.raises(il.LabError, match="linear attention, which cannot forget tokens"), torch.no_grad():
            model(**alone).past_key_values.crop(-1)


@hybrids
def test_who_ranks_by_attention_reduces_only_behind_a_layer_that_has_it(monkeypatch):
    model = shared_hybrid()
    for layer in (1, 2, 3, 5):
        with pytest.raises(
            il.LabError, match=f"llm layer {layer} is behind layer {layer - 1}, which has linear .*: 4$"
        ):
            il.attach(model, "fastv", il.Schedule(llm={layer: 0.5})).__enter__()
    assert [*il.Schedule.for_budget("fastv", model, keep=0.5).llm] == [4]
    assert [*il.Schedule.preset("illava-image", model).llm] == [4]
    with (
        il.attach(model, "pyramiddrop", il.Schedule(llm={4: 0.5})),
        pytest.raises(il.LabError, match="no queries and keys"),
    ):
        forward(model, show("qwen3.5-vl", (0, 3, 4)))
    monkeypatch.setattr(families, "STATES_GO_ON", False)
    with pytest.raises(il.LabError, match="needs a newer transformers, 5.17 or later"):
        il.attach(model, "none").__enter__()


@cache
def shared_hybrid():
    return random_qwen("qwen3.5-vl", layers="lllflllf")


def test_a_picture_and_a_film_through_the_processor(tmp_path):
    """Load, ask, trace: pictures of any size from the processor of the published checkpoint, on a small model."""
    (tmp_path / "small.json").write_text(json.dumps(scaled_down("qwen2-vl-7b")))
    lab, draw = il.load(f"random:{tmp_path / 'small.json'}", dtype="float32"), np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    film = il.read_video(draw.integers(0, 256, (4, 280, 280, 3), dtype=np.uint8), frames=4)
    answer = lab.ask([picture, film], "What happens?", strategy="illava", keep=0.4, max_new_tokens=3)
    assert answer.timing.tokens >= 1
    shapes = [(1, 11, 14), (2, 10, 10)]  # of 28 x 28 pixels, 300 x 400 is nearest to 11 x 14
    for image, (times, height, width) in enumerate(shapes):
        sources = answer.trace.sources(image)
        assert (sources.crops, *sources.grid) == (times, height, width)
        assert len(sources.anchor) == pytest.approx(0.4 * times * height * width, rel=0.03)


def test_what_cannot_be_is_refused_clearly(kind, model):
    inputs = show(kind, (0, 3, 4), (0, 2, 2))
    with pytest.raises(il.LabError, match="time, row and column"), il.attach(model, *RANDOM, positions="packed"):
        pass
    with (
        pytest.raises(il.LabError, match="encoder layer 4 is out of range"),
        il.attach(model, "random", il.Schedule({4: 0.5})),
    ):
        pass
    with pytest.raises(il.LabError, match="let its processor"), il.attach(model, "downsample", il.Schedule(image=0.25)):
        pass
    with pytest.raises(il.LabError, match="let its processor"):
        il.Schedule.for_budget("downsample", model, flops=0.5)
    with il.attach(model, "visionzip", il.Schedule({3: 0.5})), pytest.raises(il.LabError, match="needs a CLS token"):
        forward(model, inputs)
    with (
        il.attach(model, "random", il.Schedule({0: 5})),
        pytest.raises(il.LabError, match="encoder layer 0: cannot keep 5 of 4"),
    ):
        forward(model, inputs)
    flash = copy.deepcopy(model)
    flash.model.visual.config._attn_implementation = "flash_attention_2"
    with pytest.raises(il.LabError, match="proportional attention"), il.attach(flash, "tome", il.Schedule({0: 0.7})):
        pass
