"""A lab of every family, of few random weights and with the processor that its published checkpoints have."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from conftest import shared_llava
from helpers.checkpoints import scaled_down, skip_without_torchvision
from helpers.qwen import END, IMAGE_TOKEN, PATCH, QWENS, START, VIDEO_TOKEN
from transformers import AutoConfig

import illava_lab as il
from illava_lab.models import random_models
from illava_lab.models.processors import build_processor

PUBLISHED = {
    "llava": "llava-1.5-7b", "next": "llava-next-34b", "onevision": "llava-onevision-0.5b", "qwen2-vl": "qwen2-vl-7b",
    "next-video": "llava-next-video-7b", "smolvlm": "smolvlm2-2.2b", "glm-4.1v": "glm-4.1v-9b",
}  # fmt: skip
FAMILIES = (
    "embedded",
    *PUBLISHED,
    "internvl",
    "qwen2.5-vl",
    "qwen3-vl",
    *(kind for kind in QWENS if kind == "qwen3.5-vl"),
)

_QWEN: dict[str, Any] = {
    "processor": {
        "image_processor": {
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH, "merge_size": 2,
            "min_pixels": 256, "max_pixels": 4096,
        },
        "video_processor": {"patch_size": PATCH, "merge_size": 2, "min_pixels": 256, "max_pixels": 4096},
    },
    "special": {"<|image_pad|>": IMAGE_TOKEN, "<|video_pad|>": VIDEO_TOKEN, "<|vision_start|>": START,
                "<|vision_end|>": END},
    "shown": "'<|vision_start|><|' + c.type + '_pad|><|vision_end|>'",
}  # fmt: skip
_INTERN: dict[str, Any] = {
    "processor": {
        "image_processor": {
            "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 48, "width": 48},
            "crop_to_patches": True, "max_patches": 6,
        },
        "video_processor": {},
        "image_seq_length": 36,
    },
    "special": {"<IMG_CONTEXT>": IMAGE_TOKEN, "<video>": VIDEO_TOKEN, "<img>": START, "</img>": END},
    "shown": "{'image': '<IMG_CONTEXT>', 'video': '<video>'}[c.type]",
}  # fmt: skip


@cache
def small_lab(family: str) -> il.Lab:
    """A lab of the family; "embedded" is the one that comes with the package, with its real weights."""
    if family == "embedded":
        return il.load()
    if family in PUBLISHED:
        spec = scaled_down(PUBLISHED[family])
        if family == "smolvlm":
            skip_without_torchvision()
            spec["processor"]["image_processor"]["size"] = {
                "longest_edge": 768
            }  # four tiles and the whole, not sixteen
        config = AutoConfig.for_model(**spec["config"])
        tokenizer = random_models._tokenizer(config.get_text_config().vocab_size, **spec["tokenizer"])
        model = random_models.random_model(config, "cpu", torch.float32)
        return il.Lab(model, build_processor(config, spec["processor"], tokenizer, spec["chat_template"]), family)
    spec, model = _INTERN if family == "internvl" else _QWEN, shared_llava(family)
    tokenizer = random_models._tokenizer(64, spec["special"] | {"<eos>": 2}, None, "<eos>", "<eos>", False)
    tokenizer.start_image_token, tokenizer.end_image_token = "<img>", "</img>"
    tokenizer.start_image_token_id, tokenizer.end_image_token_id = START, END
    tokenizer.context_image_token, tokenizer.context_image_token_id = "<IMG_CONTEXT>", IMAGE_TOKEN
    tokenizer.video_token = "<video>"
    template = (
        "{% for m in messages %}{% for c in m.content %}{{ c.text if c.type == 'text' else " + spec["shown"] + " }}"
        "{% endfor %}{% endfor %}"
    )
    return il.Lab(model, build_processor(model.config, spec["processor"], tokenizer, template), family)
