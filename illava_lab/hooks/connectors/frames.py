"""A video is a row of the tower for each frame, whose patches are pooled (LLaVA-OneVision, LLaVA-NeXT-Video)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.connectors.plain import each_row
from illava_lab.hooks.encoding import Encoding
from illava_lab.models.layout import joined_layout, pooled_layout
from illava_lab.trace.encoded import EncodedImage, fill, join


class Frames:
    """Several rows of the tower are a video."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment, self.anatomy = attachment, attachment.anatomy
        self.media = self.anatomy.media["video"]

    def install(self, changes: Changes) -> None:
        owner, _, name = str(self.media.pack).rpartition(".")
        changes.method(self.anatomy.base.get_submodule(owner), name, self._pool)

    def images(self, encoding: Encoding, features: Any, given: dict[str, Any]) -> list[EncodedImage]:
        """The videos, of the frames that `_pool` has seen."""
        seen, count = encoding.images, len(encoding.images) // len(features.pooler_output)
        frame = seen[0].layout
        layout = self.attachment.layout((count, "frames"), lambda: joined_layout(frame, count, self.media.newline))
        return [join(seen[first : first + count], layout) for first in range(0, len(seen), count)]

    def _pool(self, original: Callable, features: Tensor) -> Tensor:
        """Around the method that pools the patches (F, P, C) of frames; where that is early, (F, M, C) what is left."""
        encoding: Encoding | None = self.attachment.running.encoding
        if encoding is None:  # called by hand
            pooled: Tensor = original(features)
            return pooled
        grid, side = self.anatomy.grid, self.anatomy.side
        layout = self.attachment.layout("frame", lambda: pooled_layout(original, grid, side))
        encoding.images, encoding.pooled = each_row(encoding, layout, len(features)), self.media.early
        if encoding.images[0].left is None:
            whole: Tensor = original(features)
            return whole
        if self.media.early:
            features = encoding.tower.leave_projector(features)
        weight = torch.stack([frame.weight for frame in encoding.images]).to(features.device)
        return fill(layout, weight, features)
