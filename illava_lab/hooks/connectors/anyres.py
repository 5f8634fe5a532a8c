"""An image is seen whole and in crops, which are stitched together (LLaVA-NeXT, LLaVA-OneVision)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.encoding import Encoding
from illava_lab.models.layout import Layout, anyres_layout
from illava_lab.trace.encoded import EncodedImage, encoded_images, fill, untouched


class Anyres:
    """Several rows of the tower are an image."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment, self.anatomy = attachment, attachment.anatomy

    def install(self, changes: Changes) -> None:
        changes.method(self.anatomy.base, str(self.anatomy.media["image"].pack), self._pack)

    def images(self, encoding: Encoding, features: Any, given: dict[str, Any]) -> list[EncodedImage]:
        return encoding.images

    def _pack(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around the method that stitches the crops of images."""
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        out, *rest = original(*args, **kwargs)
        encoding = self.attachment.running.encoding
        if encoding is None:  # called by hand
            return out, *rest
        out, first = list(out), 0
        sizes = torch.as_tensor(arguments["image_sizes"]).tolist()
        for i, (features, size) in enumerate(zip(arguments["image_features"], sizes, strict=True)):
            rows = range(first, first + len(features))
            layout = self._layout(original, arguments, len(rows), (size[0], size[1]))
            image = self._image(encoding, layout, rows)
            encoding.images.append(image)
            if image.left is not None:
                out[i] = self._with_holes(image, features, out[i])
            first = rows.stop
        return out, *rest

    def _layout(self, original: Callable, arguments: dict[str, Any], crops: int, size: tuple[int, int]) -> Layout:
        def pack(features: Tensor, newline: Tensor) -> Tensor:
            own = {"image_features": [features], "image_sizes": [list(size)], "image_newline": newline}
            packed: Tensor = original(**{**arguments, **own})[0][0]
            return packed

        grid, side = self.anatomy.grid, self.anatomy.side
        canvas = select_best_resolution(size, self.anatomy.base.config.image_grid_pinpoints)
        key = (crops, size, arguments.get("vision_aspect_ratio"))
        return self.attachment.layout(key, lambda: anyres_layout(pack, crops, size, canvas, grid, side))

    def _image(self, encoding: Encoding, layout: Layout, rows: range) -> EncodedImage:
        tower = encoding.tower
        if tower is None or not tower.steps:
            return untouched(layout, rows)
        own, places = tower.patches.rows(rows), self.anatomy.patches
        alive = own.alive(places).view(1, -1)
        return encoded_images(
            layout, rows, tower.steps, alive, tower.kept, lambda: own.spread(places).view(1, -1), tower.counts
        )[0]

    @staticmethod
    def _with_holes(image: EncodedImage, features: Tensor, packed: Tensor) -> Tensor:
        """(S, C) what the model stitched, with holes; where it interpolates, with means over what is left."""
        layout, device = image.layout, packed.device
        assert image.left is not None
        if not layout.interpolates:
            return packed.masked_fill_(~image.left.to(device)[:, None], torch.nan)
        filled = fill(layout, image.weight[None].to(device), features.reshape(1, -1, features.shape[-1]))[0]
        return torch.where(layout.marker_on(device)[:, None], packed, filled)
