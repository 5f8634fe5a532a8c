"""From the encoder's rows to placeholders and back to pixels: layouts against a plain restatement, real processors."""

from __future__ import annotations

from dataclasses import field

import numpy as np
import pytest
import torch
from conftest import (
    FRAMES,
    IMAGE_SIZE,
    IMAGE_TOKEN,
    PATCH,
    PATCHES,
    VIDEO_TOKEN,
    Prompt,
    make_inputs,
    picture,
    shared_llava,
)
from helpers.attached import has_video
from helpers.reference import frame_cells, pooled_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

import illava_lab as il
from illava_lab.models.families import describe
from illava_lab.views.pictures import CELL, token_picture

SIDE = IMAGE_SIZE // PATCH
KINDS = ("clip-llama", "siglip-qwen2", "next", "onevision")  # the LLaVA kin
TILED = ("internvl", "smolvlm")


# ---------------------------------------------------------------------------------------------- layouts
def cells_of(layout) -> list[dict[int, float]]:
    return [
        {int(patch): float(weight) for patch, weight in zip(source, weights, strict=True) if weight > 0}
        for source, weights in zip(layout.source, layout.weight, strict=True)
    ]


def agree(got: list[dict[int, float]], want: list[dict[int, float]]) -> bool:
    return len(got) == len(want) and all(a == pytest.approx(b, abs=1e-5) for a, b in zip(got, want, strict=True))


def prompt_of(kind: str, sizes: list[tuple[int, int]]) -> tuple[dict[str, torch.Tensor], list[list[dict[int, float]]]]:
    """Inputs of one prompt with images of these sizes, and what their placeholders are made of."""
    crops, cells = zip(*[picture(kind, size, len(sizes) > 1) for size in sizes], strict=True)
    row = [1, *(token for own in cells for token in [*[IMAGE_TOKEN] * len(own), 5]), 6]
    pixels = torch.randn(len(sizes), max(crops), 3, IMAGE_SIZE, IMAGE_SIZE)
    inputs = {"input_ids": torch.tensor([row]), "pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
    return inputs | ({"batch_num_images": torch.tensor([len(sizes)])} if kind == "onevision" else {}), list(cells)


@pytest.mark.parametrize("kind", ["next", "onevision"])
@given(sizes=st.lists(st.tuples(st.integers(8, 400), st.integers(8, 400)), min_size=1, max_size=2))
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_a_layout_is_what_the_papers_rule_says(kind, sizes):
    """The model itself refuses a prompt with other numbers of placeholders than its packing makes features."""
    inputs, cells = prompt_of(kind, sizes)
    model = shared_llava(kind)
    with il.attach(model, "none") as trace:
        model(**inputs)
    for image, own in enumerate(cells):
        assert agree(cells_of(trace.layout(image)), own)
        assert trace.layout(image).marker.tolist() == [not cell for cell in own]


@pytest.mark.parametrize("kind", ["onevision", "next-video"])
@torch.no_grad()
def test_a_video_is_pooled_frames_and_maybe_a_newline(kind):
    model, inputs = shared_llava(kind), make_inputs([Prompt(1, videos=1)], kind)
    with il.attach(model, "none") as trace:
        model(**inputs)
    frame, newline = frame_cells(kind, SIDE)
    want = [{patch + i * PATCHES: weight for patch, weight in cell.items()} for i in range(FRAMES) for cell in frame]
    assert agree(cells_of(trace.layout(0)), [*want, *[{}] * newline])
    assert trace.layout(1).patches[0] > 1, "the image comes second, as in the prompt"


# ---------------------------------------------------------------------------------------------- what the LLM sees
class Look(il.Strategy):
    """Keeps the first tokens, and remembers what it was shown in the LLM."""

    name = "look"
    seen: list = field(default_factory=list)

    def map(self, tokens, keep):
        if tokens.stage == "llm":
            self.seen.append(tokens)
        return il.TokenMap.keep(torch.arange(keep).expand(tokens.batch, -1), tokens.count)


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [(kind, Prompt(seed=3)) for kind in (*KINDS, *TILED)]
    + [("onevision", Prompt(0, videos=1)), ("next-video", Prompt(0, videos=1))],
)
@pytest.mark.parametrize("keep", [0.5, 0.25])
@torch.no_grad()
def test_the_llm_gets_the_fraction_that_was_asked_for(kind, prompt, keep):
    """Interpolation would let nearly all tokens outlive half of their patches. Of a video every frame keeps its share."""
    model, inputs, strategy = shared_llava(kind), make_inputs([prompt], kind), il.get_strategy("stride")()
    with il.attach(model, strategy, il.Schedule({1: keep})) as trace:
        cache = model(**inputs).past_key_values
    layout = trace.layout(0)
    left = cache.layers[-1].keys.shape[2] - (inputs["input_ids"].shape[1] - layout.tokens)
    assert left == len(trace.sources(0).anchor)
    if layout.source.shape[1] > 1 or kind != "next":  # no survivors can be cut off with padding
        parts = FRAMES if prompt.videos else 1
        assert left == parts * round(keep * layout.tokens / parts)
    assert left == pytest.approx(keep * layout.tokens, rel=0.15)


@torch.no_grad()
def test_a_budget_holds_for_images_of_any_size():
    for kind in ("next", "onevision"):
        model = shared_llava(kind)
        schedule = il.Schedule.for_budget("random", model, keep=0.4)
        inputs = make_inputs([Prompt(seed=1), Prompt(2, seed=3)], kind)
        with il.attach(model, "random", schedule) as trace:
            model(**inputs)
        for image in range(3):
            assert len(trace.sources(image).anchor) == pytest.approx(0.4 * trace.layout(image).tokens, rel=0.12)
    expected = schedule.tokens(describe(model), trace.layout(1))
    assert expected["llm"][-1] == len(trace.sources(1).anchor)


@pytest.mark.parametrize("kind", [*KINDS, "next-video", *TILED])
@torch.no_grad()
def test_sizes_places_and_grids(kind):
    """Every patch that is still there is in exactly one size; places count visual tokens, without newlines."""
    model, inputs = shared_llava(kind), make_inputs([Prompt(1, seed=5, videos=int(has_video(kind)))], kind)
    for encoder in ({}, {1: 20}):
        look = Look()
        with il.attach(model, look, il.Schedule(encoder, {1: 1.0})) as trace:
            model(**inputs)
        assert len(look.seen) == len(trace.steps) - sum(step.stage == "encoder" for step in trace.steps)
        for tokens, step in zip(look.seen, trace.steps[-len(look.seen) :], strict=True):
            image, layout = step.rows[0], trace.layout(step.rows[0])
            reached = (trace.sources(image).weights != 0).any(0).sum()
            assert tokens.size.sum().item() == pytest.approx(reached.item(), rel=1e-5)
            assert (tokens.position.diff() > 0).all() and tokens.position.max() < layout.tokens
            assert tokens.grid == ((SIDE, SIDE) if layout.patches[0] == 1 and layout.source.shape[1] == 1 else None)
            if not encoder:
                assert torch.equal(tokens.position[0], torch.arange(layout.tokens))


class ReadText(il.Strategy):
    """Keeps the first tokens, and remembers the text that it was shown in the LLM."""

    name = "read-text"
    seen: list = field(default_factory=list)

    def map(self, tokens, keep):
        if tokens.stage == "llm":
            self.seen.append((tokens.text_hidden, tokens.text_rows))
        return il.TokenMap.keep(torch.arange(keep).expand(tokens.batch, -1), tokens.count)


@torch.no_grad()
def test_text_after_an_image_is_text_and_nothing_else():
    """Of two images the first has six text tokens behind it, the second five; another prompt is shorter."""
    model, strategy, entering = shared_llava("clip-llama"), ReadText(), []
    layer = model.model.language_model.layers[1]
    with il.attach(model, strategy, il.Schedule({0: 20}, {1: 1.0})) as trace:
        hook = layer.register_forward_pre_hook(lambda module, args, kwargs: entering.append(args[0]), with_kwargs=True)
        model(**make_inputs([Prompt(2, 4), Prompt(1, 4)]))
        hook.remove()
    # The sequence ends with 20 visual tokens, a text token, 20 visual ones, five text tokens; the other row ends alike.
    after = {0: [-26, *range(-5, 0)], 1: range(-5, 0), 2: range(-5, 0)}
    assert [list(step.rows) for step in trace.steps[1:]] == [[1, 2], [0]], "equally much text is asked for at once"
    for (hidden, rows), step in zip(strategy.seen, trace.steps[1:], strict=True):
        for i, image in enumerate(step.rows):
            assert torch.equal(hidden[i], entering[0][image // 2, list(after[image])])
            assert rows[i].shape == (len(after[image]), 20)


# ---------------------------------------------------------------------------------------------- back to pixels
KNOWN = [2, 9, 20, 21, 35]


class KeepKnown(il.Strategy):
    """Keeps the patches KNOWN of every crop."""

    name = "keep-known"

    def map(self, tokens, keep):
        kept = (tokens.position[0] < 0) | torch.isin(tokens.position[0], torch.tensor(KNOWN))
        return il.TokenMap.keep(torch.nonzero(kept)[:, 0].expand(tokens.batch, -1), tokens.count)


def gradient(size: tuple[int, int], blue: float = 0.0) -> Image.Image:
    """Red tells how far right a pixel is, green how far down."""
    y, x = np.mgrid[: size[0], : size[1]]
    channels = [(x + 0.5) / size[1], (y + 0.5) / size[0], np.full(size, blue)]
    return Image.fromarray((np.stack(channels, -1) * 255).round().astype(np.uint8))


def processor(kind: str, config):
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    common = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=Image.Resampling.BILINEAR)
    if kind == "next":
        return LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size=size,
            image_grid_pinpoints=config.image_grid_pinpoints,
            **common,
        )
    if kind == "onevision":
        return LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=config.image_grid_pinpoints, **common)
    return CLIPImageProcessorPil(size=size, crop_size=size, **common)


@pytest.mark.parametrize("sizes", [[(100, 220)], [(60, 60)], [(150, 70), (90, 200)]])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_known_patches_lead_back_to_their_pixels(kind, sizes, tmp_path):
    """Through a saved and re-loaded model and processor: each surviving token shows the pixels that were kept."""
    made = shared_llava(kind)
    made.save_pretrained(tmp_path)
    processor(kind, made.config).save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    images = [gradient(size) for size in sizes]
    pixels = type(processor(kind, made.config)).from_pretrained(tmp_path)(images, return_tensors="pt")
    pixels.pop("batch_num_images", None)
    inputs, cells = prompt_of(kind, sizes)
    inputs = {
        name: value
        for name, value in inputs.items()
        if name in ("input_ids", *(("batch_num_images",) if kind == "onevision" else ()))
    }
    if kind == "onevision" and len(sizes) > 1:
        pixels["pixel_values"] = pixels["pixel_values"][:, :1]
    with il.attach(model, KeepKnown(), il.Schedule({2: len(KNOWN)})) as trace:
        model(**inputs, **pixels)
    for image, own in enumerate(cells):
        sources = trace.sources(image)
        shown = {patch for survivor in range(len(sources.anchor)) for patch in sources.patches(survivor)}
        in_prompt = {patch for cell in own for patch in cell}
        known = {patch for patch in in_prompt if patch % PATCHES in KNOWN}
        interpolated = trace.layout(image).source.shape[1] > 1
        assert shown <= known if interpolated else shown == known
        assert {patch for patch in shown if patch < PATCHES} == set(KNOWN), "the whole picture comes first"
        for patch in shown:
            same_pixels(pixels["pixel_values"][image].view(-1, 3, IMAGE_SIZE, IMAGE_SIZE), patch, sources)


def same_pixels(crops: torch.Tensor, patch: int, sources) -> None:
    """The pixels of a patch have the colours of its box: of the place in the picture where that says they lie."""
    crop, (row, column) = patch // PATCHES, divmod(patch % PATCHES, SIDE)
    seen = crops[crop][:2, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] * 0.5 + 0.5
    left, top, right, bottom = sources.boxes.unbind(1)
    area = (right - left) * (bottom - top)
    if area[patch] == 0:
        assert (seen == 0).all(), "padding"
    elif crop == 0 or area[patch] > 0.99 * area[PATCHES:].max():  # no padding in it
        assert seen[0].mean().item() == pytest.approx((left + right)[patch].item() / 2, abs=0.02)
        assert seen[1].mean().item() == pytest.approx((top + bottom)[patch].item() / 2, abs=0.02)


@torch.no_grad()
def test_known_patches_of_a_video_lead_back_to_their_frames():
    model, shades = shared_llava("onevision"), [0.2, 0.5, 0.8]
    frames = [
        torch.from_numpy(np.array(gradient((IMAGE_SIZE, IMAGE_SIZE), shade))).permute(2, 0, 1) / 127.5 - 1
        for shade in shades
    ]
    slots = len(shades) * len(pooled_cells(SIDE)) + 1
    inputs = {
        "input_ids": torch.tensor([[1, *[VIDEO_TOKEN] * slots, 5]]),
        "pixel_values_videos": torch.stack(frames)[None],
    }
    with il.attach(model, KeepKnown(), il.Schedule({2: len(KNOWN)})) as trace:
        model(**inputs)
    sources = trace.sources(0)
    shown = [patch for survivor in range(len(sources.anchor)) for patch in sources.patches(survivor)]
    assert {patch % PATCHES for patch in shown} <= set(KNOWN) and sources.crops == len(shades)
    assert {patch // PATCHES for patch in shown} == {0, 1, 2}
    for patch in shown:
        same_pixels(torch.stack(frames), patch, sources) if patch < PATCHES else None
        row, column = divmod(patch % PATCHES, SIDE)
        blue = inputs["pixel_values_videos"][0, patch // PATCHES, 2, row * PATCH, column * PATCH]
        assert blue * 0.5 + 0.5 == pytest.approx(shades[patch // PATCHES], abs=0.01)


@torch.no_grad()
def test_one_crop_alone_can_be_drawn():
    model = shared_llava("next")
    with il.attach(model, "illava", il.Schedule({0: 20}, {2: 0.4})) as trace:
        model(**make_inputs([Prompt(seed=3)], "next"))
    whole = trace.sources(0)
    for number in range(whole.crops):
        crop = whole.crop(number)
        own = whole.weights[:, number * PATCHES : (number + 1) * PATCHES]
        assert torch.equal(crop.weights, own[own.any(1)])
        assert (crop.weights.gather(1, crop.anchor[:, None]) > 0).all()
        assert token_picture(gradient((IMAGE_SIZE, IMAGE_SIZE)), crop).size == (SIDE * CELL, SIDE * CELL)


@pytest.mark.parametrize("kind", [*KINDS, "next-video", *TILED])
@torch.no_grad()
def test_the_trace_of_a_batch_is_that_of_its_prompts(kind):
    model, schedule = shared_llava(kind), il.Schedule({0: 0.8, 1: 0.7}, {1: 0.7, 3: 0.6})
    prompts = [Prompt(2, seed=1), Prompt(1, seed=2, videos=int(has_video(kind))), Prompt(1, seed=3)]
    with il.attach(model, "illava", schedule) as trace:
        alone = []
        for prompt in prompts:
            model(**make_inputs([prompt], kind))
            alone += [trace.sources(image) for image in range(trace.images_per_row[0])]
        model(**make_inputs(prompts, kind))
        assert sum(trace.images_per_row) == len(alone)
        for image, want in enumerate(alone):
            torch.testing.assert_close(trace.sources(image).weights, want.weights, atol=1e-6, rtol=1e-6)
            assert torch.equal(trace.sources(image).anchor, want.anchor) and torch.equal(
                trace.sources(image).boxes, want.boxes
            )
