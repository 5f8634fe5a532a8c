"""Which patches the survivors of one image stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sources:
    """Which patches the surviving visual tokens of one image or video stand for. Markers (newlines) are left out.

    Attributes:
        weights: (M, P) float64, row m = weight of every patch in survivor m (averaging maps: rows sum to 1). Patches
            are counted crop after crop (frame after frame), each in raster order.
        anchor: (M,) the patch in whose place each survivor stands; for an interpolated one, the heaviest there.
        grid: (height, width) in patches of one crop (or frame, or image without crops).
        boxes: (P, 4) left, top, right and bottom of each patch, as fractions of the picture it was cut from; an empty
            rectangle for a patch of padding.
    """

    weights: Tensor
    anchor: Tensor
    grid: tuple[int, int]
    boxes: Tensor

    @property
    def crops(self) -> int:
        """How many crops (frames) the patches lie in; patch p lies in crop p // (height * width)."""
        return self.weights.shape[1] // (self.grid[0] * self.grid[1])

    def crop(self, number: int) -> Sources:
        """The same for one crop (frame) alone: its patches, and the survivors that stand for any of them."""
        first, count = number * self.grid[0] * self.grid[1], self.grid[0] * self.grid[1]
        own = self.weights[:, first : first + count]
        inside = (self.anchor >= first) & (self.anchor < first + count)
        anchor = torch.where(inside, self.anchor - first, own.abs().argmax(1))
        here = (own != 0).any(1)
        return Sources(own[here], anchor[here], self.grid, self.boxes[first : first + count])

    def patches(self, survivor: int) -> list[int]:
        """The patches that survivor number `survivor` stands for, heaviest first."""
        row = self.weights[survivor]
        order = row.abs().argsort(descending=True, stable=True)
        return [int(i) for i in order if row[i] != 0]

    def owner(self) -> Tensor:
        """(P,) the survivor that holds the largest weight of each patch, -1 where the patch was dropped."""
        best = self.weights.abs().max(0)
        return torch.where(best.values > 0, best.indices, -1)
