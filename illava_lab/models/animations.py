"""Animated GIF, WebP, PNG, AVIF and pages of TIFF, read with Pillow: when each frame is shown, and the wanted ones."""

from __future__ import annotations

import numpy as np
from PIL import Image

from illava_lab.errors import LabError
from illava_lab.models.images import ONE_PICTURE, check_size
from illava_lab.models.pixels import to_rgb

MOST_FRAME_PIXELS = 2**25
"""Of one frame of an animation or a film: 8K."""
MOST_FRAMES = 10_000
MOST_DECODED = 1_000_000_000
"""Pixels of all frames of an animation together: to know when a frame is shown, all before it have to be decoded."""


def animation_times(image: Image.Image, name: str) -> tuple[list[float], float]:
    """When each frame of an opened animation starts, and when the last one ends, in seconds.

    Raises:
        LabError: a still picture, frames that are too large or too many. A damaged file raises whatever Pillow
            stumbles over.
    """
    if image.format in ONE_PICTURE or not getattr(image, "is_animated", False):
        raise LabError(f"{name} is a still picture, not a video")
    starts: list[float] = []
    duration, decoded = 0.0, 0
    try:
        while True:
            image.seek(len(starts))
            check_size(*image.size, f"a frame of {name}", MOST_FRAME_PIXELS)
            decoded += image.width * image.height
            if len(starts) == MOST_FRAMES or decoded > MOST_DECODED:
                raise LabError(
                    f"{name} is too long for an animation: at most {MOST_FRAMES} frames and "
                    f"{MOST_DECODED // 10**6} million pixels in all of them are read; make a film of it"
                )
            image.load()  # WebP tells how long a frame is shown only then
            starts.append(duration)
            # Browsers show a frame that gives no duration for a tenth of a second.
            duration += (image.info.get("duration") or 100) / 1000
    except EOFError:
        return starts, duration


def animation_frames(image: Image.Image, chosen: list[int], name: str) -> list[np.ndarray]:
    """The chosen frames (ascending indices, possibly repeated), each (height, width, 3) of uint8."""
    pictures: list[np.ndarray] = []
    for number, index in enumerate(chosen):
        if number and index == chosen[number - 1]:
            pictures.append(pictures[-1])
            continue
        image.seek(index)
        image.load()
        pictures.append(np.asarray(to_rgb(image.copy(), name)))
    return pictures
