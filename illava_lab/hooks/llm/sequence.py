"""The sequence that the language model sees, which becomes shorter."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from illava_lab.hooks.llm.prompt import PlacedImage, Prompt
from illava_lab.method.brought import upload
from illava_lab.method.host_made import host_made
from illava_lab.method.rows import row_index


@host_made
def _flags() -> tuple[Tensor, Tensor]:
    """Gone, and there."""
    return torch.zeros((), dtype=torch.int8), torch.ones((), dtype=torch.int8)


class Sequence:
    """What is left of B prompts. Survivors keep their order and sit at the right end of their row.

    A *slot* is a place in the processor's prompt.

    Attributes:
        length: L, tokens of the longest prompt.
        changed: whether it is no longer the prompt itself.
        valid: (B, L) bool, what may be attended to; None where that is all.
        filler: (1,) long, how many tokens behind the prompts only fill them up; None where none do.
        row: (B, 1) long, 0 to B-1: ``x[row, index]`` are rows of x (B, L, C) by index (B, l).
        places: (B, old L) long, where each token that was there before the last change lies now.
    """

    places: Tensor

    def __init__(self, prompt: Prompt, hidden: Tensor, filler: Tensor | None = None) -> None:
        device = hidden.device
        self.filler = filler
        self.prompt, self.device, self.changed = prompt, device, False
        self.length: int = prompt.valid.shape[1]
        self.tail = self.length - prompt.length  # tokens behind the prompt
        self._lengths = prompt.taken.sum(1)
        self._padded = bool(self._lengths.min() < self.length)
        self._present = upload(prompt.taken.astype(np.int8), device) if self._padded else None
        self._slots: Tensor | None = None
        self.row = row_index(hidden)
        self.valid = None if prompt.valid.all() else upload(prompt.valid, device)

    def to(self, device: torch.device) -> None:
        """Go on where the layers go on."""
        if device != self.device:
            self.device = device
            for name in ("row", "_present", "_slots", "valid", "filler"):
                value = getattr(self, name)
                setattr(self, name, None if value is None else value.to(device))

    @property
    def present(self) -> Tensor:
        """(B, L) int8, 0 at padding."""
        if self._present is None:
            shape = (len(self._lengths), self.length)
            self._present = torch.ones(shape, dtype=torch.int8, device=self.device)
        return self._present

    def flat(self, images: list[PlacedImage]) -> Tensor:
        """(V,) long, where the placeholders of some images are in the flattened prompts."""
        return upload(np.concatenate([image.row * self.length + image.at for image in images]), self.device)

    def without(self, present: Tensor, row: Tensor, at: Tensor) -> Tensor:
        """`present` without some tokens."""
        return present.index_put((row, at), _flags(present)[0])

    def with_(self, present: Tensor, row: Tensor, at: Tensor) -> Tensor:
        """`present` with some tokens."""
        return present.index_put((row, at), _flags(present)[1])

    def shorten(self, present: Tensor, rows: list[int], gone: list[int]) -> Tensor:
        """Go on with fewer tokens, and with no more padding than the longest prompt leaves.

        Args:
            present: (B, L) int8, 1 for those that stay.
            rows, gone: how many tokens went from which prompts.

        Returns:
            (B, shorter L) long, where each of them was.
        """
        masked = not self.prompt.valid[self.prompt.taken].all()
        np.subtract.at(self._lengths, rows, gone)
        self.length = int(self._lengths.max())
        self._padded = bool(self._lengths.min() < self.length)
        order = compact(present, self.length)
        behind = upload(self.length - 1 - self._lengths, self.device)[:, None] if self._padded else -1
        self.places = present.cumsum(1) + behind
        self._present = present[self.row, order] if self._padded else None
        valid = self.valid[self.row, order] if masked and self.valid is not None else None
        if self._padded:
            there = self.present > 0
            valid = there if valid is None else valid & there
        self.valid = valid
        self._slots = order if self._slots is None else self._slots[self.row, order]
        if not self.changed and self.prompt.ends_with_image:
            # The last token of a prompt may have gone: what is left in front of it stands for it from here on.
            self._slots = self._slots.clone()
            self._slots[:, self.length - 1 - self.tail] = upload(self.prompt.last, self.device)
        self.changed = True
        return order

    # ---- what the language model is given
    def cleared(self, hidden: Tensor) -> Tensor:
        """Padding must be zero, not only masked: 0 * NaN is NaN."""
        return hidden.masked_fill(self.present[..., None] == 0, 0.0) if self._padded else hidden

    def mask(self, cached: bool) -> Tensor | None:
        """(B, L) long, the mask at the entry.

        Without mask and cache, transformers reads gaps in the positions as several packed sequences.
        """
        if self.valid is not None:
            return self.valid.long()
        return None if cached else self.present.long()

    def numbered(self) -> Tensor:
        """(B, L) long, position ids without gaps."""
        valid = self.present if self.valid is None else self.valid
        return (valid.to(torch.long).cumsum(1) - 1).clamp_min(0)

    # ---- what is where
    @property
    def last(self) -> Tensor | int:
        """Where the last token of each prompt is: one number where all have it in common, else (B,) long."""
        if self.filler is not None:
            return (self.length - 1 - self.filler).expand(len(self._lengths))
        if self.changed:
            return self.length - 1 - self.tail
        last = self.prompt.last
        return int(last[0]) if (last == last[0]).all() else upload(last, self.device)

    def seen(self) -> Tensor | None:
        """(B, L) bool, what is part of the prompts and may be attended to; None where that is all."""
        if self.filler is None:
            return self.valid
        at = torch.arange(self.length, dtype=torch.long, device=self.device)
        inside = (at < self.length - self.filler).expand(len(self._lengths), -1)
        return inside if self.valid is None else self.valid & inside

    def text_now(self) -> Callable[[], Tensor]:
        """Makes (B, L) int8, 1 for text of the prompts, of the sequence as it is at this moment."""
        slots, present, row = self._slots, self._present if self._padded else None, self.row

        def make() -> Tensor:
            text = upload(self.prompt.text.astype(np.int8), row.device)
            text = text if slots is None else text[row, slots]
            return text if present is None else text * present

        return cache(make)

    def spread(self, hidden: Tensor) -> Tensor:
        """(B, slots of the prompts, C): hidden (B, L, C) in its slots, zero in others."""
        assert self._slots is not None
        slots, row = self._slots.to(hidden.device), self.row.to(hidden.device)
        whole = self.prompt.valid.shape[1]
        if not self._padded:
            return hidden.new_zeros((len(hidden), whole, hidden.shape[2])).index_put_((row, slots), hidden)
        full = hidden.new_zeros((len(hidden), whole + 1, hidden.shape[2]))  # one more, for padding
        slots = slots.masked_fill(self.present.to(hidden.device) == 0, whole)
        return full.index_put_((row, slots), hidden)[:, :-1]


def compact(keep: Tensor, length: int) -> Tensor:
    """(B, length) long, where each slot of a shorter sequence comes from: survivors keep their order, at the right end.

    Rows with fewer survivors are filled up on the left with slots that are not kept.

    Args:
        keep: (B, L) int8, 1 for survivors and 0 for others; length: the largest number of survivors in a row.
    """
    return keep.argsort(dim=1, stable=True)[:, keep.shape[1] - length :]


def gather_sequence(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Index the sequence axis `dim` of x by (B, L); the axis before it is the batch, and may be 1 (shared)."""
    dim, index = dim % x.dim(), index.to(x.device)
    if dim == 1 and len(x) == len(index):
        return x[row_index(x), index]
    view = [1] * x.dim()
    view[dim - 1], view[dim] = index.shape
    before = list(x.shape)
    before[dim - 1] = index.shape[0]
    after = [*before]
    after[dim] = index.shape[1]
    return x.expand(before).gather(dim, index.view(view).expand(after))
