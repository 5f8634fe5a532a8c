"""Which colour stands for what, in every figure: a token's place in the picture, a method, a part of the model.

The widgets' front-end has the rule for places once more, in `widgets/web/color.js`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A token has the colour of its place: across the picture the hue runs from blue over red to yellow, down the picture it
# gets darker, with the same chroma everywhere (Oklch). Steps of equal length are seen as about equally large, left and
# right differ in blue and yellow and top and bottom in lightness, which readers with any kind of colour vision tell
# apart, and no colour of the range lies outside sRGB.
HUES = (270.0, 450.0)  # degrees, at the left and at the right edge
LIGHTNESS = (0.80, 0.50)  # at the top and at the bottom
CHROMA = 0.1
LARGEST = 24  # groups of one picture that are filled with colour, and all as large; smaller ones have an outline

_TO_CONES = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)  # Oklab by Björn Ottosson


def place_oklab(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) the colour of places in a picture as Oklab; x and y run from 0 to 1, to the right and down."""
    across, down = (np.clip(np.asarray(value, float), 0.0, 1.0) for value in (x, y))
    hue = np.radians(HUES[0] + across * (HUES[1] - HUES[0]))
    lightness = LIGHTNESS[0] + down * (LIGHTNESS[1] - LIGHTNESS[0])
    return np.stack([lightness, CHROMA * np.cos(hue), CHROMA * np.sin(hue)], axis=-1)


def place_rgb(x: ArrayLike, y: ArrayLike) -> NDArray[np.uint8]:
    """(..., 3) the same as 8-bit sRGB."""
    linear = (place_oklab(x, y) @ np.transpose(_TO_CONES)) ** 3 @ np.transpose(_TO_RGB)
    linear = linear.clip(0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.floor(encoded * 255 + 0.5).astype(np.uint8)


def grid_rgb(grid: tuple[int, int], window: Sequence[float] = (0, 0, 1, 1)) -> NDArray[np.uint8]:
    """(height * width, 3) the colours of the patches of a grid, in raster order.

    Args:
        window: left, top, right and bottom of the grid in the picture, as fractions of it (a crop is not all of it).
    """
    height, width = grid
    left, top, right, bottom = window
    x = left + (np.arange(width) + 0.5) / width * (right - left)
    y = top + (np.arange(height) + 0.5) / height * (bottom - top)
    return place_rgb(*np.meshgrid(x, y)).reshape(-1, 3)


class Look(NamedTuple):
    """How a method is drawn.

    Attributes:
        color: of line and marker.
        marker: its name in plotly; `MARKERS` has matplotlib's.
    """

    color: str
    marker: str


# plotly's name -> matplotlib's.
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "x": "X", "star": "*",
    "cross": "P", "pentagon": "p", "hexagon": "h",
}  # fmt: skip

ROUND = ("circle", "pentagon", "hexagon")  # hardly told apart where they are small

# Okabe and Ito's palette without its yellow, which is too light for lines: told apart with every kind of colour vision.
BLUE, RED, GREEN, PINK, ORANGE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676"

# Families share a colour: iLLaVA red, merging blue, pruning by text green, by CLS pink, by diversity sky, none of these
# grey and orange, and so what drops what stands still in a video. No two methods share colour and marker.
METHODS: dict[str, Look] = {
    "none": Look(GREY, "circle"),
    "random": Look(GREY, "x"),
    "stride": Look(GREY, "square"),
    "downsample": Look(ORANGE, "square"),
    "pool": Look(ORANGE, "diamond"),
    "illava": Look(RED, "circle"),
    "illava-2026": Look(RED, "star"),
    "tally": Look(BLUE, "star"),
    "tome": Look(BLUE, "diamond"),
    "framefusion": Look(BLUE, "triangle-up"),
    "evs": Look(ORANGE, "triangle-up"),
    "dycoke": Look(ORANGE, "star"),
    "dart": Look(SKY, "triangle-down"),
    "divprune": Look(SKY, "circle"),
    "prunesid": Look(SKY, "star"),
    "scope": Look(SKY, "square"),
    "cdpruner": Look(GREEN, "diamond"),
    "fastv": Look(GREEN, "triangle-up"),
    "pyramiddrop": Look(GREEN, "triangle-down"),
    "sparsevlm": Look(GREEN, "star"),
    "fastervlm": Look(PINK, "triangle-up"),
    "prumerge": Look(PINK, "cross"),
    "prumerge+": Look(PINK, "x"),
    "visionzip": Look(PINK, "square"),
    "vispruner": Look(PINK, "star"),
    "flowcut": Look(PINK, "hexagon"),
    "holov": Look(PINK, "diamond"),
    "vscan": Look(PINK, "pentagon"),
}

# What no method of the lab has, for those of others: unusual markers first.
OTHERS = tuple(
    Look(color, marker)
    for marker in reversed(MARKERS)
    for color in (BLUE, RED, GREEN, PINK, ORANGE, SKY, GREY)
    if Look(color, marker) not in METHODS.values()
)


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """How each of the methods of one figure is drawn, by its name or label: no two alike, as long as there are looks.

    A method of the table looks the same everywhere. With other settings (``illava(score='lse')``) it keeps its colour,
    and has another marker where it stands beside itself. A method that is not in the table gets a look by its name.
    """
    names = list(dict.fromkeys(methods))
    out = {name: METHODS[name] for name in names if name in METHODS}
    for name in names:
        if name in out:
            continue
        own, start = METHODS.get(name.partition("(")[0]), crc32(name.encode())
        options = list(OTHERS)
        if own:
            options = [Look(own.color, marker) for marker in MARKERS if marker not in ROUND]
        options = options[start % len(options) :] + options[: start % len(options)]
        options = [*([own] if own else ()), *options, *OTHERS]
        out[name] = next((option for option in options if option not in out.values()), options[0])
    return {name: out[name] for name in names}


def look(method: str) -> Look:
    """How a method is drawn by itself."""
    return looks([method])[method]


# Parts of a model.
STAGES = {"encoder": BLUE, "projector": GREEN, "llm": RED}
BARE = "#d9d9d9"
