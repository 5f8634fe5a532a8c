"""What models of published size are shown: `at_size.py` counts it, `gpu.py` times it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

import illava_lab as il


class Prompt(NamedTuple):
    """A configuration of `data/configs/`, and a black picture (height, width) or video (frames, height, width)."""

    model: str
    shows: str
    shape: tuple[int, ...]

    def shown(self) -> Image.Image | il.Video:
        pixels = np.zeros((*self.shape, 3), dtype=np.uint8)
        return il.read_video(pixels, frames=len(pixels)) if len(self.shape) == 3 else Image.fromarray(pixels)


PROMPTS = [
    Prompt("llava-1.5-7b", "one picture of 336 x 336", (336, 336)),
    Prompt("llava-1.5-13b", "one picture of 336 x 336", (336, 336)),
    Prompt("llava-next-34b", "one picture of 672 x 672 in five crops", (672, 672)),
    Prompt("llava-onevision-7b", "one picture of 1152 x 1152 in ten crops", (1152, 1152)),
    Prompt("llava-onevision-7b", "a video of 32 frames", (32, 384, 384)),
    Prompt("qwen2-vl-7b", "one picture of 1176 x 1176", (1176, 1176)),
]
PRESETS = (
    "illava-image", "illava-video", "illava-qwen2-vl", "illava-2026-67", "illava-2026-89",
    "fastv", "fastv-75", "tome-16", "visionzip-192", "visionzip-64",
)  # fmt: skip
