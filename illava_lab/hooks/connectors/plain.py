"""A patch is a placeholder (LLaVA-1.5), or a cell of patches is one (InternVL, SmolVLM)."""

from __future__ import annotations

import math
from typing import Any

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.encoding import Encoding
from illava_lab.models.layout import Layout, plain_layout
from illava_lab.trace.encoded import EncodedImage, encoded_images, untouched


class Plain:
    """Every row of the tower is an image."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment

    def install(self, changes: Changes) -> None:
        """Nothing lies in between."""

    def images(self, encoding: Encoding, features: Any, given: dict[str, Any]) -> list[EncodedImage]:
        anatomy = self.attachment.anatomy
        layout = self.attachment.layout("plain", lambda: plain_layout(anatomy.grid, anatomy.side))
        tokens = sum(math.prod(one.shape[:-1]) for one in features.pooler_output)  # of an image, or of a prompt
        return each_row(encoding, layout, tokens // layout.slots)


def each_row(encoding: Encoding, layout: Layout, rows: int) -> list[EncodedImage]:
    """Every row of the tower is an image of one layout."""
    tower = encoding.tower
    if tower is None or not tower.steps:
        return [untouched(layout, range(row, row + 1)) for row in range(rows)]
    patches, places = tower.patches, len(layout.boxes)
    return encoded_images(
        layout, range(rows), tower.steps, patches.alive(places), tower.kept, lambda: patches.spread(places),
        tower.counts,
    )  # fmt: skip
