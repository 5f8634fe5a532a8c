"""A first question, prepared and never asked: what is wrong with a processor shows before any weight is read."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig, ProcessorMixin

from illava_lab.errors import LabError
from illava_lab.models.folder import reading
from illava_lab.models.processors import MOST_PREPARED, check_shape

EDGE = 56
QUESTION = "What is this?"
PATIENCE = 5.0
"""Seconds that a chat template may take for one question."""
MOST_TEXT = 100_000
"""Characters that it may make of it."""


def rehearse(processor: ProcessorMixin, config: PreTrainedConfig) -> Any:
    """Prepare a question about a small picture, and look whether it is one for the model. Returns the model's inputs.

    Raises:
        LabError: no chat template, a broken or endless one, one without a place for the image; a processor that
            prepares no pictures, or blows them up; tokens that the model does not have.
    """
    check_template(processor.chat_template)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    with reading("its chat template"), at_most(PATIENCE, "its chat template takes too long"):
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    if not isinstance(text, str) or QUESTION not in text:
        raise LabError("it has a chat template that leaves the question out")
    if len(text) > MOST_TEXT:
        raise LabError(f"it has a chat template that makes {len(text)} characters of one question")
    with reading("its processor"), np.errstate(all="ignore"):
        check_sizes(processor.image_processor)
        check_shape(processor, EDGE, EDGE)
        inputs = processor(
            images=[[Image.new("RGB", (EDGE, EDGE), "teal")]], text=[text], padding=True, return_tensors="pt",
            padding_side="left",
        )  # fmt: skip
        _check_inputs(inputs, config)
    return inputs


def check_template(template: Any) -> None:
    """Refuse what is no chat template, and one with powers in it, which jinja computes while it reads, however large.

    Raises:
        LabError: there is none, or it cannot be used.
    """
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise LabError("it has no chat template, so that no question can be put to it")
    with reading("its chat template"):
        for line, kind, value in jinja2.Environment().lex(template):
            if kind == "operator" and value == "**":
                raise LabError(f"it has a chat template that computes powers, in line {line}")


def check_sizes(settings: Any) -> None:
    """Refuse an image processor that would make more pixels of a picture than are prepared.

    Raises:
        LabError: names the setting.
    """
    area = getattr(settings, "merge_size", None) is not None  # Qwen's edges are areas
    for name in ("size", "crop_size", "pad_size", "max_image_size", "image_grid_pinpoints"):
        value = getattr(settings, name, None)
        for one in value if isinstance(value, list) and name == "image_grid_pinpoints" else [value]:
            if one is not None and _pixels(one, area) > MOST_PREPARED:
                raise LabError(
                    f"it has {name}={one!r:.80} in its image processor; "
                    f"at most {MOST_PREPARED // 10**6} million pixels are prepared"
                )
    for name in ("max_patches", "min_patches"):
        if getattr(settings, name, None) is not None and getattr(settings, name) > 1000:
            raise LabError(
                f"it has {name}={getattr(settings, name)!r:.80} in its image processor; at most 1000 are made"
            )


def _pixels(size: Any, area: bool) -> int:
    if isinstance(size, int):
        return size * size
    if isinstance(size, (list, tuple)):
        return int(size[0] * size[1])
    edges = dict(size)
    if edges.get("shortest_edge") is not None and area:
        return int(edges["shortest_edge"])
    edge = edges.get("shortest_edge") or (not area and edges.get("longest_edge")) or 1
    return int(edges.get("height") or edge) * int(edges.get("width") or edge)


def _check_inputs(inputs: Any, config: PreTrainedConfig) -> None:
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    vocabulary = config.get_text_config().vocab_size
    if ids.numel() == 0 or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise LabError(f"it has a tokenizer with ids that the model does not have, which knows {vocabulary}")
    if not bool((ids == config.image_token_id).any()):
        raise LabError(
            "it has a chat template or a tokenizer that leaves no place for the image: no token "
            f"{config.image_token_id}, which is image_token_id of its configuration"
        )
    if not pixels.is_floating_point() or not bool(torch.isfinite(pixels).all()):
        raise LabError("it has an image processor whose pixels are no finite numbers")


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """Stop Python that takes too long: every line of it that is run from here on looks at the clock.

    Raises:
        LabError: `what`, and how long it may take.
    """
    end, before = time.monotonic() + seconds, sys.gettrace()

    def look(frame: Any, event: str, arg: Any) -> Any:
        if time.monotonic() > end:
            sys.settrace(before)
            raise LabError(f"{what}: more than {seconds:.0f} seconds for one question")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
