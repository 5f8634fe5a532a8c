"""Qwen2-VL and Qwen2.5-VL: the invariants of every attachment on packed vision sequences, windows, M-RoPE and videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import reference_qwen
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


REDUCTIONS = {
    "illava": (il.get_strategy("illava")(), il.Schedule({0: 0.7, 1: 0.8, 2: 0.7}, {1: 0.6, 3: 0.5})),
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
        ("illava", {0: 0.7, 1: 0.7, 2: 0.6}, {1: 0.6, 3: 0.5}),
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
