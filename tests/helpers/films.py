"""Small films and animations, made on the spot."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ANIMATED: dict[str, dict[str, Any]] = {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}, "AVIF": {}}


def film(path: Path, levels: list[int], codec: str, size: tuple[int, int] = (64, 48), fps: int = 10) -> Path:
    """A film whose frames are flat greys, with noise so that they take some bytes."""
    import av

    width, height = size
    rng = np.random.default_rng(len(levels))
    # Matroska would get a random name of its own.
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=25 if codec == "mpeg1video" else fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 400_000
        for index, level in enumerate(levels):
            pixels = np.full((height, width, 3), level, np.int16) + rng.integers(-20, 21, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def animation(kind: str, frames: list[Image.Image]) -> bytes:
    """A moving picture, a tenth of a second a frame."""
    stream = BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=100, **ANIMATED[kind])
    return stream.getvalue()
