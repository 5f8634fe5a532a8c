"""The tower itself merges cells of patches into visual tokens, of images of any size (Qwen-VL, GLM-4.1V)."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from torch import Tensor

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.encoding import Encoding
from illava_lab.models.cells import cell_layout
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage, encoded_images, untouched


class Merged:
    """A stretch of the tower's sequence is an image or a video."""

    def __init__(self, attachment: Attachment, medium: Medium) -> None:
        self.attachment, self.medium = attachment, medium

    def install(self, changes: Changes) -> None:
        """Nothing lies in between."""

    def images(self, encoding: Encoding, features: Any, given: dict[str, Any]) -> list[EncodedImage]:
        tower, cells = encoding.tower, self.attachment.anatomy.cells
        assert cells is not None
        grids: list[list[int]] = given[f"{self.medium}_grid_thw"].tolist() if tower is None else tower.grids
        layouts = [self.attachment.layout(tuple(grid), partial(cell_layout, grid, cells.side)) for grid in grids]
        ends = [sum(grid[0] for grid in grids[: i + 1]) for i in range(len(grids))]
        rows = [range(end - grid[0], end) for end, grid in zip(ends, grids, strict=True)]
        if tower is None or not tower.steps:
            return [untouched(layout, own) for layout, own in zip(layouts, rows, strict=True)]
        patches, lengths = tower.patches, [layout.slots for layout in layouts]
        alive, left = patches.alive(sum(lengths)).split(lengths, 1), tower.left()

        @cache
        def all_sizes() -> tuple[Tensor, ...]:
            return patches.spread(sum(lengths)).split(lengths, 1)

        def image(i: int) -> EncodedImage:
            share = left[i] / lengths[i]
            return encoded_images(layouts[i], rows[i], tower.steps, alive[i], share, lambda: all_sizes()[i])[0]

        return [image(i) for i in range(len(grids))]
