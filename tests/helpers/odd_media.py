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
from helpers.odd_pictures import MODES, SIZES, damaged, drawn, encoded, films, writable
from PIL import Image

import illava_lab as il

SECONDS = 2.0


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
    while True:
        for kind in writable():
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
def damaged_pictures(rng: np.random.Generator, folder: Path) -> Iterator[Odd]:
    """Pictures and animations with a few bytes changed, under names that lie."""
    path = folder / "damaged.png"

    def read(data: bytes, source: Callable[[], Any]) -> Any:
        path.write_bytes(data)
        return il.read_image(source())

    while True:
        for kind in writable():
            data, _, what = encoded(kind, rng)
            data = damaged(data, rng)
            way, source = handed_over(data, path, rng)
            if way == "opened":  # that it opens at all is not for the lab to see to
                way, source = "path", lambda: path
            yield Odd(f"damaged {what} as {way}", lambda: read(data, source))


def damaged_films(rng: np.random.Generator, folder: Path) -> Iterator[Odd]:
    """Animations and films with a few bytes changed."""
    while True:
        for suffix, data in films():
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
