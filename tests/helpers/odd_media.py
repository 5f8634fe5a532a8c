"""Odd pictures and films by the thousand, from a seed: every format and mode, handed over in every way, whole and damaged.

Of each the same is asked: within two seconds it is read, or a `LabError` says why not in one line that a terminal can
show. More of them than a test has time for:

    PYTHONPATH=tests python -m helpers.odd_media --seed 7 --count 5000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.films import ANIMATED, animation, film
from PIL import Image

import illava_lab as il

SECONDS = 2.0
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


@dataclass(frozen=True)
class Odd:
    """Something to be read.

    Attributes:
        name: what it is, for the report of a failure.
        read: reads it.
        size: (width, height) that it must have if it is read; None where any is right.
        must: it has to be read.
    """

    name: str
    read: Callable[[], Any]
    size: tuple[int, int] | None = None
    must: bool = False


def judge(odd: Odd) -> str | None:
    """What is wrong with how one of them is treated, or None."""
    start = time.perf_counter()
    fault = None
    try:
        read = odd.read()
    except il.LabError as error:
        said = str(error)
        if not said.isprintable() or not said or len(said) > 600:
            fault = f"is refused with {said!r}"
        elif odd.must:
            fault = f"must be read, but is refused: {said}"
    except Exception as error:
        fault = f"raises {type(error).__name__}: {error}"
    else:
        fault = _wrong(read, odd.size)
    seconds = time.perf_counter() - start
    if fault is None and seconds > SECONDS:
        fault = f"takes {seconds:.1f} s"
    return None if fault is None else f"{odd.name} {fault}"


def refused(read: Callable[..., Any], *arguments: Any) -> str:
    """The sentence with which something is refused: within two seconds, on one line that a terminal can show."""
    start = time.perf_counter()
    with pytest.raises(il.LabError) as caught:
        read(*arguments)
    assert time.perf_counter() - start < SECONDS
    said = str(caught.value)
    assert said.isprintable() and len(said) < 600
    return said


def _wrong(read: Any, size: tuple[int, int] | None) -> str | None:
    if isinstance(read, il.Video):
        good = read.frames.ndim == 4 and read.frames.shape[-1] == 3 and read.frames.dtype == np.uint8
        return None if good and min(read.frames.shape) > 0 else f"is read as {read.frames.shape} {read.frames.dtype}"
    if not isinstance(read, Image.Image) or read.mode != "RGB" or min(read.size) < 1:
        return f"is read as {read!r}"
    return None if size in (None, read.size) else f"is read as {read.size}, not {size}"


# ---------------------------------------------------------------------------------------------- whole pictures
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


def handed_over(data: bytes, path: Path, rng: np.random.Generator) -> tuple[str, Callable[[], Any]]:
    """An encoded picture as a path, bytes, an open file and so on."""
    ways: dict[str, Callable[[], Any]] = {
        "bytes": lambda: data,
        "bytearray": lambda: bytearray(data),
        "BytesIO": lambda: BytesIO(data),
        "path": lambda: path,
        "text": lambda: str(path),
        "file": lambda: path.open("rb"),
        "opened": lambda: Image.open(BytesIO(data)),
    }
    way = str(rng.choice(list(ways)))
    return way, ways[way]


def whole_pictures(rng: np.random.Generator, folder: Path) -> Iterator[Odd]:
    """Intact pictures in every format, mode and way of handing them over."""
    number = 0
    Image.init()
    while True:
        for kind in STILLS:
            if kind not in Image.SAVE:  # an older Pillow
                continue
            number += 1
            data, size, what = encoded(kind, rng)
            path = folder / f"whole{number}{rng.choice(['.png', '.jpg', '', '.film'])}"
            path.write_bytes(data)
            way, source = handed_over(data, path, rng)
            floats = " F " in what
            yield Odd(f"{what} as {way}", lambda: il.read_image(source()), None if floats else size, must=not floats)
        mode, size = str(rng.choice(MODES)), SIZES[rng.integers(len(SIZES))]
        image = drawn(mode, size, rng)
        yield Odd(f"a picture in memory, {mode} {size}", lambda: il.read_image(image), size, must=mode != "F")
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        yield Odd(f"an array {pixels.shape}", lambda: il.read_image(pixels), size, must=True)
        yield Odd(f"a tensor {pixels.shape}", lambda: il.read_image(torch.from_numpy(pixels)), size, must=True)


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


def damaged_pictures(rng: np.random.Generator, folder: Path) -> Iterator[Odd]:
    """Pictures and animations with a few bytes changed, under names that lie."""
    path = folder / "damaged.png"

    def read(data: bytes, source: Callable[[], Any]) -> Any:
        path.write_bytes(data)
        return il.read_image(source())

    Image.init()
    while True:
        for kind in STILLS:
            if kind in Image.SAVE:
                data, _, what = encoded(kind, rng)
                data = damaged(data, rng)
                way, source = handed_over(data, path, rng)
                if way == "opened":  # that it opens at all is not for the lab to see to
                    way, source = "path", lambda: path
                yield Odd(f"damaged {what} as {way}", lambda: read(data, source))


def damaged_films(rng: np.random.Generator, folder: Path) -> Iterator[Odd]:
    """Animations and films with a few bytes changed."""
    Image.init()
    sources = [
        (f".{kind.lower()}", animation(kind, [drawn("RGB", (24, 16), rng) for _ in range(int(rng.integers(2, 6)))]))
        for kind in ANIMATED
        if kind in Image.SAVE_ALL
    ]
    try:
        for suffix, codec in FILMS.items():
            path = film(folder / f"film.{suffix}", list(range(20, 240, 18)), codec)
            sources.append((f".{suffix}", path.read_bytes()))
    except ImportError:
        pass
    while True:
        for suffix, data in sources:
            path = folder / f"damaged{suffix}"
            content = damaged(data, rng)

            def read(path: Path = path, content: bytes = content) -> Any:
                path.write_bytes(content)
                return il.read_video(path, frames=2)

            yield Odd(f"damaged film {suffix}", read)


KINDS = {"whole": whole_pictures, "damaged": damaged_pictures, "films": damaged_films}


def faults(kind: str, seed: int, count: int, folder: Path) -> Iterator[str]:
    """What is wrong with the first `count` of a kind; each can be had again from its seed and number."""
    odd = KINDS[kind](np.random.default_rng(seed), folder)
    for number in range(count):
        fault = judge(next(odd))
        if fault is not None:
            yield f"{kind} seed {seed} number {number}: {fault}"


def main() -> int:
    """Print every fault; the exit status is 1 if there is one."""
    from tempfile import TemporaryDirectory

    parser = argparse.ArgumentParser(description="Try odd pictures and films.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="of each kind")
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    options = parser.parse_args()
    found = 0
    with TemporaryDirectory() as folder:
        for kind in options.kind or KINDS:
            for fault in faults(kind, options.seed, options.count, Path(folder)):
                print(fault.encode("unicode_escape").decode(), flush=True)
                found += 1
    print(f"{found} faults")
    return min(found, 1)


if __name__ == "__main__":
    raise SystemExit(main())
