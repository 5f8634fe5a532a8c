"""From the rows of a tower to the placeholders of a prompt: plain, stitched from crops, pooled from frames."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.image_processing_utils import select_best_resolution

from illava_lab.hooks.replace import replace_method
from illava_lab.models.families import Anatomy
from illava_lab.models.layout import Layout, Medium, anyres_layout, joined_layout, plain_layout, pooled_layout
from illava_lab.trace.step import Step
from illava_lab.trace.survivors import EncodedImage, fill, sizes, survive


class Connector:
    """What stands in the place of each placeholder after the tower ran.

    Attributes:
        visuals: the images and the videos that were encoded last, in their order.
        position: (rows, M) patch index of each survivor of the last call of the tower, -1 for CLS; a row is an image,
            a crop or a frame.
        size: (rows, M) patches that each survivor stands for.
        steps: the reductions of that call.
    """

    position: Tensor
    size: Tensor

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.visuals: dict[Medium, list[EncodedImage]] = {}
        self.steps: list[Step] = []
        self._visuals: list[EncodedImage] = []
        self._layouts: dict[Any, Layout] = {}

    def _start(self, tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """A call of the tower begins."""
        raise NotImplementedError

    def watch(self, undo: ExitStack) -> None:
        """Note what the encoder hands to the language model; `undo` takes everything back."""
        base = self.anatomy.base
        undo.callback(self.anatomy.tower.register_forward_pre_hook(self._start, with_kwargs=True, prepend=True).remove)
        for medium, media in self.anatomy.media.items():
            replace_method(undo, base, media.encode, functools.partial(self._encode, medium))
            if media.pack is not None:
                replace_method(undo, base, media.pack, self._pack_images if medium == "image" else self._pool_frames)

    def _encode(self, medium: Medium, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around the method that encodes images or videos: what it leaves becomes `visuals`."""
        out = original(*args, **kwargs)
        if self.anatomy.media[medium].pack is None:
            layout = self._layout("plain", lambda: plain_layout(self.anatomy.grid, self.anatomy.side))
            self._visuals = self._left(layout, self._patch_sizes(), rows=1)
        elif medium == "video":
            self._visuals = self._join_frames(len(out.pooler_output))
        self.visuals[medium] = self._visuals
        return out

    def _pack_images(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around the method that stitches the crops of images."""
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        out, *rest = original(*args, **kwargs)
        out, size, first, self._visuals = list(out), self._patch_sizes(), 0, []
        image_sizes = torch.as_tensor(arguments["image_sizes"]).tolist()
        for i, (features, image_size) in enumerate(zip(arguments["image_features"], image_sizes, strict=True)):
            layout = self._stitched(original, arguments, len(features), tuple(image_size))
            own = size[first : first + len(features)].reshape(1, -1)
            visual = self._left(layout, own, len(features), first)[0]
            if self._kept < 1 and layout.source.shape[1] > 1:
                filled = fill(layout, visual.weight[None], features.reshape(*own.shape, -1))[0]
                out[i] = torch.where(layout.marker.to(filled.device)[:, None], out[i], filled)
            self._visuals.append(visual)
            first += len(features)
        return out, *rest

    def _stitched(self, original: Callable, arguments: dict[str, Any], crops: int, size: tuple[int, int]) -> Layout:
        def pack(features: Tensor, newline: Tensor) -> Tensor:
            own = {"image_features": [features], "image_sizes": [list(size)], "image_newline": newline}
            return original(**{**arguments, **own})[0][0]

        grid, side = self.anatomy.grid, self.anatomy.side
        canvas = select_best_resolution(size, self.anatomy.base.config.image_grid_pinpoints)
        key = (crops, size, arguments.get("vision_aspect_ratio"))
        return self._layout(key, lambda: anyres_layout(pack, crops, size, canvas, grid, side))

    def _pool_frames(self, original: Callable, features: Tensor) -> Tensor:
        """Around the method that pools the patches of video frames."""
        layout = self._layout("frame", lambda: pooled_layout(original, self.anatomy.grid, self.anatomy.side))
        self._visuals = self._left(layout, self._patch_sizes(), rows=1)
        if self._kept == 1:
            return original(features)
        return fill(layout, torch.stack([frame.weight for frame in self._visuals]), features)

    def _join_frames(self, videos: int) -> list[EncodedImage]:
        frame, frames = self._visuals[0].layout, len(self._visuals) // videos
        layout = self._layout(frames, lambda: joined_layout(frame, frames))
        out = []
        for first in range(0, len(self._visuals), frames):
            own = self._visuals[first : first + frames]
            weight, size = torch.cat([v.weight for v in own]), torch.cat([v.size for v in own])
            weight, size = functional.pad(weight, (0, 0, 0, 1)), functional.pad(size, (0, 1))
            out.append(EncodedImage(layout, weight, size, range(first, first + frames), self.steps))
        return out

    def _layout(self, key: Any, make: Callable[[], Layout]) -> Layout:
        if key not in self._layouts:
            self._layouts[key] = make()
        return self._layouts[key]

    @property
    def _kept(self) -> float:
        """The fraction of patches that every row of the last call still has."""
        return (self.position.shape[1] - self.anatomy.cls_tokens) / self.anatomy.patches

    def _patch_sizes(self) -> Tensor:
        """(rows, P) size of the survivor in the place of each patch, 0 where there is none."""
        skip = self.anatomy.cls_tokens
        full = self.size.new_zeros(len(self.size), self.anatomy.patches + skip)
        return full.scatter(1, self.position + skip, self.size)[:, skip:]

    def _left(self, layout: Layout, size: Tensor, rows: int, first: int = 0) -> list[EncodedImage]:
        """What the reductions left of R images of one layout and `rows` encoder rows each; size: (R, P)."""
        weight = survive(layout, size > 0, self._kept)
        starts = range(first, first + len(weight) * rows, rows)
        return [
            EncodedImage(layout, own, patches, range(start, start + rows), self.steps)
            for start, own, patches in zip(starts, weight, sizes(layout, weight, size), strict=True)
        ]
