"""Between the encoder and the prompt: where each placeholder of an image or a video comes from.

The encoder sees an image as one row of patches or as several (crops; the frames of a video). The prompt holds a run of
placeholders for it. In between, models stitch crops together, cut padding off, shrink or pool by interpolation, and
put markers (newlines) in. A `Layout` says all that of one image, an `EncodedImage` adds what a reduction left of it.

Markers are no visual tokens: they survive, are never merged, are never shown to a strategy, and no fraction or count of
a schedule counts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import numpy as np
import torch
from torch import Tensor

from illava_lab.method.brought import brought
from illava_lab.method.tokens import Medium as Medium


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the placeholders of one image or video come from when nothing is reduced. It depends on sizes only.

    Attributes:
        patches: (rows, height, width): encoder rows (crops or frames), and the patches of each. Patches are counted
            row after row, in raster order.
        source: (S, K) long, the patches that each of the S placeholders is interpolated from; K is 1 where none is.
        weight: (S, K) float32, with what weights: they sum to 1, and are all 0 for a marker.
        grid: (height, width) if the visual tokens are one grid in raster order, else None.
        boxes: (P, 4) float32, left, top, right and bottom of each patch as fractions of the picture; an empty
            rectangle for a patch of padding.
        parts: stretches of equally many visual tokens that are reduced each on its own (pooled frames of a video).
    """

    patches: tuple[int, int, int]
    source: Tensor
    weight: Tensor
    grid: tuple[int, int] | None
    boxes: Tensor
    parts: int = 1
    _moved: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict)
    _tiled: dict[int, Layout] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """S, the number of placeholders."""
        return self.source.shape[0]

    @cached_property
    def _empty(self) -> np.ndarray:  # on the host, also where tensors that are made have no values
        return np.asarray(self.weight.numpy().sum(1) == 0)

    @cached_property
    def marker(self) -> Tensor:
        """(S,) bool: placeholders that stand for no patch (newlines)."""
        return torch.from_numpy(self._empty)

    @cached_property
    def place(self) -> Tensor:
        """(S,) long: the number of each visual token in the image, markers not counted; -1 for a marker."""
        return ((~self.marker).cumsum(0) - 1).masked_fill(self.marker, -1)

    @cached_property
    def tokens(self) -> int:
        """Visual tokens before any reduction: placeholders without markers."""
        return int((~self._empty).sum())

    @property
    def frames(self) -> tuple[int, int]:
        """(frames of a video, visual tokens of each)."""
        return self.patches[0], self.tokens // self.patches[0]

    @property
    def has_markers(self) -> bool:
        return self.tokens < self.slots

    @property
    def interpolates(self) -> bool:
        """Whether a placeholder may stand for several patches."""
        return self.source.shape[1] > 1

    @cached_property
    def is_identity(self) -> bool:
        """Whether placeholder i stands for patch i, and there are no others."""
        return self.source.shape == (len(self.boxes), 1) and bool((self.source[:, 0].diff() == 1).all())

    @cached_property
    def sizes(self) -> Tensor:
        """(tokens,) float32: how many patches each visual token stands for when nothing is reduced."""
        source, weight = self.source.numpy(), self.weight.numpy()  # on the host, as above
        given = np.bincount(source.ravel(), weight.ravel(), len(self.boxes))
        share = weight / np.maximum(given, np.finfo(np.float32).tiny)[source]
        return torch.from_numpy(share.sum(1)[~self._empty].astype(np.float32))

    @cached_property
    def complete(self) -> bool:
        """Whether every patch is seen in the prompt: none lies in padding that is cut off."""
        return len(self.source[self.weight > 0].unique()) == len(self.boxes)

    @cached_property
    def key(self) -> Hashable:
        """Equal for layouts that are equal."""
        content = hashlib.sha256()
        for part in (self.source, self.weight, self.boxes):
            content.update(part.contiguous().cpu().numpy().tobytes())
        return self.patches, self.grid, self.parts, content.digest()

    def tiled(self, count: int) -> Layout:
        """Of `count` tiles that lie one after another in the prompt; made once."""
        if count not in self._tiled:
            rows, height, width = self.patches
            source = torch.cat([self.source + i * len(self.boxes) for i in range(count)])
            weight, boxes = self.weight.repeat(count, 1), self.boxes.repeat(count, 1)
            self._tiled[count] = Layout((count * rows, height, width), source, weight, None, boxes)
        return self._tiled[count]

    def left(self, kept: float) -> int:
        """Visual tokens that are expected when a fraction of the patches survived; see `survive`."""
        return self.parts * max(1, round(self.tokens / self.parts * kept))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`source` and `weight` on a device, copied there once."""
        source, weight, _, _ = self._on(device)
        return source, weight

    def marker_on(self, device: torch.device) -> Tensor:
        """`marker` on a device, copied there once."""
        return self._on(device)[2]

    def place_on(self, device: torch.device) -> Tensor:
        """`place` on a device, copied there once."""
        return self._on(device)[3]

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        def move() -> tuple[Tensor, ...]:
            if device not in self._moved:
                parts = self.source, self.weight, self.marker, self.place
                self._moved[device] = tuple(part.to(device) for part in parts)
            return self._moved[device]

        return brought(move)


def plain_layout(grid: tuple[int, int], side: tuple[int, int], rows: int = 1) -> Layout:
    """One placeholder for each patch, of rows that each show the whole picture.

    Args:
        side: (pixels of the picture the encoder sees, pixels of a patch), along one edge.
    """
    count = rows * grid[0] * grid[1]
    boxes = _whole(grid, side).repeat(rows, 1)
    source = torch.arange(count, dtype=torch.long, device="cpu")[:, None]
    weight = torch.ones((count, 1), dtype=torch.float32, device="cpu")
    return Layout((rows, *grid), source, weight, grid if rows == 1 else None, boxes)


def anyres_layout(
    pack: Callable[[Tensor, Tensor], Tensor], crops: int, size: tuple[int, int], canvas: tuple[int, int],
    grid: tuple[int, int], side: tuple[int, int],
) -> Layout:  # fmt: skip
    """The layout of an image that is seen whole (crop 0) and in crops, which are stitched, un-padded, shrunk.

    The model's own packing tells what it does: it runs on the coordinates of the patches instead of their features.
    Bilinear interpolation maps coordinates to interpolated ones, and those say between which patches a cell lies.

    Args:
        pack: the model's packing of one image: features (crops, P, 3) and a newline (3,) -> (S, 3).
        size: (height, width) of the picture in pixels.
        canvas: (height, width) in pixels that the crops cover together.
        grid, side: of one crop, see `plain_layout`.
    """
    height, width = grid
    pixels = side[0]
    across = canvas[1] // pixels
    crop, row, column = (axis.flatten() for axis in _axes(crops, height, width))
    detail = (crop > 0).long()
    y, x = row + detail * ((crop - 1) // across * height), column + detail * ((crop - 1) % across * width)
    coordinates = torch.stack([y, x, detail], dim=-1).double().view(crops, -1, 3)
    packed = pack(coordinates, torch.full((3,), torch.nan, dtype=torch.float64, device="cpu"))

    marker = packed[:, 0].isnan()
    y, x, detail = packed.nan_to_num().unbind(-1)
    (up, down), (left, right) = _between(y), _between(x)
    sources, weights = [], []
    for y, vertical in (up, down):
        for x, horizontal in (left, right):
            stitched = (1 + y // height * across + x // width) * height * width + y % height * width + x % width
            sources.append(torch.where(detail > 0.5, stitched, y * width + x))
            weights.append((vertical * horizontal).masked_fill(marker, 0.0).float())
    source, weight = torch.stack(sources, 1), torch.stack(weights, 1)
    if not weight[:, 1:].any():
        source, weight = source[:, :1], weight[:, :1]
    source = source.masked_fill(weight == 0, 0)
    one = grid if crops == 1 else None
    return Layout((crops, *grid), source, weight, one, _anyres_boxes(crops, size, canvas, grid, side))


def pooled_layout(pool: Callable[[Tensor], Tensor], grid: tuple[int, int], side: tuple[int, int]) -> Layout:
    """The layout of one video frame whose patches are pooled by interpolation. `pool`: (1, P, 3) -> (1, S, 3)."""

    def pack(features: Tensor, newline: Tensor) -> Tensor:
        return pool(features)[0]

    return anyres_layout(pack, 1, side[:1] * 2, side[:1] * 2, grid, side)


def joined_layout(frame: Layout, frames: int, newline: bool) -> Layout:
    """A video: `frames` frames one after another, and maybe a newline at the end."""
    per_frame, ends = frame.patches[1] * frame.patches[2], [frame.source[:1] * 0] * newline
    source = torch.cat([frame.source + i * per_frame for i in range(frames)] + ends)
    weight = torch.cat([frame.weight] * frames + [frame.weight[:1] * 0] * newline)
    return Layout((frames, *frame.patches[1:]), source, weight, None, frame.boxes.repeat(frames, 1), parts=frames)


def _axes(*lengths: int) -> tuple[Tensor, ...]:
    axes = (torch.arange(length, dtype=torch.long, device="cpu") for length in lengths)
    return torch.meshgrid(*axes, indexing="ij")


def _between(coordinate: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two whole coordinates around each one, with their weights. An offset below 1e-6 is rounding."""
    low = (coordinate + 1e-6).floor()
    share = (coordinate - low).clamp_min(0.0)
    share = share.masked_fill(share < 1e-6, 0.0)
    return (low.long(), 1 - share), (low.long() + 1, share)


def _whole(grid: tuple[int, int], side: tuple[int, int]) -> Tensor:
    """(P, 4) boxes of a crop that shows the whole picture."""
    row, column = (axis.flatten() for axis in _axes(*grid))
    return torch.stack([column, row, column + 1, row + 1], dim=1).float() * (side[1] / side[0])


def _anyres_boxes(
    crops: int, size: tuple[int, int], canvas: tuple[int, int], grid: tuple[int, int], side: tuple[int, int]
) -> Tensor:
    """(crops * P, 4) boxes: crop 0 is the picture resized to a square; the others tile a canvas, on which the picture
    lies resized with its proportions kept, centred (as the processors of LLaVA-NeXT and LLaVA-OneVision put it)."""
    whole = _whole(grid, side)
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    extent = [min(ceil(length * scale), edge) for length, edge in zip(size, canvas, strict=True)]
    start = [(edge - length) // 2 for length, edge in zip(extent, canvas, strict=True)]
    across, boxes = canvas[1] // side[0], [whole]
    for crop in range(crops - 1):
        corner = _numbers([crop % across, crop // across] * 2) * side[0]
        pixels = whole * side[0] + corner - _numbers(start[::-1] * 2)
        boxes.append((pixels / _numbers(extent[::-1] * 2)).clamp(0.0, 1.0))
    return torch.cat(boxes)


def _numbers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device="cpu")
