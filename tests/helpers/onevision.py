"""A checkpoint of the kind that `il.load("embedded:onevision")` opens, with few random weights."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig

import illava_lab as il
from illava_lab.models import random_models
from illava_lab.models.processors import build_processor

SIDE, PATCH = 64, 8  # pixels of a crop, or a frame, and of a patch
PINPOINTS = [[64, 64], [64, 128], [128, 64], [128, 128]]
TEXT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=200, max_position_embeddings=4096, pad_token_id=0, bos_token_id=None, eos_token_id=2)  # fmt: skip
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=SIDE, patch_size=PATCH)  # fmt: skip
SPECIAL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<image>": 3, "<video>": 4}


@cache
def onevision_lab(seed: int = 0) -> il.Lab:
    """Its lab; answers end where chance has it, after some eight tokens, and mean nothing."""
    spec = copy.deepcopy(random_models._read("llava-onevision-0.5b"))
    config = spec["config"] | {"image_token_index": 3, "video_token_index": 4, "image_grid_pinpoints": PINPOINTS}
    config["vision_config"] |= VISION
    config["text_config"] |= TEXT
    settings, square = spec["processor"] | {"num_image_tokens": (SIDE // PATCH) ** 2}, {"height": SIDE, "width": SIDE}
    settings["image_processor"] |= {"size": square, "image_grid_pinpoints": PINPOINTS}
    settings["video_processor"] |= {"size": square}
    model = random_models.random_model(AutoConfig.for_model(**config), "cpu", torch.float32, seed)
    # Random weights as they come attend almost evenly; larger ones make every token matter.
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 1.0 if "embed_tokens" in name else 0.3, generator=draw)
    tokenizer = random_models._tokenizer(200, SPECIAL, None, "<|im_end|>", "<|endoftext|>", False)
    model.generation_config.update(eos_token_id=[2, *range(150, 175)], pad_token_id=0, do_sample=False)
    return il.Lab(model, build_processor(model.config, settings, tokenizer, spec["chat_template"]), "small onevision")


def save_onevision(folder: Path) -> Path:
    """The same as a folder."""
    lab = onevision_lab()
    lab.model.save_pretrained(folder)
    lab.processor.save_pretrained(folder)
    return folder
