"""Small random LLaVAs, whose wiring is that of the large ones."""

from __future__ import annotations

import os

# Models this small gain little from threads, and lose much when the threads wait for cores that others use.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from helpers.qwen import END, IMAGE_TOKEN, PACKED, START, VIDEO_TOKEN, qwen_inputs, random_qwen
from helpers.qwen import SIZES as QWEN_SIZES
from helpers.reference import anyres_cells, frame_cells
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

import illava_lab as il
from illava_lab.method import registry


@pytest.fixture(autouse=True)
def registered():
    """What a test registers is gone after it."""
    before = dict(il.strategies())
    yield
    registry._registered.clear()
    registry._registered.update(before)


IMAGE_SIZE, PATCH = 48, 8
PATCHES = (IMAGE_SIZE // PATCH) ** 2
FRAMES = 3

VISION = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=5,
    num_attention_heads=4,
    image_size=IMAGE_SIZE,
    patch_size=PATCH,
)
TEXT = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip


# Few resolutions, as LLaVA-NeXT has; all up to 6 x 6 crops, of which `anyres_max_2` shrinks all above two, as OneVision.
NEXT_SIZES = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
ONEVISION_SIZES = [[48 * h, 48 * w] for h in range(1, 5) for w in range(1, 5)]
PICTURES = [(50, 100), (96, 96), (70, 40), (200, 60), (30, 20), (95, 130)]  # (height, width), with and without padding

KINDS = ("clip-llama", "siglip-qwen2", "next", "next-video", "onevision", "internvl", "smolvlm", *PACKED)
QUICK_KINDS = ("clip-llama", "onevision", "qwen2.5-vl")  # rows of one image, crops and frames, and packed with windows


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is tried on every kind of model is slow on all but three."""
    for item in items:
        kind = item.callspec.params.get("kind") if hasattr(item, "callspec") else None
        if kind in KINDS and kind not in QUICK_KINDS:
            item.add_marker(pytest.mark.slow)


def random_llava(kind: str, attention: str = "sdpa") -> PreTrainedModel:
    """A small float32 model in eval mode: "clip-llama" is as LLaVA-1.5 (CLS, second-last layer), "siglip-qwen2" has no
    CLS and uses the last layer, "next" is LLaVA-NeXT, "next-video" LLaVA-NeXT-Video, "onevision" LLaVA-OneVision, "internvl" and "smolvlm" have patches of
    half the side, which make as many visual tokens; others see `qwen`."""
    if kind in PACKED:
        return random_qwen(kind, attention)
    torch.manual_seed(0)
    clip = dict(
        vision_config=CLIPVisionConfig(**VISION), vision_feature_layer=-2, vision_feature_select_strategy="default"
    )
    siglip = dict(
        vision_config=SiglipVisionConfig(**VISION), vision_feature_layer=-1, vision_feature_select_strategy="full"
    )
    if kind == "clip-llama":
        config = LlavaConfig(**clip, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE_TOKEN)
        model = LlavaForConditionalGeneration
    elif kind == "siglip-qwen2":
        config = LlavaConfig(**siglip, text_config=Qwen2Config(**TEXT), image_token_index=IMAGE_TOKEN)
        model = LlavaForConditionalGeneration
    elif kind == "next":
        text = MistralConfig(**TEXT, sliding_window=None)
        config = LlavaNextConfig(
            **clip, text_config=text, image_token_index=IMAGE_TOKEN, image_grid_pinpoints=NEXT_SIZES
        )
        model = LlavaNextForConditionalGeneration
    elif kind == "next-video":
        config = LlavaNextVideoConfig(
            **clip, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE_TOKEN, video_token_index=VIDEO_TOKEN,
            image_grid_pinpoints=NEXT_SIZES,
        )  # fmt: skip
        model = LlavaNextVideoForConditionalGeneration
    elif kind == "internvl":
        vision = InternVLVisionConfig(**VISION | {"patch_size": PATCH // 2}, attention_bias=True)
        config = InternVLConfig(
            vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE_TOKEN, image_seq_length=PATCHES
        )
        model = InternVLForConditionalGeneration
    elif kind == "smolvlm":
        vision = SmolVLMVisionConfig(**VISION | {"patch_size": PATCH // 2})
        config = SmolVLMConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE_TOKEN)
        model = SmolVLMForConditionalGeneration
    else:
        config = LlavaOnevisionConfig(**siglip, text_config=Qwen2Config(**TEXT), image_token_index=IMAGE_TOKEN, video_token_index=VIDEO_TOKEN,
                                      image_grid_pinpoints=ONEVISION_SIZES, vision_aspect_ratio="anyres_max_2")  # fmt: skip
        model = LlavaOnevisionForConditionalGeneration
    config._attn_implementation = attention
    model = model(config).eval()
    # Random weights as they come attend almost evenly; larger ones make every token matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(
                part in name
                for part in (
                    "q_proj.weight",
                    "k_proj.weight",
                    "v_proj.weight",
                    "embed_tokens",
                    "lm_head",
                    "image_newline",
                )
            ):
                parameter.normal_(0.0, 0.3)
            if any(part in name for part in ("position_embeddings", "cls_token", "lambda_")):  # constants in InternVL
                parameter.normal_(0.3, 0.3)
    return model


shared_llava = cache(random_llava)


@dataclass
class Prompt:
    """One prompt: its videos and images in this order, and how much text follows the last. Sizes depend on the seed."""

    images: int = 1
    text_after: int = 5
    seed: int = 0
    videos: int = 0


def make_inputs(prompts: list[Prompt], kind: str = "clip-llama") -> dict[str, Tensor]:
    """Left-padded input_ids, attention_mask and pixels of several prompts, as the processor of a kind makes them."""
    if kind in PACKED:
        return qwen_inputs(kind, [_qwen_parts(prompt) for prompt in prompts], [prompt.seed for prompt in prompts])
    rows, pixels, image_sizes, videos = [], [], [], []
    for prompt in prompts:
        draw = torch.Generator().manual_seed(prompt.seed)
        text = lambda n: torch.randint(4, 63, (n,), generator=draw).tolist()
        row = [1, *text(2)]
        for _ in range(prompt.videos):
            each, newline = frame_cells(kind, IMAGE_SIZE // PATCH)
            row += [VIDEO_TOKEN] * (FRAMES * len(each) + newline) + text(1)
            videos.append(torch.randn(FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=draw))
        for number in range(prompt.images):
            size = PICTURES[(prompt.seed + number) % len(PICTURES)]
            crops, cells = picture(kind, size, several=prompt.images > 1)
            row += (_marked(crops) if kind == "smolvlm" else [IMAGE_TOKEN] * len(cells)) + text(1)
            pixels.append(torch.randn(crops, 3, IMAGE_SIZE, IMAGE_SIZE, generator=draw))
            image_sizes.append(size)
        rows.append(row + text(prompt.text_after))
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    if pixels and kind in ("clip-llama", "siglip-qwen2", "internvl"):
        inputs["pixel_values"] = torch.cat(pixels)
    elif pixels and kind == "smolvlm":
        counts = [prompt.images for prompt in prompts]
        tiles = [torch.cat(pixels[sum(counts[:i]) :][:n]) if n else pixels[0][:0] for i, n in enumerate(counts)]
        inputs["pixel_values"] = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True)
        seen = [torch.ones(len(own), IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool) for own in tiles]
        inputs["pixel_attention_mask"] = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True)
    elif pixels:
        inputs["pixel_values"] = torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True)
        inputs["image_sizes"] = torch.tensor(image_sizes)
        if kind == "onevision":
            inputs["batch_num_images"] = torch.tensor([prompt.images for prompt in prompts])
    return inputs


def _marked(tiles: int) -> list[int]:
    """SmolVLM's placeholders of one image: START in front of each tile and behind the last, END says the whole is shown."""
    return [token for tile in range(1, tiles + 1) for token in (START, END if tile == tiles else 60, *[IMAGE_TOKEN] * PATCHES)] + [START]  # fmt: skip


def _qwen_parts(prompt: Prompt) -> list:
    sizes = [QWEN_SIZES[(prompt.seed + number) % len(QWEN_SIZES)] for number in range(prompt.images + prompt.videos)]
    shown = [(IMAGE_TOKEN, 1, *size) for size in sizes[: prompt.images]] + [
        (VIDEO_TOKEN, FRAMES, *size) for size in sizes[prompt.images :]
    ]
    return [2, *(part for item in shown for part in (item, 1)), prompt.text_after]


def picture(kind: str, size: tuple[int, int], several: bool) -> tuple[int, list[dict[int, float]]]:
    """(crops, what each placeholder is made of) of an image of (height, width); `several`: in one prompt."""
    side = IMAGE_SIZE // PATCH
    plain = [{patch: 1.0} for patch in range(PATCHES)]
    if kind in ("next", "next-video"):
        return anyres_cells(size, NEXT_SIZES, IMAGE_SIZE, side)
    if kind == "onevision":
        return (1, [*plain, {}]) if several else anyres_cells(size, ONEVISION_SIZES, IMAGE_SIZE, side, most=2)
    if kind in ("internvl", "smolvlm"):  # two tiles but for a square; its patches are counted in cells
        tiles = 1 + (size[0] != size[1])
        return tiles, [{cell: 1.0} for cell in range(tiles * PATCHES)]
    return 1, plain


@pytest.fixture(scope="session", params=["clip-llama", "siglip-qwen2"])
def model(request: pytest.FixtureRequest) -> LlavaForConditionalGeneration:
    return random_llava(request.param)
