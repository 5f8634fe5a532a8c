"""What a packed tower sees side by side: images and temporal slices, in batches of equal size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from illava_lab.method.brought import upload
from illava_lab.sites.packed import window_of_cells
from illava_lab.trace.survivors import Survivors


@dataclass(eq=False)
class Frames:
    """Images, or temporal slices of videos, of one size; F of them with n cells each.

    Attributes:
        rows: which each of them is, counted over the whole call of the tower.
        grid: (height, width) in cells.
        first: (F, 1) long, cells of the call before each of them.
        at: (F, n) long, where each cell is in the packed sequence, counted in cells.
        survivors: (F, n) whose place of the grid (raster order, in cells) each takes, and how many cells it stands for.
        noted: (F, n, ...) what the strategy noted of them; None before its first note.
    """

    rows: list[int]
    grid: tuple[int, int]
    first: Tensor
    at: Tensor
    survivors: Survivors
    noted: Tensor | None = None

    def some(self, own: list[int]) -> Frames:
        """Those of some rows."""
        noted = None if self.noted is None else self.noted[own]
        rows = [self.rows[i] for i in own]
        return Frames(rows, self.grid, self.first[own], self.at[own], self.survivors.rows(own), noted)


def packed_frames(grids: list[list[int]], merge: int, window: int | None, device: torch.device) -> list[Frames]:
    """The frames of one call of the tower, before any reduction.

    Args:
        grids: (time, height, width) in patches of each image or video, as in `image_grid_thw`.
        merge: patches along the side of a cell.
        window: cells along the side of a window, by which the tower sorts; None where it sorts by rows.
    """
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    row = start = 0
    for time, height, width in grids:
        grid = (height // merge, width // merge)
        for _ in range(time):
            members.setdefault(grid, []).append((row, start))
            row, start = row + 1, start + grid[0] * grid[1]
    out = []
    for grid, frames in members.items():
        first = upload(np.array([start for _, start in frames], np.int64), device)[:, None]
        # Window by window: windows, and the cells within each, in raster order.
        at = first + window_of_cells(grid, window or max(grid), device).flatten().argsort(stable=True).argsort()
        survivors = Survivors.everything(0, len(frames), at.shape[1], device)
        out.append(Frames([row for row, _ in frames], grid, first, at, survivors))
    return out
