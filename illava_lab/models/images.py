"""Reading pictures: whatever a person hands over becomes 8-bit RGB, or is refused with a sentence that says why."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from illava_lab.errors import LabError
from illava_lab.models.pixels import to_rgb
from illava_lab.paths import is_file, quoted

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | BinaryIO | Image.Image | np.ndarray | Tensor"

MOST_PIXELS = 128_000_000
"""Of a picture that is read: what the largest phones and cameras make. One of them takes half a gigabyte."""
MOST_BYTES = 2**30
"""Of a stream that cannot go back to its start, such as a pipe."""

# Without EPS and WMF, which start other programs, formats that hold others (IPTC), and those without pixels.
# Which are there depends on Pillow and its plug-ins.
FORMATS = (
    "AVIF", "BLP", "BMP", "CUR", "DDS", "DIB", "FLI", "GIF", "HEIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "JXL",
    "MSP", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
ONE_PICTURE = ("MPO", "PSD")
"""Formats whose first picture is the whole one: phones put a preview or a depth map behind it, PSD its layers."""


def read_image(source: ImageLike) -> Image.Image:
    """An 8-bit RGB picture from a path, encoded bytes, an open file, a PIL image or an array.

    Camera rotation is applied, transparency is laid on white, CMYK and palette pictures are converted, 16-bit
    pictures are scaled to 8 bits. Of whole numbers that are not known to have 16 bits (mode "I", or "I;16" in memory),
    those up to 255 are taken as they are. Of a phone's picture with a second one behind it the first is read.

    Args:
        source: an array or tensor must be (height, width, 3) of uint8; a file must be opened in binary mode, and is
            read from its beginning.

    Raises:
        LabError: no such file, not a picture in a format that is read, a damaged one, one with several frames, without
            pixels or with more than 128 million, floating-point or other numbers whose range is not known.
    """
    if isinstance(source, Image.Image):
        return check_and_convert(source, "the image")
    if is_array(source):
        array = pixels_of(source, 3, "an image array")
        check_size(array.shape[1], array.shape[0], "the array")
        return Image.fromarray(np.ascontiguousarray(array))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(io.BytesIO(source), "the image")
    if isinstance(source, (str, os.PathLike)):
        name = quoted(source)
        if not is_file(source):
            hint = "; addresses are not fetched" if os.fsdecode(source).startswith(("data:", "http:", "https:")) else ""
            raise LabError(f"no image file at {name}{hint}")
        return _decoded(Path(os.fsdecode(source)), name)
    if hasattr(source, "read") and hasattr(source, "seek"):
        own = getattr(source, "name", None)
        return _decoded(cast("BinaryIO", source), quoted(own) if isinstance(own, str) else "the image")
    raise LabError(
        f"an image must be a path, bytes or a PIL image, got {type(source).__name__}; open files and arrays "
        "(height, width, 3) of uint8 are taken too"
    )


def is_array(source: Any) -> bool:
    """Whether it is a NumPy array or a tensor. Who hands a tensor over has loaded torch, which takes seconds."""
    torch = sys.modules.get("torch")
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


def pixels_of(source: Any, dimensions: int, what: str) -> np.ndarray:
    """An array or a tensor, from any device, as a NumPy array of uint8 whose last axis is RGB.

    Args:
        dimensions: 3 for a picture, 4 for a video.
        what: "an image array" or "a video array".

    Raises:
        LabError: another shape or type, or no pixels.
    """
    shape, kind = tuple(source.shape), str(source.dtype).removeprefix("torch.")
    if len(shape) != dimensions or shape[-1] != 3 or kind != "uint8" or 0 in shape[-3:]:
        axes = "(height, width, 3)" if dimensions == 3 else "(frames, height, width, 3)"
        note = ", whose range is not known" if "float" in kind else ", which has no pixels" if 0 in shape else ""
        raise LabError(f"{what} must be {axes} of uint8, got {shape} of {kind}{note}")
    try:
        return source if isinstance(source, np.ndarray) else source.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:  # such as one without data, on "meta"
        raise LabError(f"{what} on the device {str(source.device)!r} cannot be read: {reason(error)}") from None


def open_picture(stream: BinaryIO, leave_out: tuple[str, ...] = ()) -> Image.Image:
    """A picture of which only the header is read, in one of the formats that are safe."""
    Image.init()
    return Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN and name not in leave_out])


def check_and_convert(image: Image.Image, name: str) -> Image.Image:
    """An opened picture, or one in memory, as 8-bit RGB.

    Raises:
        LabError: see `read_image`.
    """
    try:
        check_size(*image.size, name)
        if (frames := count_frames(image)) != "1":
            raise LabError(f"{name} is animated ({frames} frames); pass a single frame")
        if getattr(image, "tile", None) and getattr(image, "fp", None) is None and hasattr(image, "fp"):
            raise LabError(f"{name} was closed before it was read")
        return to_rgb(image, name)
    except LabError:
        raise
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise LabError(f"{name} cannot be read: {reason(error)}") from None


def check_size(width: int, height: int, name: str, most: int = MOST_PIXELS) -> None:
    """Refuse pictures without pixels, and those too large to be read.

    Raises:
        LabError: names the size, and what is allowed.
    """
    if width < 1 or height < 1:
        raise LabError(f"{name} has no pixels: it is {width} x {height} (width x height)")
    if width * height > most:
        raise LabError(
            f"{name} has {width} x {height} pixels, which are {width * height / 1e6:.0f} million; at most "
            f"{most // 10**6} million are read"
        )


def count_frames(image: Image.Image) -> str:
    """How many frames a picture has; of pages in a chain, which may be endless, only the first hundred are counted."""
    if image.format in ONE_PICTURE or not getattr(image, "is_animated", False):
        return "1"
    if image.format != "TIFF":
        return str(getattr(image, "n_frames", 1))
    here = image.tell()
    try:
        for page in range(1, 101):
            image.seek(page)
    except EOFError:
        return str(page)
    finally:
        image.seek(here)
    return "more than 100"


def reason(error: BaseException) -> str:
    """Why something could not be read, in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        claimed = re.search(r"\d+", str(error))
        return f"it claims {claimed[0] if claimed else 'more'} pixels; at most {MOST_PIXELS // 10**6} million are read"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(said := getattr(error, "strerror", None), str):
        return said
    text = " ".join(str(error).split())
    # What a reader says on purpose; the others are its own mistakes, whose texts would tell nothing.
    meant = isinstance(error, (OSError, SyntaxError, ValueError, NotImplementedError))
    return text[:200] if meant and text else "its data is damaged"


def _decoded(source: Path | BinaryIO, name: str) -> Image.Image:
    try:
        # Pillow would map a file that it opens by name into memory, and then turns TIFFs wrongly.
        with source.open("rb") if isinstance(source, Path) else nullcontext(_rewindable(source, name)) as stream:
            return check_and_convert(open_picture(stream), name)
    except UnidentifiedImageError:
        raise LabError(
            f"{name} is not a picture in a format that can be read, such as JPEG, PNG, WebP, GIF, TIFF, BMP"
        ) from None
    except LabError:
        raise
    except Exception as error:
        raise LabError(f"{name} cannot be read: {reason(error)}") from None


def _rewindable(stream: BinaryIO, name: str) -> BinaryIO:
    if isinstance(stream, io.TextIOBase):
        raise LabError(f"{name} must be opened in binary mode, as open(path, 'rb') does")
    if getattr(stream, "seekable", lambda: True)():
        return stream
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise LabError(f"{name} goes on after {MOST_BYTES} bytes, the most that is read of a stream")
    return io.BytesIO(content)
