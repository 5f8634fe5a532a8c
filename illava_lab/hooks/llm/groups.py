"""Images that have equally many tokens left: a strategy is asked once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from illava_lab.hooks.llm.prompt import PlacedImage
from illava_lab.hooks.llm.sequence import Sequence
from illava_lab.method.brought import brought, upload
from illava_lab.models.layout import Medium
from illava_lab.trace.survivors import Survivors


@dataclass(eq=False)
class Group:
    """I images or videos of the prompts that have n tokens each.

    Attributes:
        numbers: which they are.
        images: the same, as placed in the prompts.
        row: (I, 1) long, the prompt of each.
        at: (I, n) long, where their tokens are in the sequence.
        entered: (I, n0) long, where they were in the sequence that entered the first layer.
        survivors: (I, n) whose place in its image each takes, markers not counted.
        counts: (I, n) float32, how many visual tokens each stands for; None where nobody asks (proportional attention).
    """

    numbers: list[int]
    images: list[PlacedImage]
    row: Tensor
    at: Tensor
    entered: Tensor
    survivors: Survivors
    counts: Tensor | None = None

    @property
    def count(self) -> int:
        return self.survivors.count

    @property
    def rows(self) -> list[int]:
        return [image.row for image in self.images]

    @property
    def grid(self) -> tuple[int, int] | None:
        return self.images[0].encoded.layout.grid

    @property
    def medium(self) -> Medium:
        return self.images[0].medium

    @property
    def frames(self) -> tuple[int, int] | None:
        return self.images[0].frames

    @property
    def ends(self) -> bool:
        """Whether the last token of these prompts is the last of these images: it always survives."""
        return self.images[0].ends

    @property
    def text_after(self) -> int | None:
        """Text tokens of the prompt behind each, None where that differs."""
        counts = {image.text_after for image in self.images}
        return counts.pop() if len(counts) == 1 else None

    def to(self, device: torch.device) -> None:
        """Go on where the layers go on."""
        if self.at.device != device:
            self.row, self.at, self.survivors = self.row.to(device), self.at.to(device), self.survivors.to(device)
            self.counts = None if self.counts is None else self.counts.to(device)


def group_images(images: list[PlacedImage], sequence: Sequence) -> list[Group]:
    """The images of a prefill as they enter the first layer, in order."""
    members: dict[Any, list[int]] = {}
    for number, image in enumerate(images):
        if image.encoded.tokens:
            key = image.encoded.tokens, image.encoded.layout.grid, image.ends, image.medium, image.frames
            members.setdefault(key, []).append(number)
    return [_group(numbers, [images[i] for i in numbers], sequence) for numbers in members.values()]


def _group(numbers: list[int], images: list[PlacedImage], sequence: Sequence) -> Group:
    device, rows = sequence.device, np.array([[image.row] for image in images])
    row = upload(rows, device)
    tokens = [np.flatnonzero(~image.encoded.layout.marker.numpy()) for image in images]
    if sequence.changed:
        # (I, n) which of its placeholders each image has left, in their order
        picked = torch.stack([_left(image, own, device) for image, own in zip(images, tokens, strict=True)])
        slots = [upload(image.at, device) for image in images]
        at = sequence.places[row, torch.stack([own[i] for own, i in zip(slots, picked, strict=True)])]

        def place() -> Tensor:
            return torch.stack(
                [image.encoded.layout.place_on(device)[i] for image, i in zip(images, picked, strict=True)]
            )

        survivors = Survivors(at.shape[1], device, place, _sizes(images, picked))
    else:
        at = upload(np.stack([image.at[own] for image, own in zip(images, tokens, strict=True)]), device)
        picked = upload(np.stack(tokens), device)
        every = Survivors.everything(0, len(images), at.shape[1], device)
        survivors = Survivors(every.count, device, every.make_place, _sizes(images, picked))
    return Group(numbers, images, row, at, at, survivors)


def _left(image: PlacedImage, tokens: np.ndarray, device: torch.device) -> Tensor:
    """(n,) long, the placeholders of an image that are visual tokens and no holes."""
    left, layout = image.left_on(device), image.encoded.layout
    if layout.has_markers:
        left = left & ~layout.marker_on(device)
    return (~left).to(torch.int8).argsort(stable=True)[: image.encoded.tokens]


def _sizes(images: list[PlacedImage], picked: Tensor) -> Callable[[], Tensor]:
    device = picked.device

    def size(image: PlacedImage) -> Tensor:
        return brought(lambda: image.encoded.size.to(device))

    return lambda: torch.stack([size(image)[i] for image, i in zip(images, picked, strict=True)])


def split(group: Group, keys: list[int]) -> list[Group]:
    """Parts of a group whose images have the same key: there is one for each."""
    out = []
    for key in sorted(set(keys)):
        own = [i for i, other in enumerate(keys) if other == key]
        index = upload(np.array(own), group.at.device)
        part = replace(
            group,
            numbers=[group.numbers[i] for i in own],
            images=[group.images[i] for i in own],
            row=group.row[index],
            at=group.at[index],
            entered=group.entered[index.to(group.entered.device)],
            survivors=group.survivors.rows(own),
            counts=None if group.counts is None else group.counts[index],
        )
        out.append(part)
    return out
