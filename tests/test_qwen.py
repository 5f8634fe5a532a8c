"""Qwen2-VL and Qwen2.5-VL: the invariants of every attachment on packed vision sequences, windows, M-RoPE and videos."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import reference_qwen
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image
from test_attach import structure
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import illava_lab as il
from illava_lab.schedule import kept

IMAGE, VIDEO, START, END = 3, 4, 5, 6
PLACEHOLDERS = [IMAGE, VIDEO]
PATCH = 4
TEXT = dict(vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, rope_parameters={"rope_type": "default", "mrope_section": [2, 2, 2]},
            bos_token_id=1, eos_token_id=2)  # fmt: skip
VISION = dict(depth=4, num_heads=4, patch_size=PATCH)
TOKENS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
GREEDY = dict(do_sample=False, suppress_tokens=[IMAGE, VIDEO], eos_token_id=None, pad_token_id=0)


def random_qwen(kind: str, attention: str = "sdpa"):
    """"qwen2-vl", or "qwen2.5-vl" with windows of 2x2 cells in layers 0 and 2; float32, eval."""
    torch.manual_seed(0)
    if kind == "qwen2-vl":
        vision = dict(embed_dim=32, hidden_size=48, mlp_ratio=2, **VISION)
        config = Qwen2VLConfig(text_config=TEXT, vision_config=vision, **TOKENS)
        make = Qwen2VLForConditionalGeneration
    else:
        vision = dict(hidden_size=32, out_hidden_size=48, intermediate_size=64, window_size=4 * PATCH,
                      fullatt_block_indexes=[1, 3], **VISION)  # fmt: skip
        config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision, **TOKENS)
        make = Qwen2_5_VLForConditionalGeneration
    config._attn_implementation = attention
    model = make(config).eval()
    # Random weights as they come attend almost evenly; larger ones make every token matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("qkv.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight", "embed_tokens", "lm_head")):
                parameter.normal_(0.0, 0.3)
            if "merger.mlp" in name or "patch_embed" in name:
                parameter.normal_(0.0, 0.15)
    return model


@dataclass
class Prompt:
    """One prompt: (time, height, width) in cells of what is in it, time 0 for an image."""

    shown: tuple[tuple[int, int, int], ...] = ((0, 3, 4),)
    text_after: int = 4
    seed: int = 0


def make_inputs(prompts: list[Prompt]) -> dict[str, Tensor]:
    """Left-padded inputs as Qwen's processor makes them, from pictures of noise."""
    rows, pixels, grids = [], {IMAGE: [], VIDEO: []}, {IMAGE: [], VIDEO: []}
    for prompt in prompts:
        draw = torch.Generator().manual_seed(prompt.seed)
        text = lambda n: torch.randint(7, 64, (n,), generator=draw).tolist()  # noqa: E731
        row = text(2)
        for time, height, width in prompt.shown:
            token, slices = (VIDEO, time) if time else (IMAGE, 1)
            row += [START, *[token] * (slices * height * width), END, *text(2)]
            pixels[token].append(torch.randn(4 * slices * height * width, 3 * 2 * PATCH**2, generator=draw))
            grids[token].append([slices, 2 * height, 2 * width])
        rows.append(row + text(prompt.text_after))
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
    }
    for token, values, grid in ((IMAGE, "pixel_values", "image_grid_thw"), (VIDEO, "pixel_values_videos", "video_grid_thw")):
        if pixels[token]:
            inputs |= {values: torch.cat(pixels[token]), grid: torch.tensor(grids[token])}
    return inputs


# Attention scores are asked for where windows still hold several cells: cells that are alone in theirs all tie.
REDUCTIONS = {
    "illava": (il.get_strategy("illava")(), il.Schedule({0: 0.7, 1: 0.8, 3: 0.7}, {1: 0.6, 3: 0.5})),
    "tome": (il.get_strategy("tome")(), il.Schedule({0: 0.8, 1: 0.7, 2: 0.6})),
    "fastv": (il.get_strategy("fastv")(), il.Schedule(llm={2: 0.5, 3: 0.4})),
    "visionzip": (il.get_strategy("visionzip")(score="received", contextual=2), il.Schedule({3: 0.5})),
    "random": (il.get_strategy("random")(), il.Schedule({0: 0.6, 1: 0.7}, {2: 0.5})),
}
BATCHES = {
    "one image": [Prompt()],
    "two images": [Prompt(((0, 3, 4), (0, 2, 5)), seed=1)],
    "video": [Prompt(((3, 2, 3),), seed=2)],
    "left padding": [Prompt(((0, 2, 2), (2, 2, 3), (0, 3, 3)), 2, seed=3), Prompt((), 6, seed=4), Prompt(((0, 4, 3),), 5, seed=5)],
}


@pytest.fixture(scope="module", params=["qwen2-vl", "qwen2.5-vl"])
def model(request):
    return random_qwen(request.param)


@pytest.fixture(params=list(BATCHES))
def inputs(request) -> dict:
    return make_inputs(BATCHES[request.param])


@pytest.fixture(params=list(REDUCTIONS))
def reduction(request):
    return REDUCTIONS[request.param]


@torch.no_grad()
def forward(model, inputs) -> Tensor:
    return model(**inputs).logits[inputs["attention_mask"].bool()]


# ---------------------------------------------------------------------------------------------- identity
def test_keeping_everything_is_the_bare_model(model, inputs, reduction):
    strategy, schedule = reduction
    everything = il.Schedule(dict.fromkeys(schedule.encoder, 1.0), dict.fromkeys(schedule.llm, 1.0))
    logits, tokens = forward(model, inputs), model.generate(**inputs, max_new_tokens=4, **GREEDY)
    bare = structure(model)
    with il.attach(model, strategy, everything):
        assert torch.equal(forward(model, inputs), logits)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, **GREEDY), tokens)
    assert structure(model) == bare
    assert torch.equal(forward(model, inputs), logits)


# ---------------------------------------------------------------------------------------------- against the reference
@pytest.mark.parametrize(
    ("rule", "encoder", "llm"),
    [
        ("illava", {0: 0.7, 1: 0.7, 3: 0.6}, {1: 0.6, 3: 0.5}),
        ("tome", {0: 0.8, 1: 0.6, 2: 0.7}, {}),
        ("fastv", {}, {2: 0.5, 3: 0.4}),
    ],
)
@pytest.mark.parametrize("shown", [((0, 3, 4),), ((0, 3, 4), (0, 2, 5)), ((3, 2, 3), (0, 3, 3))], ids=str)
def test_generation_with_cache_equals_recomputation_by_hand(model, rule, encoder, llm, shown):
    """Packing, windows, rotary tables, holes, M-RoPE and cache, against one frame at a time and no cache."""
    inputs = make_inputs([Prompt(shown, seed=11)])
    prompt = inputs["input_ids"].shape[1]
    with il.attach(model, rule, il.Schedule(encoder, llm)):
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True, **GREEDY)
    pixels = {0: inputs.get("pixel_values"), 1: inputs.get("pixel_values_videos")}
    interval = getattr(model.config.vision_config, "tokens_per_second", 1)
    items = []
    for time, height, width in shown:
        video, slices = int(time > 0), max(time, 1)
        own, pixels[video] = pixels[video].split([n := 4 * slices * height * width, len(pixels[video]) - n])
        items.append((own, (slices, height, width), interval if video else 1))
    for step, got in enumerate(out.logits):
        ids = out.sequences[0, : prompt + step].tolist()
        want = reference_qwen.logits(model, ids, items, placeholder=PLACEHOLDERS, prompt=prompt, encoder=encoder, llm=llm,
                                     rule=rule, keep=lambda keep, count: kept(keep, count, ""))  # fmt: skip
        torch.testing.assert_close(got[0], want, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- cache
def test_each_cache_layer_is_as_long_as_what_the_layer_saw(model):
    inputs = make_inputs([Prompt(((0, 3, 4), (2, 2, 3)), seed=1)])
    text = inputs["input_ids"].shape[1] - 12 - 12
    with il.attach(model, "illava", il.Schedule({1: 0.5}, {1: 0.5, 3: 1})), torch.no_grad():
        cache = model(**inputs).past_key_values
        assert [cache.layers[i].keys.shape[2] for i in range(4)] == [text + n for n in (6 + 6, 3 + 3, 3 + 3, 1 + 1)]
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("search", [dict(), dict(num_beams=3), dict(num_beams=2, num_return_sequences=2)], ids=str)
def test_generation_is_the_same_with_and_without_cache(model, inputs, search):
    """Holds through the public API for a strategy whose choice does not depend on the growing text."""

    def cached_and_plain():
        return [model.generate(**inputs, max_new_tokens=5, use_cache=cache, **GREEDY, **search) for cache in (True, False)]

    several = (inputs["input_ids"] == START).sum(1).max() > 1
    if search and several and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("before transformers 5.23, beam search mixes up the images of a prompt with several, also bare")
    with il.attach(model, *REDUCTIONS["random"]):
        assert torch.equal(*cached_and_plain())


def test_a_kept_cache_continues_at_the_original_positions(model):
    """A second turn on the returned cache equals both turns recomputed at once, on the same kept tokens."""
    first, turn = make_inputs([Prompt(((0, 3, 4), (2, 2, 3)), seed=6)]), torch.tensor([[9, 10, 11]])
    length = first["input_ids"].shape[1]
    both = {**first, "input_ids": torch.cat([first["input_ids"], turn], 1)}
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    both["mm_token_type_ids"] = torch.nn.functional.pad(first["mm_token_type_ids"], (0, 3))
    with il.attach(model, *REDUCTIONS["random"]), torch.no_grad():
        cache = model(**first).past_key_values
        positions = model.model.get_rope_index(**{k: v for k, v in both.items() if not k.startswith("pixel")})[0][..., length:]
        got = model(input_ids=turn, past_key_values=cache, position_ids=positions).logits
        want = model(**both).logits[:, length:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- batch
SHOWN = st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(2, 4))


@given(
    prompts=st.lists(
        st.builds(Prompt, shown=st.lists(SHOWN, max_size=2).map(tuple), text_after=st.integers(1, 8), seed=st.integers(0, 99)),
        min_size=2, max_size=3,
    ),
    name=st.sampled_from(["tome", "fastv", "visionzip", "random"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_equals_its_prompts_alone(model, prompts, name):
    batch = make_inputs(prompts)
    with il.attach(model, *REDUCTIONS[name]), torch.no_grad():
        together = forward(model, batch)
        alone = torch.cat([forward(model, make_inputs([prompt])) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- mass and provenance
@given(
    name=st.sampled_from(["illava", "tome", "fastv", "random"]), shown=st.lists(SHOWN, min_size=1, max_size=2).map(tuple),
    first=st.floats(0.5, 1.0), second=st.floats(0.5, 1.0), llm=st.floats(0.1, 1.0), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cell_is_somewhere_exactly_once_or_dropped(model, name, shown, first, second, llm, seed):
    strategy = il.get_strategy(name)()
    encoder = {0: first, 1: second} if "encoder" in strategy.stages else {}
    schedule = il.Schedule(encoder, {2: llm} if "llm" in strategy.stages else {})
    try:
        with il.attach(model, strategy, schedule) as trace:
            forward(model, make_inputs([Prompt(shown, seed=seed)]))
    except il.LabError as error:
        assert name == "tome" and "merge at most" in str(error)
        return
    for image, (time, height, width) in enumerate(shown):
        assert trace.layout(image).tokens == max(time, 1) * height * width
        for steps in range(len(trace.steps) + 1):
            sources = trace.sources(image, steps)
            assert sources.grid == (height, width) and sources.crops == max(time, 1)
            torch.testing.assert_close(sources.weights.sum(1), torch.ones(len(sources.weights)).double())
            reached = (sources.weights != 0).sum(0)
            assert reached.max() == 1
            if name in ("illava", "tome") and all(step.stage == "encoder" for step in trace.steps[:steps]):
                assert reached.min() == 1, "a merging method drops no cell"
            assert (sources.weights.gather(1, sources.anchor[:, None]) > 0).all(), "a survivor contains its anchor"


class LargestNorm(il.Scorer):
    """Keeps the cells with the largest hidden states: those that are not black, if nothing else has been added yet."""

    name = "largest-norm"

    def score(self, tokens):
        return tokens.hidden.norm(dim=-1)


class FirstPlaces(il.Scorer):
    name = "first-places"

    def score(self, tokens):
        return -tokens.position.float()


def test_sources_point_at_the_pixels_that_were_kept(model):
    """From the processor's pixels to the boxes of the trace: two images of different size and a video, black but for a few
    white cells, which are what the strategy keeps."""
    model = copy.deepcopy(model)
    model.model.visual.blocks[0].attn.proj.weight.data.zero_()
    model.model.visual.blocks[0].attn.proj.bias.data.zero_()
    shown, white = ((0, 3, 4), (0, 2, 5), (2, 3, 2)), [{1, 10}, {0, 7}, {3, 8}]
    pictures = []
    for (time, height, width), cells in zip(shown, white, strict=True):
        picture = np.zeros((max(time, 1), height, width), dtype=np.uint8)
        picture.ravel()[list(cells)] = 255
        pictures.append(picture.repeat(2 * PATCH, axis=1).repeat(2 * PATCH, axis=2))
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, do_resize=False, do_normalize=False)
    inputs = make_inputs([Prompt(shown, seed=8)])
    images = processor([Image.fromarray(pictures[0][0]), Image.fromarray(pictures[1][0])], return_tensors="pt")
    frames = processor([Image.fromarray(frame) for frame in pictures[2]], return_tensors="pt")
    assert torch.equal(images["image_grid_thw"], inputs["image_grid_thw"])
    inputs |= {"pixel_values": images["pixel_values"], "pixel_values_videos": frames["pixel_values"]}
    with il.attach(model, LargestNorm(), il.Schedule({0: 0.2})) as trace:
        forward(model, inputs)
    for image, (picture, cells) in enumerate(zip(pictures, white, strict=True)):
        sources, kept_pixels = trace.sources(image), np.zeros_like(picture)
        assert sources.anchor.tolist() == sorted(cells)
        for survivor in range(len(sources.anchor)):
            for cell in sources.patches(survivor):
                left, top, right, bottom = (sources.boxes[cell] * torch.tensor([*picture.shape[:0:-1]] * 2)).round().int().tolist()
                assert (right - left, bottom - top) == (2 * PATCH, 2 * PATCH)
                kept_pixels[cell // (sources.grid[0] * sources.grid[1]), top:bottom, left:right] = 255
        assert np.array_equal(kept_pixels, picture)


def test_both_stages_count_cells_in_raster_order(model):
    """Also where the tower sorts cells by windows, and where a video is one image for the LLM but two for the encoder."""
    inputs = make_inputs([Prompt(((0, 3, 4), (2, 3, 3)), seed=1)])
    with il.attach(model, FirstPlaces(), il.Schedule({0: 6}, {2: 4})) as trace:
        forward(model, inputs)
    assert trace.sources(0, 1).anchor.tolist() == list(range(6))
    assert trace.sources(1, 2).anchor.tolist() == [*range(6), *range(9, 15)]
    assert [trace.sources(i).anchor.tolist() for i in (0, 1)] == [list(range(4))] * 2
    assert [(s.stage, s.layer, len(s.rows), s.before, s.after) for s in trace.steps] == [
        ("encoder", 0, 1, 12, 6), ("encoder", 0, 2, 9, 6), ("llm", 2, 1, 6, 4), ("llm", 2, 1, 12, 4),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- kernels
def test_layers_that_do_not_reduce_keep_their_attention(model):
    with il.attach(model, "illava", il.Schedule({1: 0.5}, {2: 0.5})):
        tapped = {
            name
            for name, module in model.named_modules()
            if name.endswith(("attn", "self_attn")) and module.config._attn_implementation != "sdpa"
        }
    assert tapped == {"model.visual.blocks.1.attn", "model.language_model.layers.1.self_attn"}


def test_eager_and_fused_attention_agree(reduction):
    for kind in ("qwen2-vl", "qwen2.5-vl"):
        out = []
        for attention in ("eager", "sdpa"):
            model = random_qwen(kind, attention)
            with il.attach(model, *reduction):
                out.append(forward(model, make_inputs(BATCHES["left padding"])))
        torch.testing.assert_close(*out, atol=1e-4, rtol=1e-4)


def test_bfloat16_runs(model, reduction):
    with il.attach(half := copy.deepcopy(model).bfloat16(), *reduction):
        assert forward(half, make_inputs(BATCHES["left padding"])).isfinite().all()


# ---------------------------------------------------------------------------------------------- restoration, refusals
def test_after_an_exception_inside_the_next_call_is_right_and_the_model_is_restored(model, inputs, reduction):
    bare, logits = structure(model), forward(model, inputs)
    with il.attach(model, *reduction):
        want = forward(model, inputs)
        with pytest.raises((RuntimeError, IndexError), match="must match|is invalid|out of bounds"):
            broken = {name: value[:-16] if name.startswith("pixel") else value for name, value in inputs.items()}
            model(**broken)
        assert torch.equal(forward(model, inputs), want)
    assert structure(model) == bare
    assert torch.equal(forward(model, inputs), logits)


def test_what_cannot_be_is_refused_clearly(model):
    inputs = make_inputs([Prompt(((0, 3, 4), (0, 2, 2)))])
    with pytest.raises(il.LabError, match="time, row and column"), il.attach(model, *REDUCTIONS["random"], positions="packed"):
        pass
    with pytest.raises(il.LabError, match="encoder layer 4 is out of range"), il.attach(model, "random", il.Schedule({4: 0.5})):
        pass
    with il.attach(model, "visionzip", il.Schedule({3: 0.5})), pytest.raises(il.LabError, match="needs a CLS token"):
        forward(model, inputs)
    with il.attach(model, "random", il.Schedule({0: 5})), pytest.raises(il.LabError, match="encoder layer 0: cannot keep 5 of 4"):
        forward(model, inputs)
    with il.attach(model, *REDUCTIONS["random"]), pytest.raises(il.LabError, match="static caches"):
        model.generate(**inputs, max_new_tokens=2, cache_implementation="static", **GREEDY)
    flash = copy.deepcopy(model)
    flash.model.visual.config._attn_implementation = "flash_attention_2"
    with pytest.raises(il.LabError, match="proportional attention"), il.attach(flash, *REDUCTIONS["tome"]):
        pass
