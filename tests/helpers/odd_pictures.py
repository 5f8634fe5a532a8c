"""Odd pictures and films, each a file from a seed: every format and mode, whole and with a few bytes changed."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from helpers.films import ANIMATED, animation, film
from PIL import Image

SIZES = [(1, 1), (1, 40), (40, 1), (7, 3), (16, 16), (31, 18), (64, 48)]  # (width, height)
# format -> modes that it can hold, and options of saving
STILLS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "AVIF": (("RGB", "RGBA"), {}),
    "BMP": (("1", "L", "P", "RGB"), {}),
    "DDS": (("L", "RGB", "RGBA"), {}),
    "GIF": (("L", "P"), {}),
    "ICO": (("RGB", "RGBA"), {"sizes": [(16, 16)]}),
    "JPEG": (("L", "RGB", "CMYK"), {}),
    "JPEG2000": (("L", "RGB", "RGBA", "I;16"), {}),
    "MPO": (("RGB",), {}),
    "PCX": (("1", "L", "P", "RGB"), {}),
    "PNG": (("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), {}),
    "PPM": (("1", "L", "RGB", "I;16"), {}),
    "SGI": (("L", "RGB", "RGBA"), {}),
    "TGA": (("L", "LA", "P", "RGB", "RGBA"), {}),
    "TIFF": (("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"), {}),
    "WEBP": (("RGB", "RGBA"), {}),
}
FILMS = {"mp4": "libx264", "mov": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "avi": "mpeg4", "mpg": "mpeg1video"}
MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F",
)  # fmt: skip


def odd_picture(seed: int, target: Path) -> Path:
    """Write a picture to `target`, the same one for a seed: whole or damaged, whatever the name says. Returns `target`."""
    rng = np.random.default_rng(seed)
    data, _, _ = encoded(str(rng.choice(writable())), rng)
    target.write_bytes(data if rng.random() < 0.2 else damaged(data, rng))
    return target


def odd_film(seed: int, target: Path) -> Path:
    """Write a film or an animation to `target`, the same one for a seed: whole or damaged. Returns `target`."""
    rng = np.random.default_rng(seed)
    sources = films()
    _, data = sources[rng.integers(len(sources))]
    target.write_bytes(data if rng.random() < 0.1 else damaged(data, rng))
    return target


# ---------------------------------------------------------------------------------------------- whole ones
def writable() -> list[str]:
    """The formats that this Pillow can write."""
    Image.init()
    return [kind for kind in STILLS if kind in Image.SAVE]


@cache
def films() -> tuple[tuple[str, bytes], ...]:
    """(suffix, file) of a small animation and a small film in each format; without films where PyAV is missing."""
    Image.init()
    rng = np.random.default_rng(0)
    made = [
        (f".{kind.lower()}", animation(kind, [drawn("RGB", (24, 16), rng) for _ in range(count)]))
        for kind in ANIMATED
        if kind in Image.SAVE_ALL
        for count in (2, 5)
    ]
    try:
        with TemporaryDirectory() as folder:
            for suffix, codec in FILMS.items():
                path = film(Path(folder) / f"film.{suffix}", list(range(20, 240, 18)), codec)
                made.append((f".{suffix}", path.read_bytes()))
    except ImportError:
        pass
    return tuple(made)


def drawn(mode: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A picture of noise in any mode."""
    width, height = size
    noise = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("I", "I;16"):
        top = rng.choice([256, 4096, 65536])
        kind = np.int32 if mode == "I" else np.uint16
        return Image.fromarray(rng.integers(0, top, (height, width)).astype(kind))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), dtype=np.float32))
    if mode in ("La", "RGBa", "LA", "PA"):
        rgba = Image.fromarray(noise)
        if mode == "RGBa":
            return rgba.convert("RGBa")
        grey = rgba.convert("LA")
        return grey.convert(mode) if mode != "PA" else rgba.convert("RGB").convert("P").convert("PA")
    rgb = Image.fromarray(noise[..., :3])
    if mode == "LAB":
        return Image.frombytes("LAB", size, noise[..., :3].tobytes())
    return Image.fromarray(noise) if mode == "RGBA" else rgb.convert(mode)


def encoded(kind: str, rng: np.random.Generator) -> tuple[bytes, tuple[int, int], str]:
    """(file, size as it is shown, what it is) of a whole picture in a format."""
    modes, options = STILLS[kind]
    mode = str(rng.choice(modes))
    size = (16, 16) if kind == "ICO" else SIZES[rng.integers(len(SIZES))]
    image, options = drawn(mode, size, rng), dict(options)
    turned = 1
    if kind in ("JPEG", "MPO", "PNG", "TIFF", "WEBP"):
        turned = int(rng.integers(1, 9))
        exif = Image.Exif()
        exif[0x0112] = turned
        options["exif"] = exif.tobytes() if kind != "TIFF" else exif
    if kind == "PNG" and mode in ("1", "L", "P", "RGB", "I;16") and rng.random() < 0.5:
        options["transparency"] = (1, 2, 3) if mode == "RGB" else 1
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [drawn(mode, (8, 8), rng)]}
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue(), size[::-1] if turned > 4 else size, f"{kind} {mode} {size} orientation {turned}"


# ---------------------------------------------------------------------------------------------- damaged ones
def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The same file, cut, flipped, overwritten, shortened or lengthened in places."""
    out = bytearray(data)
    # Where a format says how large things are is mostly near its beginning.
    place = lambda: int(min(len(out) - 1, rng.integers(len(out)) if rng.random() < 0.5 else rng.integers(64)))
    for _ in range(int(rng.integers(1, 5))):
        if len(out) < 2:
            break
        at, length = place(), int(rng.integers(1, 9))
        how = rng.integers(6)
        if how == 0:
            del out[at:]
        elif how == 1:
            out[at] ^= 1 << int(rng.integers(8))
        elif how == 2:
            out[at : at + length] = rng.bytes(length)
        elif how == 3:
            out[at : at + 4] = bytes(
                rng.choice([[0, 0, 0, 0], [255] * 4, [127, 255, 255, 255], [255, 255, 0, 0]]).tolist()
            )
        elif how == 4:
            del out[at : at + length]
        else:
            out[at:at] = out[at : at + 8 * length]
    return bytes(out)
