"""What lies in every slot of the processor's prompts, and which images these are. All of it on the host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.models.anatomy import Anatomy, Media
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage, join_tiles


@dataclass(frozen=True, eq=False)
class Prompt:
    """What lies in every slot of the processor's prompts.

    Attributes:
        valid: (B, L) bool, False where the mask hides.
        media: (B, L) bool for each medium, the places of its visual tokens.
        length: how many of the L slots are the prompt; what comes behind was generated or drafted after it.
        ids: (B, L) token ids.
    """

    valid: np.ndarray
    media: dict[Medium, np.ndarray]
    length: int
    ids: np.ndarray

    @property
    def visual(self) -> np.ndarray:
        """(B, L) bool, places of visual tokens."""
        return np.any([np.zeros_like(self.valid), *self.media.values()], axis=0)

    @property
    def text(self) -> np.ndarray:
        """(B, L) bool, text of the prompt."""
        return self.valid & ~self.visual & (np.arange(self.valid.shape[1]) < self.length)

    @property
    def taken(self) -> np.ndarray:
        """(B, L) bool, what is no padding: a visual token may be masked, and is none then."""
        return self.valid | self.visual

    @property
    def last(self) -> np.ndarray:
        """(B,) the slot of the last token of each prompt."""
        seen = self.valid[:, : self.length]
        return self.length - 1 - seen[:, ::-1].argmax(axis=1)

    def only(self, media: Iterable[Medium]) -> Prompt:
        """The same with the places of some media; those of others are ordinary tokens."""
        return replace(self, media={medium: holds for medium, holds in self.media.items() if medium in set(media)})

    @property
    def ends_with_image(self) -> bool:
        """Whether the last token of any prompt is a visual one."""
        return bool(self.visual[np.arange(len(self.valid)), self.last].any())

    @property
    def text_at_end(self) -> int:
        """How many tokens at the end of the prompts are text in all of them; 0 where some are padded on the right."""
        is_text = self.text[:, : self.length]
        return int(np.where(is_text.all(1), self.length, is_text[:, ::-1].argmin(1)).min())


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """One image or video of the prompts.

    Attributes:
        row: the prompt it belongs to.
        encoded: what the encoder left of it.
        at: (S,) the slots of its placeholders.
        text_after: text tokens of the prompt behind it.
        ends: the prompt ends with it: its last placeholder is the last token.
        medium: which of the two it is.
    """

    row: int
    encoded: EncodedImage
    at: np.ndarray
    text_after: int
    ends: bool
    medium: Medium

    @property
    def frames(self) -> tuple[int, int] | None:
        """(frames, visual tokens of each) of a video."""
        return self.encoded.layout.frames if self.medium == "video" else None

    def left_on(self, device: torch.device) -> Tensor:
        """(S,) bool, placeholders that are no holes."""
        left = self.encoded.left
        if left is None:
            return torch.ones(self.encoded.layout.slots, dtype=torch.bool, device=device)
        return left.to(device)


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors of one shape as arrays. On a device this waits once, for all of them."""
    if all(x.device.type == "cpu" for x in tensors):
        return [x.numpy() for x in tensors]
    device = tensors[0].device
    return list(torch.stack([x.to(device, torch.long) for x in tensors]).cpu().numpy())


def read_prompt(
    anatomy: Anatomy, ids: Tensor, mask: Tensor | None, positions: Tensor | None, length: int | None
) -> Prompt:
    """What lies in every slot. The one host synchronisation of a prefill.

    Args:
        ids: (B, L) token ids; mask: (B, L) or None; positions: position ids, (B or 1, L) or (axes, B or 1, L), or None.
        length: tokens of the prompt, where some of the L came after it; None where all are the prompt.

    Raises:
        LabError: several prompts lie in one row.
    """
    given = [ids] if mask is None else [ids, mask if mask.shape == ids.shape else mask[:, : ids.shape[1]]]
    if positions is not None:
        first = positions if positions.dim() == 2 else positions[0]
        given.append(first if first.shape == ids.shape else first.expand(ids.shape[0], -1)[:, : ids.shape[1]])
    host = to_host(*given)
    valid = np.ones(host[0].shape, bool) if mask is None else host[1].astype(bool)
    if positions is not None and host[-1].shape == valid.shape:
        _one_prompt_a_row(host[-1], valid)
    length = ids.shape[1] if length is None else min(length, ids.shape[1])
    inside = np.arange(ids.shape[1]) < length
    media = {medium: (host[0] == token) & inside for medium, token in anatomy.placeholders.items()}
    return Prompt(valid, media, length, host[0])


def _one_prompt_a_row(positions: np.ndarray, valid: np.ndarray) -> None:
    for row, (own, seen) in enumerate(zip(positions, valid, strict=True)):
        back = np.flatnonzero(np.diff(own[seen]) < 0)
        if len(back):
            raise LabError(
                f"position_ids of row {row} restart after token {back[0]}: several prompts in one row are not "
                "supported while a strategy is attached; give each prompt a row"
            )


def placed_images(anatomy: Anatomy, prompt: Prompt, encoded: dict[Medium, list[EncodedImage]]) -> list[PlacedImage]:
    """The images and videos of the batch in the order of their placeholders.

    Raises:
        LabError: the prompts have other places than these images and videos take.
    """
    out, text, last = [], prompt.text, prompt.last
    for medium, holds in prompt.media.items():
        images, (batch, needed) = encoded.get(medium, []), (len(holds), int(holds.sum()))
        if needed and not images:
            raise LabError(f"the prompts have {needed} places for {medium}s, but this call brought no {medium}")
        ends = np.cumsum([0, *(image.layout.slots for image in images)])
        # Beams and several returned sequences repeat a prompt, but its images were encoded once.
        repeats = needed // int(ends[-1]) if ends[-1] else 1
        bounds = np.cumsum([0, *holds.sum(1)[:: max(1, repeats)]])
        if needed and (needed != repeats * ends[-1] or batch % repeats or not np.isin(bounds, ends).all()):
            lengths = np.diff(ends).tolist()
            raise LabError(f"the prompts have {needed} places for {medium}s, those of this call take {lengths}")
        for row in range(batch if needed else 0):
            own, slots = np.searchsorted(ends, bounds[row // repeats :][:2]), np.flatnonzero(holds[row])
            at = [slots[ends[i] - ends[own[0]] : ends[i + 1] - ends[own[0]]] for i in range(*own)]
            for tiles in _runs(at, prompt.ids[row], anatomy.media[medium]):
                image = join_tiles([images[own[0] + i] for i in tiles])
                place = np.concatenate([at[i] for i in tiles])
                after = int(text[row, place[-1] :].sum())
                out.append(PlacedImage(row, image, place, after, bool(place[-1] == last[row]), medium))
    return sorted(out, key=lambda image: (image.row, image.at[0]))


def _runs(at: list[np.ndarray], ids: np.ndarray, media: Media) -> list[list[int]]:
    """Which slots belong to one image: where images have tiles, all that follow each other without a gap, or with a gap
    in which no image ends."""
    out: list[list[int]] = []
    for i, slots in enumerate(at):
        gap = ids[at[i - 1][-1] + 1 : slots[0]] if i else ids[:0]
        goes_on = media.tiled and not len(gap)
        if media.marked and len(gap) > 1:  # in front of a first tile, the mark has come behind a last one already
            goes_on = np.count_nonzero(gap == gap[-2]) == 1
        if i and goes_on:
            out[-1].append(i)
        else:
            out.append([i])
    return out
