"""The layout of an image or a video whose patches the tower joins in cells (Qwen-VL)."""

from __future__ import annotations

import torch

from illava_lab.models.layout import Layout


def cell_layout(grid: list[int], merge: int) -> Layout:
    """The placeholders of one image or video: one for each cell, slice after slice. Its patches are these cells.

    Args:
        grid: (time, height, width) in patches, merge: patches along the side of a cell.
    """
    time, height, width = grid[0], grid[1] // merge, grid[2] // merge
    axes = (torch.arange(length, dtype=torch.long, device="cpu") for length in (height, width))
    row, column = (axis.flatten().float() for axis in torch.meshgrid(*axes, indexing="ij"))
    boxes = torch.stack([column / width, row / height, (column + 1) / width, (row + 1) / height], dim=1)
    cells = torch.arange(time * height * width, dtype=torch.long, device="cpu")[:, None]
    weight = torch.ones(cells.shape, dtype=torch.float32, device="cpu")
    return Layout((time, height, width), cells, weight, (height, width) if time == 1 else None, boxes.repeat(time, 1))
