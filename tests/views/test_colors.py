"""One colour for one thing: places, methods, and pictures that follow the rule."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import illava_lab as il
from illava_lab.method.registry import OWN
from illava_lab.trace.sources import Sources
from illava_lab.views.colors import LARGEST, METHODS, grid_rgb, look, looks, place_oklab, place_rgb
from illava_lab.views.pictures import CELL, token_picture


def test_places_are_told_apart_evenly() -> None:
    x, y = np.meshgrid(np.linspace(0, 1, 15), np.linspace(0, 1, 15))
    lab = place_oklab(x, y)
    across, down = (np.linalg.norm(np.diff(lab, axis=axis), axis=-1) for axis in (1, 0))
    assert np.ptp(across) < 1e-9 and np.ptp(down) < 1e-9, "equal steps are equally large wherever they are"
    assert 0.015 < down.min() < across.min() < 2 * down.min(), "and about the same in both directions"
    assert (np.diff(lab[:, 0, 0]) < 0).all(), "the lightness says how high"
    # Who cannot tell red from green has blue to yellow for left to right.
    assert (np.diff(lab[0, :, 2]) > 0).all()
    assert len(np.unique(grid_rgb((27, 27)), axis=0)) == 27 * 27
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):  # no colour lies outside sRGB, where it would be cut off
        again = _oklab(place_rgb(*corner))
        assert np.allclose(again, place_oklab(*corner), atol=0.004)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """The other way round, by the inverse of Ottosson's matrices."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]) @ linear  # fmt: skip
    return np.array([
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]) @ np.cbrt(cones)  # fmt: skip


def test_a_crop_has_the_colors_of_its_place_in_the_picture() -> None:
    whole, quarter = grid_rgb((8, 8)).reshape(8, 8, 3), grid_rgb((4, 4), (0.5, 0.0, 1.0, 0.5)).reshape(4, 4, 3)
    assert np.array_equal(whole[:4, 4:], quarter)


def test_every_method_has_a_look_of_its_own() -> None:
    own = {name for name, cls in il.strategies().items() if cls.__module__.startswith(f"{OWN}.")}
    assert own == set(METHODS), "a new method needs a row in illava_lab/views/colors.py"
    assert len(set(METHODS.values())) == len(METHODS)
    names = ["mine", "illava", "illava(ramp='size')", "illava(ramp='uniform')", "tome", *(f"s{i}" for i in range(25))]
    drawn = looks(names)
    assert list(drawn) == names and len(set(drawn.values())) == len(names)
    assert drawn["illava"] == METHODS["illava"] and drawn["illava(ramp='size')"].color == METHODS["illava"].color
    assert look("illava(ramp='size')") == METHODS["illava"], "by itself it looks like its method"
    assert looks(["x", "mine"])["mine"] == looks(["mine"])["mine"] == drawn["mine"] not in METHODS.values()


def test_a_picture_of_tokens_shows_groups_in_the_color_of_their_place() -> None:
    side = 14
    weights = torch.eye(side * side, dtype=torch.float64)
    weights[20, [21, 34]] = 0.3  # patches 21 and 34 are in the token at 20
    keep = torch.tensor([patch for patch in range(side * side) if patch not in (21, 34, 100)])
    boxes = torch.tensor([[c, r, c + 1, r + 1] for r in range(side) for c in range(side)]) / side
    sources = Sources(weights[keep], keep, (side, side), boxes)
    photo = Image.new("RGB", (side, side), (200, 40, 40))
    cells = np.asarray(token_picture(photo, sources)).reshape(side, CELL, side, CELL, 3).swapaxes(1, 2)
    middle = cells.reshape(-1, CELL, CELL, 3)[:, CELL // 2, CELL // 2].astype(int)
    grey = photo.convert("L").getpixel((0, 0))
    assert np.ptp(middle[0]) == 0 and middle[0, 0] == grey, "a token for itself leaves the photograph, in grey"
    want = 0.4 * grey + 0.6 * grid_rgb((side, side))[20]
    for patch in (21, 34):
        assert np.abs(middle[patch] - want).max() <= 1
    assert middle[100].max() < 0.2 * grey, "what has fallen is dark"
    # Of many groups the largest are filled, and none of two that are equally large has an advantage.
    first = [*range(0, 75, 3), *range(75, 195, 2), 195]
    groups = torch.zeros(len(first), side * side, dtype=torch.float64)
    for group, (start, end) in enumerate(pairwise([*first, side * side])):
        groups[group, start:end] = 1 / (end - start)
    many = Sources(groups, torch.tensor(first), (side, side), boxes)
    cells = np.asarray(token_picture(photo, many)).reshape(side, CELL, side, CELL, 3).swapaxes(1, 2)
    middle = cells.reshape(-1, CELL, CELL, 3)[[start + 1 for start in first[:-1]], CELL // 2, CELL // 2].astype(int)
    assert LARGEST < 25 and np.array_equal(np.ptp(middle, axis=1) > 0, np.arange(85) < 25)


@pytest.mark.parametrize("name", ["illava", "none", "my-own"])
def test_plots_use_the_table(name: str) -> None:
    rows = [{"strategy": one, "keep": 0.5, "flops": None, "accuracy": 0.9, "difference": 0.0, "difference_low": 0.0,
             "difference_high": 0.0, "prefill_flops": 1.0, "tokens": 1.0, "prefill_ratio": 1.0, "status": "ok"}
            for one in dict.fromkeys(["none", name])]  # fmt: skip
    figure = il.plots.tradeoff(pd.DataFrame(rows))
    line = next(trace for trace in figure.data if trace.name == name)
    assert look(name).color in (line.line.color, line.marker.color)
