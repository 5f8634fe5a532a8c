"""What the numbers of a decoded picture mean: every mode that Pillow knows becomes 8-bit RGB, as it is seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from illava_lab.errors import LabError

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of EXIF's Orientation (CIPA DC-008, 4.6.4)."""
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of EXIF and TIFF


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture of any mode as 8-bit RGB: upright, transparency on white, wide numbers scaled. Decodes it.

    Raises:
        LabError: numbers whose range is not known. A damaged picture raises whatever Pillow stumbles over.
    """
    tile = getattr(image, "tile", None)
    stored = str(tile[0][3]) if tile else ""  # such as "L;4": gone after loading
    _load(image)
    turn = _UPRIGHT.get(_orientation(image))
    image = _flat(image, stored, name)
    return image if turn is None else image.transpose(turn)


def _load(image: Image.Image) -> None:
    named = getattr(image, "filename", "")
    if not named or not getattr(image, "tile", None):
        image.load()
        return
    # Pillow maps a file that it knows by name into memory, and mixes up the sides of a turned TIFF.
    image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        image.filename = named  # type: ignore[attr-defined]


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # the picture may be fine though its EXIF is not; viewers show it as it is stored
        return None


def _flat(image: Image.Image, stored: str, name: str) -> Image.Image:
    mode = image.mode
    if mode == "F":
        raise LabError(f"{name} holds floating-point pixels, whose range is not known; convert it to 8 bits first")
    if mode == "I" or mode.startswith("I;"):
        return _from_wide(image, name)
    if mode == "La":
        image, mode = image.convert("LA"), "LA"
    clear = image.info.get("transparency") if mode in ("1", "L", "P", "RGB") else None
    if mode not in ("RGBA", "LA", "PA", "RGBa") and clear is None:
        return image.convert("RGB")
    if (same := _same_depth(clear, mode, stored)) != clear:
        image = image.copy()
        image.info["transparency"] = same
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _same_depth(clear: Any, mode: str, stored: str) -> Any:
    """The value that a PNG declares transparent, in the depth that Pillow gives its pixels: always 8 bits."""
    if mode == "RGB" and isinstance(clear, tuple) and (";16" in stored or max(clear) > 255):
        return tuple(value >> 8 for value in clear)
    if mode == "L" and isinstance(clear, int):
        return clear * {"L;2": 85, "L;4": 17}.get(stored, 1)
    return 255 if mode == "1" and clear == 1 else clear


def _from_wide(image: Image.Image, name: str) -> Image.Image:
    """Whole numbers of more than 8 bits. A file says how many; of others only their values tell."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(_BITS):
        top = 2 ** max(tags[_BITS]) - 1
    elif image.format not in (None, "TIFF"):
        top = 65535
    else:
        top = 255 if high <= 255 else 65535
    if low < 0 or high > top:
        raise LabError(
            f"{name} holds numbers from {low} to {high}, whose range is not known; convert it to 8 bits first"
        )
    levels = (np.arange(top + 1) * 255 / top).round().astype(np.uint8)
    if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        levels = levels[::-1]
    grey = levels[values]
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")
