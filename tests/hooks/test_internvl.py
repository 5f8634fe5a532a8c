"""What InternVL and SmolVLM share: cells that a pixel shuffle joins, tiles that are one image, FLOPs; a processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, IMAGE_TOKEN, PATCH, PATCHES, TEXT, VISION, Prompt, make_inputs, shared_llava
from helpers.checkpoints import trained_tokenizer
from helpers.reference import parts_of
from PIL import Image
from torch.nn.functional import interpolate
from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.models.processors import build_processor
from illava_lab.models.random_models import random_model
from illava_lab.schedules.flops import prefill_flops
from illava_lab.sites.cells import cell_places

BOTH = pytest.mark.parametrize("family", ["internvl", pytest.param("smolvlm", marks=pytest.mark.slow)])


def one_tile(family: str) -> dict[str, torch.Tensor]:
    inputs = make_inputs([Prompt(seed=1)], family)
    assert inputs["pixel_values"].shape[:-3].numel() == 1
    return inputs


def test_cells_are_what_the_pixel_shuffle_joins():
    """The model's own shuffle tells: it runs on the numbers of the patches."""
    side, cpu = 2 * int(PATCHES**0.5), torch.device("cpu")
    numbers = torch.arange(1, 4 * PATCHES + 1).view(1, side, side, 1)
    shuffled = shared_llava("internvl").model.pixel_shuffle(numbers, 0.5).flatten(0, 2)
    assert torch.equal(shuffled, cell_places((6, 6), 2, 1, cpu)[1:])
    shuffled = shared_llava("smolvlm").model.connector.pixel_shuffle(numbers.view(1, -1, 1) - 1, 2)[0]
    assert torch.equal(shuffled, cell_places((6, 6), 2, 0, cpu))


@pytest.mark.parametrize("family", ["internvl", "smolvlm"])
@torch.no_grad()
def test_tiles_of_an_image_are_one_image_and_tiles_of_two_are_not(family):
    """Whether they touch in the prompt, or text says which comes next."""
    model = shared_llava(family)
    with il.attach(model, "fastv", il.Schedule({}, {2: 0.25})) as trace:
        model(**make_inputs([Prompt(2, seed=0), Prompt(1, seed=2)], family))  # two tiles, one; two
    assert trace.images_per_row == [2, 1]
    assert [trace.layout(i).patches for i in range(3)] == [(2, 6, 6), (1, 6, 6), (2, 6, 6)]
    assert [trace.layout(i).grid for i in range(3)] == [None, (6, 6), None]
    assert [len(trace.sources(i).anchor) for i in range(3)] == [18, 9, 18]


@BOTH
@pytest.mark.parametrize("name", ["illava", "tome", "fastv", "visionzip", "random", "downsample", "prumerge"])
@torch.no_grad()
def test_flops_are_what_torch_counts(name, family):
    if family == "smolvlm" and name in ("visionzip", "prumerge"):
        pytest.skip("its tower has no CLS token")
    model, inputs, strategy = shared_llava(family), one_tile(family), il.get_strategy(name)()
    for keep in (1.0, 0.5):
        schedule = il.Schedule.for_budget(strategy, model, keep=keep)
        counted = measure.cost(model, inputs, strategy, schedule).prefill_flops
        text = inputs["input_ids"].shape[1] - PATCHES
        assert prefill_flops(model, strategy, schedule, text_tokens=text) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "text", [LlamaConfig(**TEXT), Qwen3Config(**TEXT, head_dim=8)], ids=lambda text: text.model_type
)
@pytest.mark.parametrize(
    "tower", [dict(use_qk_norm=True, norm_type="rms_norm"), dict(use_mean_pooling=False)], ids=["6B", "norm"]
)
@pytest.mark.parametrize("layer", [-1, -2])
@torch.no_grad()
def test_other_decoders_towers_and_feature_layers(text, tower, layer):
    """Keeping everything is the bare model, what the LLM gets is the share that was asked for, the cache is right."""
    vision = InternVLVisionConfig(**VISION | {"patch_size": PATCH // 2}, **tower)
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=PATCHES,
        vision_feature_layer=layer,
    )
    model, inputs = random_model(config, "cpu", torch.float32), make_inputs([Prompt(2), Prompt()], "internvl")
    bare = model(**inputs).logits
    for name in ("illava", "tome"):
        with il.attach(model, name, il.Schedule({0: 1.0, 2: 1.0})):
            assert torch.equal(model(**inputs).logits, bare)
        with il.attach(model, name, il.Schedule({0: 0.75, 2: 18})) as trace:
            cached, plain = (
                model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False)
            )
        assert torch.equal(cached, plain)
        assert [len(trace.sources(image).anchor) for image in range(3)] == [36, 18, 36]


@BOTH
@pytest.mark.parametrize("size", [(4, 4), (5, 6)])
@torch.no_grad()
def test_a_smaller_tile_is_what_the_bare_tower_makes_of_it(size, family):
    """The projector sees the same features, in the same order, as from the tower on a shrunk picture alone."""
    model, inputs, seen = shared_llava(family), one_tile(family), []
    hook = lambda module, args, out: seen.append(out)
    projector = parts_of(model)[0]
    with il.attach(model, "downsample", il.Schedule(image=size[0] * size[1])):
        handle = getattr(projector, "proj", getattr(projector, "linear_2", None)).register_forward_hook(hook)
        model(**inputs)
        handle.remove()
    full = inputs["pixel_values"].flatten(0, -4)
    pixels = interpolate(full, (size[0] * PATCH, size[1] * PATCH), mode="bicubic", antialias=True)
    if family == "internvl":
        patches = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
    else:
        patches = model.model.vision_model(pixels).last_hidden_state
    grid = patches.unflatten(1, (size[0], 2, size[1], 2)).transpose(2, 3)  # cell by cell, each in raster order
    torch.testing.assert_close(seen[0], projector(grid.flatten(1, 2).flatten(2)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_tile_with_padding_in_it_is_refused_before_its_tower_runs():
    model, inputs = shared_llava("smolvlm"), one_tile("smolvlm")
    inputs["pixel_attention_mask"][..., 24:] = False
    assert model(**inputs).logits.isfinite().all()
    with il.attach(model, "illava", il.Schedule({1: 0.5})), pytest.raises(il.LabError, match="tiles with padding"):
        model(**inputs)


SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
PREPARED = {
    "do_resize": True,
    "do_normalize": True,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "crop_to_patches": True,
    "max_patches": 6,
}
TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{{ c.text or {'image': '<IMG_CONTEXT>', 'video': '<video>'}[c.type] }}"
    "\n{% endfor %}{% endfor %}"
)


def saved(folder: Path) -> Path:
    """A small checkpoint with a real processor."""
    words = trained_tokenizer(list(SPECIAL.values()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<pad>",
        extra_special_tokens=SPECIAL,
    )
    base = shared_llava("internvl").config.to_dict()
    base["text_config"]["vocab_size"] = len(tokenizer)
    config = InternVLConfig(**{**base, "image_token_id": tokenizer.context_image_token_id})
    settings = {
        "image_processor": {"image_processor_type": "GotOcr2ImageProcessor", **PREPARED},
        "video_processor": PREPARED,
        "image_seq_length": PATCHES,
    }
    build_processor(config, settings, tokenizer, TEMPLATE).save_pretrained(folder)
    random_model(config, "cpu", torch.float32).save_pretrained(folder)
    return folder


def test_a_saved_checkpoint_loads_with_its_processor_and_answers(tmp_path):
    """Without torchvision. A picture twice as wide as high is two tiles and a view of the whole, a square is one tile."""
    lab = il.load(str(saved(tmp_path)))
    config = lab.model.config
    wide, square = (Image.fromarray(np.full((60, width, 3), 99, np.uint8)) for width in (120, 60))
    inputs = lab.inputs([[wide, square], [square]], ["What is on the table?", "Why?"])
    assert (inputs["input_ids"] == config.image_token_id).sum(1).tolist() == [4 * PATCHES, PATCHES]
    answer = lab.ask([wide, square], "What is on the table?", "illava", keep=0.5, max_new_tokens=3)
    assert [len(answer.trace.sources(image).anchor) for image in range(2)] == [
        pytest.approx(1.5 * PATCHES, abs=2),
        PATCHES // 2,
    ]


def test_frames_of_a_film_are_pictures_behind_their_numbers(tmp_path):
    """Each is one tile, reduced on its own, and its pixels are those of the same picture."""
    lab, draw = il.load(str(saved(tmp_path))), np.random.default_rng(0)
    frames = draw.integers(0, 256, (3, 60, 60, 3), dtype=np.uint8)
    film, wide = il.read_video(frames, frames=3), Image.fromarray(np.full((60, 120, 3), 99, np.uint8))
    inputs = lab.inputs([[film, wide], [Image.fromarray(frames[1])]], ["What happens?", "Why?"])
    assert (inputs["input_ids"] == lab.model.config.image_token_id).sum(1).tolist() == [6 * PATCHES, PATCHES]
    torch.testing.assert_close(inputs["pixel_values"][1], inputs["pixel_values"][-1])
    text = lab.processor.batch_decode(inputs["input_ids"])[0]
    assert [text.count(f"Frame{number}: <img>") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    answer = lab.ask([film, wide], "What happens?", "illava", keep=0.5, max_new_tokens=3)
    assert answer.trace.images_per_row == [4]
    assert [len(answer.trace.sources(image).anchor) for image in range(3)] == [PATCHES // 2] * 3
    with pytest.raises(
        il.LabError, match="strategy 'evs' reduces videos, which this model does not take, or takes as pic"
    ):
        lab.ask(film, "What happens?", "evs", keep=0.5)
