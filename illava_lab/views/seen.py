"""What a model sees of pictures and films: what its processor makes of them, one view for each row of the encoder."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from illava_lab.models.families import describe
from illava_lab.models.layout import Layout
from illava_lab.models.video import ImageOrVideo, Video
from illava_lab.session.lab import Lab, read_shown

SIDE, QUALITY = 336, 82  # pixels, and WebP's scale to 100


@dataclass(frozen=True, eq=False)
class View:
    """One row of the encoder: a picture, a crop or tile of one, a frame, or what else is encoded by itself.

    Attributes:
        name: such as "picture 2, crop 1".
        picture: as the model sees it.
        grid: (height, width) in patches.
        window: left, top, right and bottom of the grid in the picture that the view is of, as fractions of that; a crop
            with padding may reach beyond it.
    """

    name: str
    picture: Image.Image
    grid: tuple[int, int]
    window: tuple[float, float, float, float]

    def webp(self) -> str:
        """The picture as a data: address, at most `SIDE` pixels wide and high."""
        return webp(self.picture)


def webp(picture: Image.Image) -> str:
    """A picture as a data: address, at most `SIDE` pixels wide and high."""
    small, buffer = picture.convert("RGB"), BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, "WEBP", quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def seen_views(
    lab: Lab, shown: Sequence[ImageOrVideo], layouts: Sequence[Layout], inputs: dict[str, Tensor]
) -> list[View]:
    """The views of one prompt, in the order in which `Trace` counts images and their rows.

    Args:
        shown: the images and videos of the prompt.
        layouts: what each is made of (`Trace.layout`).
        inputs: of this prompt alone (`Lab.inputs`).
    """
    crops = describe(lab.model).media["image"].pack is not None
    rows = {name: _rows(inputs[name]) for name in ("pixel_values", "pixel_values_videos") if name in inputs}
    views = []
    for number, (one, layout) in enumerate(zip(_counted(lab, read_shown(shown)), layouts, strict=True)):
        count, *grid = layout.patches
        film = isinstance(one, Video)
        pixels = rows["pixel_values_videos" if film else "pixel_values"]
        boxes = layout.boxes.view(count, *grid, 4)
        of = f"{'video' if film else 'picture'} {number + 1}" if len(layouts) > 1 else ""
        for row in range(count):
            seen = next(pixels, None)
            picture = _original(lab, one, row, count, grid) if seen is None else _picture(lab, seen)
            name = ", ".join(filter(None, (of, _part(film, row, count, boxes))))
            views.append(View(name or "picture", picture, (grid[0], grid[1]), window_of(boxes[row])))
        if not film and crops and inputs.get("pixel_values", torch.empty(0)).dim() == 5:
            for _ in range(inputs["pixel_values"].shape[1] - count):  # what pads pictures of fewer crops
                next(pixels)
    return views


def _counted(lab: Lab, shown: list[Image.Image | Video]) -> list[Image.Image | Video]:
    """What a trace counts: where frames are pictures to the model (InternVL), each of them."""
    if "video" in describe(lab.model).media:
        return shown
    counted: list[Image.Image | Video] = []
    for one in shown:
        counted += map(Image.fromarray, one.frames) if isinstance(one, Video) else [one]
    return counted


def _part(film: bool, row: int, count: int, boxes: Tensor) -> str:
    if count == 1:
        return ""
    if film:
        return f"frame {row + 1}"
    whole = bool((boxes[0, 0, 0, :2] <= 0).all() and (boxes[0, -1, -1, 2:] >= 1 - 1e-3).all())
    return "whole" if row == 0 and whole else f"crop {row if whole else row + 1}"


def _rows(pixels: Tensor) -> Iterator[Tensor]:
    """(3, H, W) of every row of the encoder; nothing where patches are packed and have no rows."""
    if pixels.dim() >= 4:
        yield from pixels.flatten(0, -4).float().cpu()


def _picture(lab: Lab, pixels: Tensor) -> Image.Image:
    """Normalised pixels as a picture."""
    processor = lab.processor.image_processor
    mean, std = (torch.tensor(value)[:, None, None] for value in (processor.image_mean, processor.image_std))
    return Image.fromarray(((pixels * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _original(lab: Lab, one: Image.Image | Video, row: int, count: int, grid: Sequence[int]) -> Image.Image:
    """What a tower for any size is given: the picture, or the frame that a temporal slice begins with, in its cells."""
    picture = Image.fromarray(one.frames[row * len(one) // count]) if isinstance(one, Video) else one
    cell = describe(lab.model).side[1]
    return picture.convert("RGB").resize((grid[1] * cell, grid[0] * cell), Image.Resampling.BICUBIC)


def window_of(boxes: Tensor) -> tuple[float, float, float, float]:
    """Where a grid of (height, width, 4) boxes lies, from those that are not cut off at the edge of the picture."""
    left, right = _extent(boxes[0, :, 0::2].double().numpy())
    top, bottom = _extent(boxes[:, 0, 1::2].double().numpy())
    return left, top, right, bottom


def _extent(edges: NDArray[np.float64]) -> tuple[float, float]:
    """Where equal pieces with these (n, 2) edges begin and end, the largest of which is whole."""
    size = edges[:, 1] - edges[:, 0]
    whole = int(size.argmax())
    first = edges[whole, 0] - whole * size[whole]
    return round(float(first), 4), round(float(first + len(size) * size[whole]), 4)
