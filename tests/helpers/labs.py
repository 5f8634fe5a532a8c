"""Small labs of every family that has a processor here, with random weights: their text means nothing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from conftest import IMAGE_SIZE, PATCHES, random_llava
from helpers.checkpoints import scaled_down, skip_without_torchvision, trained_tokenizer
from PIL import Image
from transformers import InternVLConfig, PreTrainedTokenizerFast

import illava_lab as il
from illava_lab.models.processors import build_processor
from illava_lab.models.random_models import random_model

PUBLISHED = {
    "clip-llama": "llava-1.5-7b",
    "next": "llava-next-34b",
    "next-video": "llava-next-video-7b",
    "onevision": "llava-onevision-0.5b",
    "smolvlm": "smolvlm2-2.2b",
    "glm-4.1v": "glm-4.1v-9b",
    "qwen2-vl": "qwen2-vl-7b",
    "qwen2.5-vl": "qwen2-vl-7b",
}
LAB_KINDS = (*PUBLISHED, "internvl")

INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
INTERNVL_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{{ '<IMG_CONTEXT>\n' if c.type == 'image' else c.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def small_lab(kind: str) -> il.Lab:
    """A lab of one of `LAB_KINDS`, float32 on the CPU."""
    lab = _internvl() if kind == "internvl" else _published(kind)
    # Random weights as they come attend almost evenly; larger ones make every token matter.
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in lab.model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.normal_(0.0, 0.3, generator=draw)
    lab.model.generation_config.eos_token_id = None  # answers are as long as asked for
    return lab


def _published(kind: str) -> il.Lab:
    spec = scaled_down(PUBLISHED[kind])
    if kind == "smolvlm":
        skip_without_torchvision()
        spec["processor"]["image_processor"]["size"] = {"longest_edge": 768}  # four tiles and the whole, not sixteen
    if kind == "qwen2.5-vl":
        vision = {"depth": 3, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64}
        vision |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
        spec["config"] |= {"model_type": "qwen2_5_vl", "vision_config": vision}
        spec["config"]["text_config"]["model_type"] = "qwen2_5_vl_text"
    with TemporaryDirectory() as folder:
        (Path(folder) / "small.json").write_text(json.dumps(spec))
        return il.load(f"random:{Path(folder) / 'small.json'}")


def _internvl() -> il.Lab:
    special = [*INTERNVL_TOKENS.values(), "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(special).backend_tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        extra_special_tokens=INTERNVL_TOKENS,
    )
    base = random_llava("internvl").config.to_dict()
    base["text_config"]["vocab_size"] = len(tokenizer)
    config = InternVLConfig(**{**base, "image_token_id": tokenizer.context_image_token_id})
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    prepared = {"do_resize": True, "do_normalize": True, "size": size, "crop_to_patches": True, "max_patches": 6}
    settings = {
        "image_processor": {"image_processor_type": "GotOcr2ImageProcessor", **prepared},
        "video_processor": prepared,
        "image_seq_length": PATCHES,
    }
    processor = build_processor(config, settings, tokenizer, INTERNVL_TEMPLATE)
    model = random_model(config, "cpu", torch.float32)
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, do_sample=False)
    return il.Lab(model, processor, "random internvl")


def noise(height: int = 60, width: int = 90, seed: int = 0) -> Image.Image:
    """A picture that is no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
