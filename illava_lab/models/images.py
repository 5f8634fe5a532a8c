"""Reading pictures: whatever a person hands over becomes 8-bit RGB, or is refused with a sentence that says why."""

from __future__ import annotations

from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from illava_lab.errors import LabError

ImageLike: TypeAlias = str | PathLike[str] | bytes | Image.Image


def read_image(source: ImageLike) -> Image.Image:
    """An 8-bit RGB picture from a path, encoded bytes or a PIL image.

    Camera rotation is applied, transparency is laid on white, CMYK and palette pictures are converted, 16-bit
    pictures are scaled to 8 bits.

    Raises:
        LabError: no such file, not a picture, a truncated one, or one with several frames.
    """
    name = "the image" if isinstance(source, (bytes, Image.Image)) else str(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, name)
    if isinstance(source, bytes):
        stream: BytesIO | Path = BytesIO(source)
    elif isinstance(source, (str, PathLike)):
        stream = Path(source)
        if not stream.is_file():
            raise LabError(f"no image file at {name!r}")
    else:
        raise LabError(f"an image must be a path, bytes or a PIL image, got {type(source).__name__}")
    try:
        with Image.open(stream) as opened:
            return _to_rgb(opened, name)
    except UnidentifiedImageError:
        raise LabError(f"{name} is not a picture in a format that can be read") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{name} cannot be read: {error}") from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise LabError(f"{name} is animated ({frames} frames); pass a single frame")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # PIL would clip everything above 255 to white.
        wide = np.asarray(image).astype(np.float64)
        return Image.fromarray((wide / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise LabError(f"{name} holds floating-point pixels, whose range is not known; convert it to 8 bits first")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
